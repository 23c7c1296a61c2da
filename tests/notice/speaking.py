"""Random checkpoints that say one word to everything, and folders of data in which that word is often right.

A random model answers nothing rightly, and a run of it patches nothing. Raising one word's logit leaves everything
else random: the model says that word, the word is the right answer of half the questions, and of those the whole of a
run is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, BlipForQuestionAnswering, BlipProcessor, LlavaForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from hooked_vlm.datasets import pairs
from tests.datasets.folders import picture, sorted_pictures, svo_folder, svo_line, table
from tests.models import checkpoints

WORDS = (
    "girl boy man woman dog cat horse bike cup hat cake riding feeding eating holding sitting running ripe moldy "
    "sliced peeled apple banana this person feeling happy sad angry afraid surprised calm big small old new"
)

BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}

TASKS = {
    "svo_subject": "girl",
    "svo_verb": "riding",
    "svo_object": "horse",
    "mit_states": "ripe",
    "facial_expressions": "happy",
    "folder": "red",
    "parquet": "red",
}
"""Of each task, a word that is right in some of its rows."""


def blip(word: str | None, seed: int = 0, **config: Any) -> tuple[BlipForQuestionAnswering, BlipProcessor]:
    """A random BLIP that says a word; with None, whatever it says. `config` goes to `checkpoints.blip_config`."""
    known = checkpoints.wordpiece_tokenizer()
    tokenizer = BertTokenizer(vocab=_extended(known.get_vocab()))
    text = {"vocab_size": len(tokenizer)} | config.pop("text", {})
    made = checkpoints.blip_config(text=text, **config)
    model = checkpoints.randomised(BlipForQuestionAnswering(made), seed)
    if word is not None:
        with torch.no_grad():
            model.text_decoder.cls.predictions.bias[tokenizer.convert_tokens_to_ids(word)] += 50.0
    side = made.vision_config.image_size
    return model, BlipProcessor(BlipImageProcessorPil(size={"height": side, "width": side}), tokenizer)


def llava(word: str | None, seed: int = 0) -> tuple[LlavaForConditionalGeneration, Any]:
    """A random LLaVA that says a word, whose row of the unembedding points where answers point on average."""
    known = checkpoints.word_tokenizer()
    whole = Tokenizer(models.WordLevel(_extended(known.get_vocab()), unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = checkpoints._llava_tokenizer(whole)
    config = checkpoints.llava_config(tokenizer=tokenizer)
    model = checkpoints.randomised(LlavaForConditionalGeneration(config), seed)
    processor = checkpoints.llava_processor(config, tokenizer)
    if word is not None:
        prompt = "USER: <image>\nis this apple ripe or moldy ? ASSISTANT:"
        inputs = processor(images=[checkpoints.picture(i) for i in range(8)], text=[prompt] * 8, return_tensors="pt")
        with torch.no_grad():
            last = model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]
            average = last.mean(0)
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(word)] = 20 * average / average.norm()
    return model, processor


def _extended(vocabulary: dict[str, int]) -> dict[str, int]:
    """A vocabulary with `WORDS` behind it; what was there keeps its number."""
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    return {token: number for number, token in enumerate(dict.fromkeys([*in_order, *WORDS.split()]))}


def data(task: str, path: Path, n: int = 6) -> list[str]:
    """A task's data in its original format, as words of a command line: --task, and --data where it takes a folder."""
    if task.startswith("svo"):
        return ["--task", task, "--data", str(svo_folder(path, list(_lines(n))))]
    if task == "mit_states":
        names = ("ripe apple", "moldy apple", "sliced apple", "ripe banana", "peeled banana")
        sorted_pictures(path / "images", dict.fromkeys(names, n))
    elif task == "facial_expressions":
        sorted_pictures(path / "train", dict.fromkeys(("happy", "sad", "angry"), n), mode="L", ending=".jpg")
    elif task == "folder":
        for line in (lines := list(_pairs(n))):
            for name in ("image", "corrupt_image"):
                picture(path / line[name], int(line[name].partition(".")[0]))
        table(path / "pairs.csv", lines, list(lines[0]))
    else:
        rows = [
            line | {"id": str(k), "task": "mine", "group": "any", "corrupt_prompt": "is this square or blue ?"}
            | {"image": checkpoints.picture(2 * k), "corrupt_image": checkpoints.picture(2 * k + 1)}
            for k, line in enumerate(_pairs(n))
        ]  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)
        pairs.write_parquet(pairs.table(rows, mask=False), path / "mine.parquet")
        return ["--task", str(path / "mine.parquet")]
    return ["--task", task, "--data", str(path)]


def _lines(n: int) -> Iterable[dict[str, str]]:
    """Lines of svo_probes.csv in which one part differs, each part in `n` of them."""
    positive = "girl,ride,horse"
    for k, negative in enumerate(("boy,ride,horse", "girl,feed,horse", "girl,ride,bike")):
        for i in range(n):
            yield svo_line(positive, negative, 100 * k + 2 * i + 1, 100 * k + 2 * i + 2)
    yield svo_line("dog,eat,cake", "man,eat,cake", 901, 902)
    yield svo_line("woman,hold,cup", "woman,hold,hat", 903, 904)
    yield svo_line("cat,sit,bike", "cat,run,bike", 905, 906)


def _pairs(n: int) -> Iterable[dict[str, str]]:
    line = {"image": "0.png", "corrupt_image": "1.png", "prompt": "is this green or yellow ?"}
    yield line | {"answer": "green", "wrong_answer": "yellow"}
    for k in range(n):
        line = {"image": f"{2 * k}.png", "corrupt_image": f"{2 * k + 1}.png", "prompt": "is this red or blue ?"}
        yield line | {"answer": "red", "wrong_answer": "blue"}
