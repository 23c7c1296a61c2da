"""BLIP: question answering, captioning and image-text retrieval.

The only file that knows Hugging Face's names for BLIP. Its text stacks are post-norm, BERT-like blocks with
cross-attention; the decoder is causal. We mask padded question positions in the answer decoder, as Hugging
Face's `forward` does and its `generate` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from hooked_vlm.components.attention import AttentionLeaves, HookedAttention, Rotary
from hooked_vlm.components.block import Block, Branch
from hooked_vlm.components.embed import TextStack, Unembed, VisionStack
from hooked_vlm.components.head import TransformHead
from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.components.masks import AttentionMask
from hooked_vlm.components.mlp import HookedMLP
from hooked_vlm.components.norm import HookedNorm
from hooked_vlm.components.stack import StackPass
from hooked_vlm.components.weights import Projection, held
from hooked_vlm.errors import InputsError, TextError
from hooked_vlm.models.base import HookedVLM, register
from hooked_vlm.models.config import stack_config
from hooked_vlm.models.conversations import Prompt, one_each, plain
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.layout import Layout
from hooked_vlm.models.run import Run
from hooked_vlm.models.vit import vision_stack


def vision_tower(hf: Any) -> VisionStack:
    """The vision tower of a `BlipVisionModel`: a pre-norm ViT with a class token and a norm at its end."""
    d = hf.config.hidden_size

    def attention(a: Any) -> AttentionLeaves:
        q, k, v = (Projection(a.qkv, i * d, d) for i in range(3))
        return AttentionLeaves(q, k, v, Projection(a.projection))

    positions = partial(held, hf.embeddings, "position_embedding")
    return vision_stack(hf, attention, positions, ln_final=HookedNorm(hf.post_layernorm))


def text_stack(name: str, hf: Any, *, causal: bool) -> TextStack:
    """A `BlipTextModel`'s blocks, as encoder or as decoder."""
    c, e = hf.config, hf.embeddings
    cfg = stack_config(
        d_model=c.hidden_size,
        n_heads=c.num_attention_heads,
        n_layers=c.num_hidden_layers,
        n_ctx=c.max_position_embeddings,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        act_fn=str(c.hidden_act),
        eps=c.layer_norm_eps,
    )

    def attention(hf_attention: Any, cross: bool) -> HookedAttention:
        inner = hf_attention.self
        parts = (inner.query, inner.key, inner.value, hf_attention.output.dense)
        return HookedAttention(AttentionLeaves(*map(Projection, parts)), cfg, cross=cross)

    def branch(module: HookedAttention | HookedMLP, part: Any) -> Branch:
        return Branch(module, norm_of_sum=HookedNorm(part.output.LayerNorm))

    def block(layer: Any) -> Block:
        crossed = getattr(layer, "crossattention", None)
        mlp = HookedMLP(layer.intermediate.dense, layer.output.dense, layer.intermediate.intermediate_act_fn)
        return Block(
            attn=branch(attention(layer.attention, cross=False), layer.attention),
            cross_attn=None if crossed is None else branch(attention(crossed, cross=True), crossed),
            mlp=branch(mlp, layer),
        )

    blocks = [block(layer) for layer in hf.encoder.layer]
    return TextStack(
        name,
        f"{name}.",
        cfg,
        blocks,
        words=e.word_embeddings,
        positions=e.position_embeddings,
        ln_embed=HookedNorm(e.LayerNorm),
        causal=causal,
    )


