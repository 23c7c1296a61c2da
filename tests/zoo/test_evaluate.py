"""The measures of the zoo's models: right of models whose figures are known, reached by those that ship."""

import pathlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hooked_vlm.datasets import shapes
from hooked_vlm.datasets.scenes import render
from hooked_vlm.zoo import ZOO, evaluate, figure, measure
from hooked_vlm.zoo.recipes import RECIPES

TOKENIZER = RECIPES["blip-shapes"].tokenizer
N, SEED = 48, 3


class Oracle:
    """Knows every scene by its pixels and question by its words; of others it takes the first choice."""

    def __init__(self) -> None:
        self.known: dict[tuple[bytes, str], str] = {}
        for task in shapes.TASKS:
            for index in range(N):
                pair = shapes.pair(task, index, seed=SEED, n_objects=(1, 2, 3))
                clean, corrupt = render(pair.scene).tobytes(), render(pair.corrupt_scene).tobytes()
                self.known[clean, pair.prompt] = pair.answer
                self.known[corrupt, pair.prompt] = pair.wrong_answer
                if pair.corrupt_prompt:
                    self.known[clean, pair.corrupt_prompt] = pair.wrong_answer

    def to_inputs(self, images: list[Image.Image], text: list[str]) -> list[str]:
        answers = []
        for image, prompt in zip(images, text, strict=True):
            choices = re.findall(
                "red|green|blue|yellow|above|below|left|right|(?<=a )(?:circle|square|triangle|cross)", prompt
            )
            first = choices[1] if " shape a " in prompt else choices[0]
            answers.append(self.known.get((np.asarray(image).tobytes(), prompt), first))
        return answers

    def __call__(self, inputs: list[str]) -> torch.Tensor:
        logits = torch.zeros(len(inputs), 2, len(TOKENIZER))
        logits[torch.arange(len(inputs)), -1, TOKENIZER.convert_tokens_to_ids(inputs)] = 9.0
        return logits

    def generate(self, inputs: list[str], max_new_tokens: int) -> list[str]:
        return inputs


class Guesser(Oracle):
    """Takes the first choice, whatever it is shown."""

    def __init__(self) -> None:
        self.known = {}


@pytest.mark.parametrize("task", shapes.TASKS)
def test_a_model_that_sees_everything_has_full_marks_and_guesses_when_it_is_shown_nothing(task: str) -> None:
    figures = measure.measure(Oracle(), TOKENIZER, task, N, SEED)
    assert (figures.accuracy, figures.generated, figures.image_flip, figures.prompt_flip) == (1, 1, 1, 1)
    assert figures.blank == 0.5
    assert N // 3 < figures.n_prompt < N  # scenes without a rival have no corrupt prompt


@pytest.mark.parametrize("task", shapes.TASKS)
def test_a_model_that_guesses_is_right_half_the_time_and_never_turns(task: str) -> None:
    figures = measure.measure(Guesser(), TOKENIZER, task, N, SEED)
    assert figures.accuracy == figures.blank == figures.generated == 0.5
    assert figures.image_flip == figures.prompt_flip == 0


@pytest.mark.parametrize("task", shapes.TASKS)
def test_the_text_only_baseline_is_at_chance(task: str) -> None:
    assert abs(measure.text_only_accuracy(task, 1200, SEED) - 0.5) < 0.06


def test_an_accuracy_below_the_bar_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(model: Any, bar: str) -> int:
        monkeypatch.setattr(evaluate, "_load", lambda name: (model, TOKENIZER))
        arguments = [
            "evaluate",
            "--model",
            "blip-shapes",
            "--n",
            str(N),
            "--seed",
            str(SEED),
            "--min-accuracy",
            bar,
        ]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as left:
            evaluate.main()
        return int(left.value.code or 0)

    assert leave(Oracle(), "1.0") == 0
    assert leave(Guesser(), "0.4") == 0
    assert leave(Guesser(), "0.98") == 1
    assert "blip-shapes colour: accuracy 0.5000 is below 0.98" in capsys.readouterr().out


def test_the_figure_is_drawn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra of the package")
    figure.draw({"oracle": (Oracle(), TOKENIZER), "guesser": (Guesser(), TOKENIZER)}, tmp_path / "docs" / "pair.png")
    picture = np.asarray(Image.open(tmp_path / "docs" / "pair.png").convert("RGB"))
    assert picture.shape[0] > 500
    assert picture.std() > 20  # something is on it


@pytest.mark.parametrize("task", shapes.TASKS)
@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_answers_unseen_scenes_and_looks_at_them(name: str, task: str) -> None:
    model, tokenizer = evaluate._load(name)
    figures = measure.measure(model, tokenizer, task, 300, 7)
    assert figures.accuracy >= 0.98
    assert figures.generated >= 0.98  # nothing comes after the word
    assert figures.image_flip >= 0.95
    assert figures.prompt_flip >= 0.95
    assert abs(figures.blank - 0.5) < 0.12  # four standard deviations of 300
