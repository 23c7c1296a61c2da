"""Small models of every family with processors, in memory and on disk; a few milliseconds each.

Weights are random and large enough that every part of the model matters to the logits. Everything is decided
by its arguments and `seed`: the same call gives the same model. Every builder takes keyword changes to its
config, so that a test can draw configurations.

In memory: `hf, processor = blip_vqa()` or `llava(vision="siglip", text="qwen2")`.
On disk: `directory = save(path, hf, processor)`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE, PATCH_SIZE = 16, 8
WORDS = (
    "is the a circle square triangle red blue green yellow or and not to what color shape of left right which object "
    "where in this picture it one two ? . , : ' USER ASSISTANT yes no"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
CHAT_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


# --- pictures ---------------------------------------------------------------------------------------


def picture(seed: int = 0, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Image.Image:
    """An RGB image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- tokenizers -------------------------------------------------------------------------------------


def wordpiece_tokenizer() -> BertTokenizer:
    """A BERT tokenizer that knows `WORDS` whole and spells every other word in one-letter pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokens = dict.fromkeys([*special, *WORDS.lower().split(), "##ish", *pieces])
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A LLaVA tokenizer with one token a word; a word that it does not know is ``<unk>``."""
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    tokens = dict.fromkeys([*special, *WORDS.split()])
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _llava_tokenizer(tokenizer)


@cache
def _byte_pairs() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<unk>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {WORDS} reddish bluer circles"] * 4, trainer)
    return tokenizer.to_str()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A LLaVA tokenizer of byte pairs, whose tokens carry the space before them; it spells any text."""
    return _llava_tokenizer(Tokenizer.from_str(_byte_pairs()))


def _llava_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


# --- processors -------------------------------------------------------------------------------------


def blip_processor(image_size: int = IMAGE_SIZE) -> BlipProcessor:
    """Images to `image_size` squares, texts through `wordpiece_tokenizer`."""
    size = {"height": image_size, "width": image_size}
    return BlipProcessor(BlipImageProcessorPil(size=size), wordpiece_tokenizer())


def llava_processor(
    config: LlavaConfig, tokenizer: PreTrainedTokenizerFast | None = None, chat_template: str | None = CHAT_TEMPLATE
) -> LlavaProcessor:
    """The processor that fits a LLaVA config; `word_tokenizer` if none is given."""
    vision = config.vision_config
    side = {"height": vision.image_size, "width": vision.image_size}
    return LlavaProcessor(
        CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer or word_tokenizer(),
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(vision.model_type == "clip_vision_model"),
        chat_template=chat_template,
    )


# --- configs ----------------------------------------------------------------------------------------


def blip_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **changes: Any) -> BlipConfig:
    """A BLIP config of two layers of two heads, width 16; `text` and `vision` change its parts."""
    tokenizer = wordpiece_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
        "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    return BlipConfig(
        text_config=shape | ids | {"max_position_embeddings": 40} | (text or {}),
        vision_config=shape | sizes | (vision or {}),
        **{"projection_dim": 8, "image_text_hidden_size": 8} | changes,
    )


VISION_CONFIGS = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def llava_config(
    vision: str = "clip",
    text: str = "llama",
    tokenizer: PreTrainedTokenizerFast | None = None,
    vision_changes: dict[str, Any] | None = None,
    text_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> LlavaConfig:
    """A LLaVA config: vision tower of three layers, language model of two with two heads for one key-value head.

    Args:
        vision: "clip" or "siglip". text: "llama", "mistral" or "qwen2".
        tokenizer: whose ids it uses; `word_tokenizer` if None.
        vision_changes, text_changes: to the towers' configs.
        changes: to the config itself, e.g. `vision_feature_layer`.
    """
    tokenizer = tokenizer or word_tokenizer()
    vision_config = VISION_CONFIGS[vision](
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        }
        | (vision_changes or {})
    )
    text_config = TEXT_CONFIGS[text](
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | (text_changes or {})
    )
    strategy = "default" if vision == "clip" else "full"  # SigLIP has no class token to drop
    return LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **{"vision_feature_select_strategy": strategy} | changes,
    )


# --- models -----------------------------------------------------------------------------------------


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """`model` with every parameter drawn anew, so that none of them is idle; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm else 0.0, 0.1 if parameter.ndim == 1 else 0.3, generator=generator)
    return model.eval()


def blip_vqa(seed: int = 0, **config: Any) -> tuple[BlipForQuestionAnswering, BlipProcessor]:
    """Question answering; `config` goes to `blip_config`."""
    return _blip(BlipForQuestionAnswering, seed, config)


def blip_captioner(seed: int = 0, **config: Any) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Captioning; `config` goes to `blip_config`."""
    return _blip(BlipForConditionalGeneration, seed, config)


def blip_retrieval(seed: int = 0, **config: Any) -> tuple[BlipForImageTextRetrieval, BlipProcessor]:
    """Image-text retrieval; `config` goes to `blip_config`."""
    return _blip(BlipForImageTextRetrieval, seed, config)


def _blip(hf_class: Any, seed: int, changes: dict[str, Any]) -> tuple[Any, BlipProcessor]:
    config = blip_config(**changes)
    return randomised(hf_class(config), seed), blip_processor(config.vision_config.image_size)


def llava(
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    **config: Any,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA; `config` goes to `llava_config`."""
    made = llava_config(tokenizer=tokenizer, **config)
    model = randomised(LlavaForConditionalGeneration(made), seed)
    return model, llava_processor(made, tokenizer, chat_template)


# --- on disk ----------------------------------------------------------------------------------------


def save(directory: Path, model: Any, processor: Any = None) -> str:
    """A checkpoint as Hugging Face writes it: config, model.safetensors, processor. Returns the directory."""
    model.save_pretrained(directory)
    if processor is not None:
        processor.save_pretrained(directory)
    return str(directory)