class HookedBLIP(HookedVLM):
    """A BLIP model. `from_pretrained` and `from_hf` give the class that fits the checkpoint's task."""

    stages = ("hook_pixel_values", "vision_encoder", "hook_image_features", "text_encoder", "text_decoder")
    text_encoder: TextStack  # in question answering and retrieval
    text_decoder: TextStack  # in question answering and captioning

    def _build(self) -> None:
        hf = self.hf_model
        self.vision_encoder = vision_tower(hf.vision_model)
        self.hook_image_features = HookPoint("batch image_pos d_vision")
        self.stacks["vision_encoder"] = self.vision_encoder
        self._build_text(hf)

    def _build_text(self, hf: Any) -> None:
        raise NotImplementedError

    def _build_decoder(self, hf_decoder: Any) -> None:
        self.text_decoder = text_stack("text_decoder", hf_decoder.bert, causal=True)
        self.stacks["text_decoder"] = self.text_decoder
        head = hf_decoder.cls.predictions
        transform = head.transform
        self.text_decoder.head = TransformHead(
            transform.dense, transform.transform_act_fn, HookedNorm(transform.LayerNorm)
        )
        self.unembed = Unembed(head.decoder)

    @property
    def layout(self) -> Layout:
        """Image patches are keys of cross-attention, after the class token."""
        tokenizer, pictures = (getattr(self.processor, name, None) for name in ("tokenizer", "image_processor"))
        return Layout(tokenizer, pictures, patch_size=self.vision_encoder.patch_size)

    def _image(self, inputs: VLMInputs, run: Run) -> Tensor | None:
        """What text cross-attends to, [batch image_pos d_vision]; None if the run resumes after it."""
        x, _ = self._through(
            "vision_encoder",
            run,
            lambda: self.vision_encoder.embed(self.hook_pixel_values(inputs.pixel_values), run.interpolate),
            StackPass,
        )
        return None if x is None else self.hook_image_features(self.vision_encoder.ln_final(x))

    def _text(
        self, stack: TextStack, ids: Tensor, run: Run, given: Callable[[], StackPass], position_ids: Tensor
    ) -> Tensor | None:
        return self._through(stack.name, run, lambda: stack.embed(ids, position_ids), given)[0]

    def _check(self, inputs: VLMInputs, run: Run) -> None:
        stack = cast(TextStack, self.stacks[self.prompt_stack])
        if inputs.pixel_values is None:
            raise InputsError("BLIP reads an image with every text, and the inputs lack pixel_values")
        for name, ids in (("input_ids", inputs.input_ids), ("decoder_input_ids", inputs.decoder_input_ids)):
            if ids is None:
                continue
            refuse_unknown_ids(name, ids, stack.cfg.d_vocab)
            if ids.shape[1] > stack.cfg.n_ctx:
                raise InputsError(f"{name} has {ids.shape[1]} positions and the context is {stack.cfg.n_ctx}")

    def _prepare(self, images: list[list[Image.Image]], texts: list[Prompt] | None) -> VLMInputs:
        if texts is None:
            raise TextError(f"{type(self).__name__} reads a text with every image: to_inputs(images, texts)")
        pictures, words = one_each(images), plain(texts)
        encoded = self.processor(images=pictures, text=words, padding=len(words) > 1, return_tensors="pt")
        inputs = VLMInputs.of({k: encoded.get(k) for k in ("pixel_values", "input_ids", "attention_mask")})
        lengths = [int(n) for n in (encoded["attention_mask"]).sum(1)]
        self._refuse_long(words, lengths, self.stacks[self.prompt_stack].cfg.n_ctx)
        return inputs

    # --- generation, in the classes that have a decoder ---------------------------------------------

    answer_stack = "text_decoder"

    def _embed_next(self, tokens: Tensor, position_ids: Tensor) -> tuple[Tensor, dict[str, Rotary]]:
        return self.text_decoder.embed(tokens, position_ids), {}

    def _logits(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.hook_logits(self.unembed(self.text_decoder.head(x)))

    def _stop_tokens(self) -> tuple[list[int], int]:
        config = self.hf_model.config.text_config
        return [config.sep_token_id], config.pad_token_id

    @property
    def _start_token(self) -> int:
        return int(self.hf_model.config.text_config.bos_token_id)


@register("BlipForQuestionAnswering")
class HookedBLIPForQuestionAnswering(HookedBLIP):
    """Image -> question encoder (cross-attends to the image) -> answer decoder (cross-attends to the question).

    Without `decoder_input_ids` the decoder runs one step from its start token, so that ``logits[:, -1]``
    scores the first answer token.
    """

    prompt_stack = "text_encoder"

    def _build_text(self, hf: Any) -> None:
        self.text_encoder = text_stack("text_encoder", hf.text_encoder, causal=False)
        self.stacks["text_encoder"] = self.text_encoder
        self._build_decoder(hf.text_decoder)

    def _run(self, inputs: VLMInputs, run: Run) -> Float[Tensor, "batch pos d_vocab"]:
        image = self._image(inputs, run)
        inputs = self._text_of_rows(inputs, image)
        question = self._text(
            self.text_encoder,
            inputs.input_ids,
            run,
            lambda: StackPass(AttentionMask(inputs.real), source=image),
            inputs.position_ids,
        )
        inputs = self._text_of_rows(inputs, question)
        so_far, _ = self._answer_so_far(inputs)
        answer = self._text(
            self.text_decoder,
            so_far,
            run,
            lambda: StackPass(AttentionMask(None, causal=True), source=question, source_real=inputs.real),
            torch.arange(so_far.shape[1], device=so_far.device).expand_as(so_far),
        )
        assert answer is not None
        return self._logits(self._select(answer, run))

    def _hf_logits(self, inputs: VLMInputs) -> Float[Tensor, "batch pos d_vocab"]:
        hf, (so_far, _) = self.hf_model, self._answer_so_far(inputs)
        image = hf.vision_model(inputs.pixel_values).last_hidden_state
        question = hf.text_encoder(input_ids=inputs.input_ids, encoder_hidden_states=image).last_hidden_state
        logits: Tensor = hf.text_decoder(input_ids=so_far, encoder_hidden_states=question).logits
        return logits

    def _answer_so_far(self, inputs: VLMInputs) -> tuple[Tensor, None]:
        if inputs.decoder_input_ids is not None:
            return inputs.decoder_input_ids, None
        return torch.full_like(inputs.input_ids[:, :1], self._start_token), None

    def _targets(self, inputs: VLMInputs) -> Tensor:
        return self._answer_so_far(inputs)[0]


@register("BlipForConditionalGeneration")
class HookedBLIPForCaptioning(HookedBLIP):
    """Image -> caption decoder (cross-attends to the image). A text is the caption's beginning."""

    prompt_stack = "text_decoder"

    def _build_text(self, hf: Any) -> None:
        self._build_decoder(hf.text_decoder)

    def _prepare(self, images: list[list[Image.Image]], texts: list[Prompt] | None) -> VLMInputs:
        tokenizer = self.processor.tokenizer
        prompts = [""] * len(images) if texts is None else plain(texts)
        rows = [[self._start_token, *tokenizer(t, add_special_tokens=False)["input_ids"]] for t in prompts]
        self._refuse_long(prompts, [len(row) for row in rows], self.text_decoder.cfg.n_ctx)
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        return VLMInputs(self.to_pixels(one_each(images)).cpu(), padded["input_ids"], padded["attention_mask"])

    def _run(self, inputs: VLMInputs, run: Run) -> Float[Tensor, "batch pos d_vocab"]:
        image = self._image(inputs, run)
        inputs = self._text_of_rows(inputs, image)
        caption = self._text(
            self.text_decoder,
            inputs.input_ids,
            run,
            lambda: StackPass(AttentionMask(inputs.real, causal=True), source=image),
            inputs.position_ids,
        )
        assert caption is not None
        return self._logits(self._select(caption, run, inputs))

    def _hf_logits(self, inputs: VLMInputs) -> Float[Tensor, "batch pos d_vocab"]:
        logits: Tensor = self.hf_model(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
        return logits

    def _answer_so_far(self, inputs: VLMInputs) -> tuple[Tensor, Tensor | None]:
        return inputs.input_ids, inputs.real

    def _targets(self, inputs: VLMInputs) -> Tensor:
        first = inputs.position_ids == 0  # which no token stands before, whatever padding does
        return inputs.input_ids.masked_fill(first | ~inputs.is_real, -100)


@register("BlipForImageTextRetrieval")
class HookedBLIPForRetrieval(HookedBLIP):
    """Image -> text encoder (cross-attends to the image) -> does the text match? And the contrastive features.

    Logits are [batch 1 2]: (no match, match). ``return_type="similarity"`` gives the cosine similarity of
    every image with every text, [batch batch], computed without cross-attention.
    """

    prompt_stack = answer_stack = "text_encoder"

    def _build_text(self, hf: Any) -> None:
        self.text_encoder = text_stack("text_encoder", hf.text_encoder, causal=False)
        self.stacks["text_encoder"] = self.text_encoder
        self.hook_image_embed = HookPoint("batch d_embed")
        self.hook_text_embed = HookPoint("batch d_embed")

    def forward(self, inputs: Any, return_type: str | None = "logits", **options: Any) -> Any:
        """As `HookedVLM.forward`; also ``return_type="similarity"``, and no loss."""
        if return_type in ("loss", "both"):
            raise InputsError("a retrieval model predicts no tokens, so it has no loss; take the logits")
        if return_type != "similarity":
            return super().forward(inputs, return_type, **options)
        run = Run(interpolate=options.pop("interpolate_pos_encoding", False), with_cross=False)
        given = [f"{name}={value!r}" for name, value in options.items() if value is not None and value is not False]
        if given:
            raise InputsError(f"a similarity has no logits and ends at no layer: leave out {', '.join(given)}")
        return self._checked_run(self.as_inputs(inputs), run)

    def _run(self, inputs: VLMInputs, run: Run) -> Tensor:
        hf = self.hf_model
        image = self._image(inputs, run)
        inputs = self._text_of_rows(inputs, image)
        text = self._text(
            self.text_encoder,
            inputs.input_ids,
            run,
            lambda: StackPass(AttentionMask(inputs.real), source=image if run.with_cross else None),
            inputs.position_ids,
        )
        assert text is not None
        first = text[:, 0]
        if inputs.real is not None:
            places = self._text_of_rows(inputs, text).real
            assert places is not None
            first = text[torch.arange(len(text), device=text.device), places.long().argmax(1)]
        if run.with_cross:
            return self.hook_logits(hf.itm_head(first)[:, None])
        assert image is not None
        image_embed = self.hook_image_embed(nn.functional.normalize(hf.vision_proj(image[:, 0]), dim=-1))
        text_embed = self.hook_text_embed(nn.functional.normalize(hf.text_proj(first), dim=-1))
        return image_embed @ text_embed.T

    def _hf_logits(self, inputs: VLMInputs) -> Float[Tensor, "batch pos d_vocab"]:
        scores: Tensor = self.hf_model(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).itm_score
        return scores[:, None]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: a retrieval model scores texts, it makes none."""
        raise InputsError("a retrieval model makes no text; load a BlipForQuestionAnswering or a captioning checkpoint")


def refuse_unknown_ids(name: str, ids: Tensor, d_vocab: int) -> None:
    """Raise InputsError if an id is outside the vocabulary."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= d_vocab:
        raise InputsError(f"{name} has ids from {low} to {high}; the vocabulary is 0 to {d_vocab - 1}")
