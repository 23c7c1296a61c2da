"""LLaVA: a CLIP or SigLIP tower, a projector, and a Llama, Mistral or Qwen2 language model.

The only file that knows Hugging Face's names for LLaVA. Only the vision layers that reach the logits are
computed: with `vision_feature_layer=-2` the last one never does. Rotary positions count real tokens alone, so
that padding on the left shifts nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from hooked_vlm.components.attention import AttentionLeaves, HookedAttention, Rotary
from hooked_vlm.components.block import Block, Branch
from hooked_vlm.components.embed import Unembed, VisionStack
from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.components.masks import AttentionMask
from hooked_vlm.components.mlp import HookedMLP
from hooked_vlm.components.norm import HookedNorm
from hooked_vlm.components.stack import Stack, StackedWeights, StackPass
from hooked_vlm.components.weights import Projection, dense_weight
from hooked_vlm.errors import CheckpointError, InputsError, TextError
from hooked_vlm.given import told
from hooked_vlm.models.base import HookedVLM, register
from hooked_vlm.models.config import stack_config
from hooked_vlm.models.conversations import Prompt, as_many, said, turns
from hooked_vlm.models.inputs import VLMInputs
from hooked_vlm.models.layout import Layout
from hooked_vlm.models.run import Run
from hooked_vlm.models.vit import vision_stack

ROTARY = "default"  # the one kind of rotary positions of these language models


def vision_tower(hf: Any, n_layers: int) -> VisionStack:
    """The first `n_layers` layers of a CLIP (class token, norm before them) or SigLIP (neither) tower."""

    def attention(a: Any) -> AttentionLeaves:
        return AttentionLeaves(*map(Projection, (a.q_proj, a.k_proj, a.v_proj, a.out_proj)))

    ln_pre = HookedNorm(hf.pre_layrnorm) if hasattr(hf, "pre_layrnorm") else None
    return vision_stack(hf, attention, partial(position_table, hf.embeddings), n_layers=n_layers, ln_pre=ln_pre)


def position_table(embeddings: Any) -> Tensor:
    """The learned positions of a CLIP or SigLIP tower, read anew each time: its buffers move with the model."""
    table: Tensor = embeddings.position_embedding(embeddings.position_ids)
    return table


def language_stack(hf: Any) -> Stack:
    """A Llama, Mistral or Qwen2 text tower."""
    c = hf.config
    first = hf.layers[0].self_attn
    cfg = stack_config(
        d_model=c.hidden_size,
        d_head=first.head_dim,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        n_layers=c.num_hidden_layers,
        n_ctx=c.max_position_embeddings,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        act_fn=str(c.hidden_act),
        eps=c.rms_norm_eps,
        norm="RMS",
        positions="rotary",
        gated_mlp=True,
    )
    kinds = getattr(c, "layer_types", None) or ["sliding_attention"] * c.num_hidden_layers

    def block(layer: Any, kind: str) -> Block:
        a, m = layer.self_attn, layer.mlp
        window = getattr(c, "sliding_window", None) if kind == "sliding_attention" else None
        leaves = AttentionLeaves(*map(Projection, (a.q_proj, a.k_proj, a.v_proj, a.o_proj)))
        attn = HookedAttention(leaves, cfg, rotary=ROTARY, window=window)
        mlp = HookedMLP(m.up_proj, m.down_proj, m.act_fn, gate=m.gate_proj)
        return Block(
            attn=Branch(attn, norm=HookedNorm(layer.input_layernorm)),
            mlp=Branch(mlp, norm=HookedNorm(layer.post_attention_layernorm)),
        )

    blocks = [block(layer, kind) for layer, kind in zip(hf.layers, kinds, strict=False)]
    return Stack("language_model", "", cfg, blocks, causal=True)


def feature_layers(asked: int | list[int], n_layers: int) -> list[int]:
    """`vision_feature_layer` as positive numbers of the tower's streams: 0 is what its first block receives.

    Raises:
        CheckpointError: if a number is none of the tower's, or it is a bare 0, which Hugging Face cannot run.
    """
    numbers = [asked] if isinstance(asked, int) else list(asked)
    if not numbers or not all(-n_layers - 1 <= layer <= n_layers for layer in numbers):
        raise CheckpointError(
            f"the config's vision_feature_layer is {asked!r} and the vision tower has {n_layers} layers: expected "
            f"numbers from {-n_layers - 1} to {n_layers}, at least one"
        )
    if asked == 0:
        raise CheckpointError(
            "the config's vision_feature_layer is 0, for which Hugging Face's own model raises: write [0] for what the "
            f"first block receives, or a number from 1 to {n_layers}"
        )
    return [layer % (n_layers + 1) for layer in numbers]


class HookedProjector(nn.Module):
    """The two-layer MLP from image features to the language model's width."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self._leaves = (hf.linear_1, hf.act, hf.linear_2)
        self.hook_pre = HookPoint("batch image_pos d_model")
        self.hook_post = HookPoint("batch image_pos d_model")

    def forward(self, x: Float[Tensor, "batch image_pos d_vision"]) -> Float[Tensor, "batch image_pos d_model"]:
        """Image features in the width of the language model."""
        first, act, second = self._leaves
        return second(self.hook_post(act(self.hook_pre(first(x)))))


