"""A prompt is tried before a run begins, and what a model's answers ask of the prompt is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from hooked_vlm import HookedVLM
from hooked_vlm.analysis import answers
from hooked_vlm.analysis.answers import SENTENCE
from hooked_vlm.datasets import pairs
from hooked_vlm.errors import TextError
from hooked_vlm.notice import pipeline
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.report.text.cautions import about_sentences
from tests.models.checkpoints import blip_vqa, llava, save
from tests.notice.models import answerable, questions, small

Command = Callable[..., tuple[int, str, str]]


def config(task: str | Path, **options: Any) -> NoticeConfig:
    return NoticeConfig(
        model="m", tasks=(str(task),), kinds=("attn-heads",), examples=3, bootstrap=20, random_draws=2, **options
    )


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    pairs.write_parquet(pairs.table(rows), path)
    return path


def test_a_model_that_cannot_be_asked_is_refused_before_the_rows_and_the_template_it_asks_for_helps(
    tmp_path: Path, command: Command
) -> None:
    model = save(tmp_path / "model", *llava(chat_template=None))
    task, out = answerable("llava", tmp_path / "some.parquet"), tmp_path / "run"
    words = (model, "--task", task, "--examples", "2", "--sites", "attn-heads", "--out", str(out))
    logging.set_verbosity_error()
    code, _, told = command(*words)
    assert code == 1 and "cannot be asked anything: text 0 has no '<image>' and the processor has no chat" in told
    assert "--template (prompt_template) writes the whole prompt" in told and "Traceback" not in told
    assert not (out / "run.json").exists()
    code, _, _ = command(*words, "--template", "USER: <image>\n{prompt} ASSISTANT:", "--bootstrap", "20")
    assert code == 0 and (out / "report.html").is_file()


def test_a_task_of_which_no_row_can_be_read_is_refused_with_the_first_error(tmp_path: Path) -> None:
    task, out, model = tmp_path / "bad.parquet", tmp_path / "run", small("blip")
    rows = [row | {"prompt": "is " * 90 + row["prompt"]} for row in questions("blip", 4)]
    message = r"no row of .*bad\.parquet can be given to the model; of row 0 \('row-.*shorten it"
    with pytest.raises(TextError, match=message):
        pipeline.run(config(written(task, rows)), out, progress=False, model=model)
    assert not (out / "run.json").exists()
    rows[-1] = questions("blip", 4)[-1]  # one that can be read is enough
    assert pipeline.run(config(written(task, rows)), out, progress=False, model=model) == out


TEMPLATES = {
    None: '--template "{prompt} Answer with one word."',
    "Q: {prompt}": '--template "Q: {prompt} Answer with one word."',
    'say "{prompt}"': "'Answer with one word.' behind {prompt}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_answers_in_sentences_are_told_with_the_template_that_asks_for_a_word(template: str | None) -> None:
    counts = [
        {"task": "some", "answered": 20, "reasons": {SENTENCE: 15}},
        {"task": "none", "answered": 20, "reasons": {}},
        {"task": "few", "answered": 20, "reasons": {SENTENCE: 1}},
    ]
    told = " ".join(about_sentences(counts, {"prompt_template": template}))
    assert told.startswith("some: 15 of 20 answers are sentences") and TEMPLATES[template] in told
    assert "none" not in told and "few" not in told
    asked = {"prompt_template": "{prompt} Answer with one word."}
    assert "--template" not in " ".join(about_sentences(counts, asked))
    assert not about_sentences(counts[1:], {"prompt_template": template})


def test_a_run_whose_model_answers_in_sentences_says_so(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = answerable("blip", tmp_path / "some.parquet")
    saved = save(tmp_path / "checkpoint", *blip_vqa())
    words_of = {row["prompt"]: row["answer"] for row in questions("blip", 8)}
    generated = answers.generated_tokens

    def sentences(model: HookedVLM, inputs: Any) -> Any:
        tokens, _ = generated(model, inputs)
        prompts = model.to_string(inputs.input_ids)
        return tokens, [f"It is {next(w for p, w in words_of.items() if p[:-2] in text)}." for text in prompts]

    monkeypatch.setattr(answers, "generated_tokens", sentences)
    out = tmp_path / "run"
    code, told, _ = command(saved, "--task", task, "--sites", "attn-heads", "--examples", "2", "--out", str(out))
    assert code == 0 and '--template "{prompt} Answer with one word." asks for a word' in told
    report = (out / "report.html").read_text()
    assert "answers are sentences" in report and "Answer with one word." in report
