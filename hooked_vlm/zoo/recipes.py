"""The two model organisms before they are trained: architecture, first weights, processor, and loss.

Real Hugging Face classes, small: a `BlipForQuestionAnswering` and a `LlavaForConditionalGeneration`, both for
pictures of 64 pixels. Each recipe knows how to turn questions and answers into a loss and into answer logits,
through Hugging Face's own modules. Costs about 0.3 to 0.5 s a training step of 96 on one core. Knows nothing
of `hooked_vlm.models`.
"""

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hooked_vlm.datasets.scenes import COLOURS, GRID, SHAPES

PATCH = 8
WORDS = ("is", "the", "a", "or", "of", "?", "shape", *COLOURS, *SHAPES, "above", "below", "left", "right")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_MEAN, _STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # OpenAI CLIP's, as BLIP has
_IGNORE = -100


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a recipe trains."""

    steps: int
    learning_rate: float
    batch: int = 96
    warmup: int = 100
    weight_decay: float = 0.01
    turns: tuple[str, ...] = ("shape", "colour", "place", "shape", "place", "shape", "colour", "place")
    easy_steps: int = 400  # at first, most scenes hold no rival: a model learns to see, then to bind
    easy_first: int = 80  # percent that do not, before
    easy_later: int = 20  # and after
    corrupt_from: int = 1500  # from here on, some pictures are corrupt ones, with what is right of them
    corrupt_share: int = 20  # percent
    bfloat16: bool = True  # matrix products; weights, sums and the optimizer stay float32


class Recipe(abc.ABC):
    """One organism: how it is made, fed and asked."""

    name: str
    schedule: Schedule

    @abc.abstractmethod
    def build(self, seed: int) -> PreTrainedModel:
        """The model with its first weights, which the seed names."""

    @abc.abstractmethod
    def processor(self) -> Any:
        """The processor that is saved with the model."""

    @abc.abstractmethod
    def loss(
        self,
        model: PreTrainedModel,
        pixels: Float[Tensor, "batch 3 height width"],
        prompts: Sequence[str],
        answers: Sequence[str],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the answer, and of the end after it."""

    @abc.abstractmethod
    def answer_logits(
        self, model: PreTrainedModel, pixels: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Scores of the first answer token."""

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor().tokenizer

    def word_ids(self, words: Sequence[str]) -> Int[Tensor, " words"]:
        """The token of each word: one a word, by construction."""
        return torch.tensor(self.tokenizer.convert_tokens_to_ids(list(words)))


def to_pixels(
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures as the processors of both models would hand them over, only sooner.

    Args:
        pictures: RGB, 0 to 255, each [height width 3].

    Returns:
        Normalised by CLIP's mean and standard deviation, [batch 3 height width].
    """
    scale = np.float32(1 / 255)
    mean, std = np.array(_MEAN, dtype=np.float32), np.array(_STD, dtype=np.float32)
    return torch.from_numpy((np.stack(pictures) * scale - mean) / std).permute(0, 3, 1, 2).contiguous()


def draw_weights(model: nn.Module, std: float, position_std: float, seed: int) -> None:
    """Draw every weight: what Hugging Face draws (0.02, or 1e-10) is too small for a narrow model to learn.

    Args:
        model: Changed in place.
        std: Standard deviation of weights and embeddings, near 1 / sqrt(d_model).
        position_std: Standard deviation of the vision tower's positions and class token. They start as large
            as the patch embeddings, or place is never learned.
        seed: Of the draw.
    """
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ("position_embedding" in name and "vision" in name) or "class_embedding" in name:
                weight.normal_(0.0, position_std, generator=dice)
            elif weight.ndim > 1:
                weight.normal_(0.0, std, generator=dice)
            else:
                norm = name.endswith("weight")  # one-dimensional weights belong to norms, the rest are biases
                weight.fill_(1.0 if norm else 0.0)


class BlipShapes(Recipe):
    """BLIP-VQA, 1.6 million weights: vision 3 layers, text encoder and decoder 4 each, 96 wide, 4 heads."""

    name = "blip-shapes"
    schedule = Schedule(steps=4800, learning_rate=7e-4)

    def build(self, seed: int) -> BlipForQuestionAnswering:
        """The model with its first weights, which the seed names."""
        ids = {name: self.tokenizer.convert_tokens_to_ids(token) for name, token in _BLIP_SPECIAL.items()}
        text = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": 96,
            "encoder_hidden_size": 96,
            "intermediate_size": 384,
            "projection_dim": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "eos_token_id": ids["sep_token_id"],
            **ids,
        }
        vision = {
            "hidden_size": 96,
            "intermediate_size": 384,
            "projection_dim": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": GRID,
            "patch_size": PATCH,
        }
        config = BlipConfig(text_config=text, vision_config=vision, projection_dim=96, image_text_hidden_size=96)
        model = BlipForQuestionAnswering(config)
        draw_weights(model, std=0.1, position_std=0.7, seed=seed)
        return model

    def processor(self) -> BlipProcessor:
        """The processor that is saved with the model."""
        tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS)
        tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, bos_token="[DEC]")
        tokenizer.model_max_length = 32
        size = {"height": GRID, "width": GRID}
        pictures = BlipImageProcessorPil(size=size, image_mean=_MEAN, image_std=_STD)
        return BlipProcessor(pictures, tokenizer)

    def loss(
        self,
        model: PreTrainedModel,
        pixels: Float[Tensor, "batch 3 height width"],
        prompts: Sequence[str],
        answers: Sequence[str],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the answer, and of the end after it."""
        target = self.word_ids(answers)
        start = torch.full_like(target, self.tokenizer.bos_token_id)
        logits = self._decode(model, pixels, prompts, torch.stack([start, target], dim=1))
        end = torch.full_like(target, self.tokenizer.sep_token_id)
        return functional.cross_entropy(logits[:, 0], target) + 0.1 * functional.cross_entropy(logits[:, 1], end)

    def answer_logits(
        self, model: PreTrainedModel, pixels: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Scores of the first answer token."""
        start = torch.full((len(prompts), 1), self.tokenizer.bos_token_id)
        return self._decode(model, pixels, prompts, start)[:, -1]

    def _decode(
        self,
        model: PreTrainedModel,
        pixels: Float[Tensor, "batch 3 height width"],
        prompts: Sequence[str],
        decoder_input_ids: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """The chain that `BlipForQuestionAnswering.forward` runs, which returns no logits."""
        question = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        image = model.vision_model(pixel_values=pixels).last_hidden_state
        encoded = model.text_encoder(
            input_ids=question.input_ids, attention_mask=question.attention_mask, encoder_hidden_states=image
        ).last_hidden_state
        logits: Tensor = model.text_decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=question.attention_mask,
        ).logits
        return logits


_BLIP_SPECIAL = {"bos_token_id": "[DEC]", "pad_token_id": "[PAD]", "sep_token_id": "[SEP]"}


class LlavaShapes(Recipe):
    """LLaVA, 1.3 million weights: CLIP tower 4 layers of 96 (the third is read), Llama 4 of 128, 4 heads."""

    name = "llava-shapes"
    schedule = Schedule(
        steps=6000,
        learning_rate=1e-3,
        easy_steps=500,
        corrupt_from=2000,
    )

    def build(self, seed: int) -> LlavaForConditionalGeneration:
        """The model with its first weights, which the seed names."""
        vision = CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=384,
            projection_dim=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=GRID,
            patch_size=PATCH,
        )
        text = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=self.tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=(GRID // PATCH) ** 2,
            tie_word_embeddings=False,
        )
        model = LlavaForConditionalGeneration(config)
        model.set_attn_implementation("eager")  # backward in bfloat16, the fused kernel takes more than twice the time
        draw_weights(model, std=0.09, position_std=1.0, seed=seed)
        with torch.no_grad():  # nothing normalises the embeddings: drawn small, they drown in the first layer's sum
            model.get_input_embeddings().weight.mul_(8.0)
        return model

    def processor(self) -> LlavaProcessor:
        """The processor that is saved with the model."""
        tokens = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER", "ASSISTANT", ":", "\n", *WORDS)
        inner = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
        spaces, marks = (
            pre_tokenizers.Split(Regex(" +"), "removed"),
            pre_tokenizers.Split(Regex(r"[\n:?]"), "isolated"),
        )
        inner.pre_tokenizer = pre_tokenizers.Sequence([spaces, marks])
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokens.index("<s>"))]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="<pad>",
            extra_special_tokens={"image_token": "<image>"},
            padding_side="left",
            model_max_length=128,
        )
        size = {"shortest_edge": GRID}
        crop = {"height": GRID, "width": GRID}
        return LlavaProcessor(
            CLIPImageProcessorPil(size=size, crop_size=crop, image_mean=_MEAN, image_std=_STD),
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )

    def loss(
        self,
        model: PreTrainedModel,
        pixels: Float[Tensor, "batch 3 height width"],
        prompts: Sequence[str],
        answers: Sequence[str],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the answer, and of the end after it."""
        ids, last = self._pack(prompts, answers)
        logits = model(input_ids=ids, pixel_values=pixels).logits
        row = torch.arange(len(prompts))
        end = torch.full_like(last, self.tokenizer.eos_token_id)
        right = functional.cross_entropy(logits[row, last], self.word_ids(answers))
        return right + 0.1 * functional.cross_entropy(logits[row, last + 1], end)

    def answer_logits(
        self, model: PreTrainedModel, pixels: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Scores of the first answer token."""
        ids, last = self._pack(prompts, None)
        logits: Tensor = model(input_ids=ids, pixel_values=pixels).logits
        return logits[torch.arange(len(prompts)), last]

    def _pack(
        self, prompts: Sequence[str], answers: Sequence[str] | None
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
        """Tokens padded on the right, where a causal model does not look, and each prompt's last position."""
        rows = [list(self._prompt_ids(prompt)) for prompt in prompts]
        last = torch.tensor([len(row) - 1 for row in rows])
        if answers is not None:
            for row, answer in zip(rows, self.word_ids(answers).tolist(), strict=True):
                row.append(answer)
        width = max(len(row) for row in rows)
        return torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]), last

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - two recipes live as long as the program
    def _prompt_ids(self, prompt: str) -> tuple[int, ...]:
        image = "<image>" * (GRID // PATCH) ** 2
        return tuple(self.tokenizer(f"USER: {image}\n{prompt} ASSISTANT:").input_ids)


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (BlipShapes(), LlavaShapes())}