@register("LlavaForConditionalGeneration")
class HookedLLaVA(StackedWeights, HookedVLM):
    """A LLaVA model: image features take the place of the prompt's image tokens.

    The language model's names have no prefix (`blocks.<l>...`), as in TransformerLens' own LLaVA bridge.
    """

    prompt_stack = main_stack = answer_stack = "language_model"
    stages = ("hook_pixel_values", "vision_encoder", "projector", "hook_image_features", "hook_embed", "language_model")
    processor_parts = ("image_processor", "tokenizer", "image_token")
    towers = {  # others have norms, gates or multipliers between the same names, and would be computed wrongly
        "text_config": ("llama", "mistral", "qwen2"),
        "vision_config": ("clip_vision_model", "siglip_vision_model"),
    }

    def _build(self) -> None:
        hf = self.hf_model.model
        config = self.hf_model.config
        self._feature_layers = feature_layers(config.vision_feature_layer, hf.vision_tower.config.num_hidden_layers)
        self.vision_encoder = vision_tower(hf.vision_tower, max(self._feature_layers))
        self.projector = HookedProjector(hf.multi_modal_projector)
        self.hook_image_features = HookPoint("batch image_pos d_model")
        self.hook_embed = HookPoint("batch pos d_model")
        language = language_stack(hf.language_model)
        self.blocks = language.blocks
        self.ln_final = HookedNorm(hf.language_model.norm)
        self.unembed = Unembed(self.hf_model.lm_head)
        self.stacks.update(vision_encoder=self.vision_encoder, language_model=language)
        if hasattr(self.processor, "image_token"):
            self._fit_processor()

    def stacked(self, name: str, module: str = "attn") -> Tensor:
        """A weight of every block of the language model; see `Stack.stacked`."""
        return self.stacks["language_model"].stacked(name, module)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding; the parameter itself."""
        return dense_weight(self.hf_model.model.language_model.embed_tokens)

    @property
    def layout(self) -> Layout:
        """Image patches stand in the prompt, where its image tokens are."""
        tokenizer, pictures = (getattr(self.processor, name, None) for name in ("tokenizer", "image_processor"))
        return Layout(tokenizer, pictures, image_token_id=self._image_token, patch_size=self.vision_encoder.patch_size)

    @property
    def _image_token(self) -> int:
        return int(self.hf_model.config.image_token_id)

    @property
    def _drops_first(self) -> bool:
        return self.hf_model.config.vision_feature_select_strategy == "default"

    # --- running ------------------------------------------------------------------------------------

    def _run(self, inputs: VLMInputs, run: Run) -> Float[Tensor, "batch pos d_vocab"]:
        features = self._image(inputs, run)
        n_images = 0 if inputs.pixel_values is None else len(inputs.pixel_values)
        inputs = self._text_of_rows(inputs, features, n_images)
        x, _ = self._through(
            "language_model",
            run,
            lambda: self._merged(inputs, features),
            lambda: StackPass(AttentionMask(inputs.real, causal=True), rotary={ROTARY: self._rotary(inputs)}),
        )
        assert x is not None
        return self._logits(self._select(x, run, inputs))

    def _hf_logits(self, inputs: VLMInputs) -> Float[Tensor, "batch pos d_vocab"]:
        logits: Tensor = self.hf_model(input_ids=inputs.input_ids, pixel_values=inputs.pixel_values).logits
        return logits

    def _image(self, inputs: VLMInputs, run: Run) -> Float[Tensor, "batch image_pos d_model"] | None:
        """What takes the place of the image tokens; None if there are none, or the run resumes after it."""
        if inputs.pixel_values is None:
            return None
        x, hidden = self._through(
            "vision_encoder",
            run,
            lambda: self.vision_encoder.embed(self.hook_pixel_values(inputs.pixel_values), run.interpolate),
            StackPass,
            collect=self._feature_layers,
        )
        if x is None:
            return None
        start = int(self._drops_first)
        chosen = [self._all_rows(hidden.get(layer), layer, x, run)[:, start:] for layer in self._feature_layers]
        return self.hook_image_features(self.projector(torch.cat(chosen, -1)))

    def _all_rows(self, hidden: Tensor | None, layer: int, x: Tensor, run: Run) -> Tensor:
        """A collected residual stream with a row for each of `x`'s: rows that joined later had the base's."""
        if run.state is None:
            assert hidden is not None
            return hidden
        base = run.state.resid_pre("vision_encoder", layer)
        n_base = len(run.state.inputs)
        rows, late = x.shape[0] // n_base, 0 if hidden is None else hidden.shape[0] // n_base
        if late == rows:
            assert hidden is not None
            return hidden
        parts = [base[:, None].expand(-1, rows - late, -1, -1)]
        if hidden is not None:
            parts.insert(0, hidden.reshape(n_base, late, *hidden.shape[1:]))
        return torch.cat(parts, 1).flatten(0, 1)

    def _merged(self, inputs: VLMInputs, features: Tensor | None) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings with the image's features in place of its tokens."""
        embeds = self.hook_embed(self.hf_model.model.language_model.embed_tokens(inputs.input_ids))
        if features is None:
            return embeds
        places = (inputs.input_ids == self._image_token)[..., None]
        return embeds.masked_scatter(places.to(embeds.device), features.to(embeds))

    def _rotary(self, inputs: VLMInputs) -> tuple[Tensor, Tensor]:
        places = inputs.position_ids
        return self._angles(places[:1] if inputs.real is None else places)

    def _angles(self, position_ids: Int[Tensor, "batch pos"]) -> tuple[Tensor, Tensor]:
        rotary = self.hf_model.model.language_model.rotary_emb
        # Of these kinds one batch has one set of frequencies, that of its longest row: each row is asked for alone.
        by_length = "dynamic" in rotary.rope_type or rotary.rope_type == "longrope"
        alike = position_ids[:, None].unbind() if by_length else (position_ids,)
        cos, sin = zip(*(rotary(self._like, rows) for rows in alike), strict=True)
        return torch.cat(cos), torch.cat(sin)

    @property
    def _like(self) -> Tensor:
        """An empty tensor of the model's device and dtype, which is all the rotary module reads."""
        return torch.empty(0, device=self.device, dtype=self.dtype)

    def _logits(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.hook_logits(self.unembed(self.ln_final(x)))

    def _embed_next(self, tokens: Tensor, position_ids: Tensor) -> tuple[Tensor, dict[str, Rotary]]:
        embeds = self.hook_embed(self.hf_model.model.language_model.embed_tokens(tokens))
        return embeds, {ROTARY: self._angles(position_ids)}

    def _answer_so_far(self, inputs: VLMInputs) -> tuple[Tensor, Tensor | None]:
        return inputs.input_ids, inputs.real

    def _stop_tokens(self) -> tuple[list[int], int]:
        hf = self.hf_model
        stop = hf.generation_config.eos_token_id
        stop = hf.config.text_config.eos_token_id if stop is None else stop
        stop = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
        pad = hf.generation_config.pad_token_id
        pad = hf.config.text_config.pad_token_id if pad is None else pad
        return stop, pad if pad is not None else (stop or [0])[0]

    def _targets(self, inputs: VLMInputs) -> Tensor:
        ids, first = inputs.input_ids, inputs.position_ids == 0  # which no token stands before, whatever padding does
        return ids.masked_fill((ids == self._image_token) | first | ~inputs.is_real, -100)

    # --- inputs -------------------------------------------------------------------------------------

    def _check(self, inputs: VLMInputs, run: Run) -> None:
        cfg = self.stacks["language_model"].cfg
        low, high = int(inputs.input_ids.min()), int(inputs.input_ids.max())
        if low < 0 or high >= cfg.d_vocab:
            raise InputsError(f"input_ids has ids from {low} to {high}; the vocabulary is 0 to {cfg.d_vocab - 1}")
        if inputs.decoder_input_ids is not None:
            raise InputsError("LLaVA has no answer decoder: what it has answered so far stands at the end of input_ids")
        if inputs.input_ids.shape[1] > cfg.n_ctx:
            raise InputsError(f"input_ids has {inputs.input_ids.shape[1]} positions and the context is {cfg.n_ctx}")
        counts = (inputs.input_ids == self._image_token).sum(1).tolist()
        if inputs.pixel_values is None:
            if any(counts):
                raise InputsError(f"the prompts hold {counts} image tokens, and the inputs lack pixel_values")
            return
        patch, (height, width) = self.vision_encoder.patch_size, inputs.pixel_values.shape[-2:]
        features = (height // patch) * (width // patch) + self.vision_encoder.has_class_token - self._drops_first
        if sum(counts) != features * len(inputs.pixel_values) or any(n % max(features, 1) for n in counts):
            raise InputsError(
                f"the prompts hold {counts} image tokens (id {self._image_token}) and each image gives {features} "
                "features: make the inputs with model.to_inputs, or model.processor, which counts as the model does"
            )

    def _prepare(self, images: list[list[Image.Image]], texts: list[Prompt] | None) -> VLMInputs:
        if texts is None:
            raise TextError("LLaVA reads a text with every image: to_inputs(images, texts)")
        self._fit_processor()
        prompts = [self._prompt(i, text, len(own)) for i, (text, own) in enumerate(zip(texts, images, strict=True))]
        pixels, rows = self._encoded(images, prompts)
        self._refuse_long(prompts, [len(row) for row in rows], self.stacks["language_model"].cfg.n_ctx)
        padded = self.processor.tokenizer.pad({"input_ids": rows}, padding=len(rows) > 1, return_tensors="pt")
        return VLMInputs(pixels, padded["input_ids"], padded["attention_mask"], layout=self.layout)

    def _fit_processor(self) -> None:
        """Let the processor count image tokens as the model makes features: what it was saved with may differ."""
        self.processor.patch_size = self.vision_encoder.patch_size
        self.processor.vision_feature_select_strategy = self.hf_model.config.vision_feature_select_strategy
        self.processor.num_additional_image_tokens = int(self.vision_encoder.has_class_token)

    def _encoded(self, images: list[list[Image.Image]], prompts: list[str]) -> tuple[Tensor | None, list[list[int]]]:
        """Pixels, and the ids of each row, which begin with one BOS: the prompt's own, or the tokenizer's."""
        begin = self.processor.tokenizer.bos_token
        pixels, rows = list[Tensor](), list[list[int]]()
        for own, prompt in zip(images, prompts, strict=True):
            has_own = bool(begin) and prompt.startswith(begin)
            made = self.processor(
                images=own or None,
                text=[prompt],
                add_special_tokens=not has_own,  # as Hugging Face's own templates are tokenized
                return_tensors="pt",
            )
            pixels += [made["pixel_values"]] if own else []
            rows.append(made["input_ids"][0].tolist())
        return torch.cat(pixels) if pixels else None, rows

    def _prompt(self, i: int, text: Prompt, n_images: int) -> str:
        """A prompt as the model is to read it: with a placeholder for each of its images."""
        token = self.processor.image_token
        if (id := self.processor.tokenizer.convert_tokens_to_ids(token)) != self._image_token:
            raise InputsError(
                f"the processor's placeholder {token!r} is token {id} and the model's image token is "
                f"{self._image_token}: pass the processor that belongs to the model"
            )
        if isinstance(text, str) and (n_written := text.count(token)):
            if n_written != n_images:
                raise TextError(f"text {i} has {n_written} {token!r} placeholders; expected {as_many(n_images)}")
            return text
        shown = (text if isinstance(text, str) else said(text)[0])[:40]
        placeholders = f"{token}\n" * n_images
        written = f"USER: {placeholders}{shown} ASSISTANT:"
        if getattr(self.processor, "chat_template", None) is None:
            if isinstance(text, str) and not n_images:
                return text
            raise TextError(
                f"text {i} has no {token!r} and the processor has no chat template to place it: write the whole "
                f"prompt, e.g. {written!r}"
            )
        messages = turns(i, text, n_images)
        try:
            prompt = str(self.processor.apply_chat_template(messages, add_generation_prompt=True))
        except Exception as error:  # a template is a program, and raises what it likes
            raise TextError(
                f"the processor's chat template cannot be applied to text {i}: {told(error)}. Mend the template "
                f"(processor.chat_template), or write the whole prompt, e.g. {written!r}"
            ) from error
        if (n_written := prompt.count(token)) != n_images:
            raise TextError(
                f"the processor's chat template makes {n_written} {token!r} placeholders of text {i}; expected "
                f"{as_many(n_images)}. Mend the template (processor.chat_template), or write the whole prompt, e.g. "
                f"{written!r}"
            )
        return prompt
