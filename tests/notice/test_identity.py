"""A run goes on with the model, the rows and the packages that it began with, or refuses, naming what differs.

And every option and every row is looked at before the first example is computed.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hooked_vlm import HookedVLM
from hooked_vlm.datasets import pairs
from hooked_vlm.datasets.rows import OTHER_SIZE
from hooked_vlm.errors import HookedVLMError, InputsError, MissingExtraError, ResumeError, TaskSchemaError
from hooked_vlm.notice import effects, fingerprint, pipeline, report, rows, summary
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.report import text
from hooked_vlm.notice.report.loaded import Loaded
from tests.models import checkpoints
from tests.models.unchecked import unchecked
from tests.notice.models import answerable, questions, small
from tests.notice.test_pipeline import examples_of

QUICK: dict[str, Any] = {"examples": 2, "bootstrap": 10, "random_draws": 0, "kinds": ("mlp",), "batch": 2}


def config_of(task: str, **changes: Any) -> NoticeConfig:
    return NoticeConfig(model="blip", tasks=(task,), **QUICK | changes)


def written(path: Path, rows: list[dict]) -> str:
    pairs.write_parquet(pairs.table(rows), path)
    return str(path)


def nothing_computed(patched: pytest.MonkeyPatch) -> None:
    """Fail where a model would be asked anything of an example."""
    for module, name in ((pipeline, "prepared"), (effects, "sweep_all")):
        patched.setattr(module, name, lambda *args, **options: pytest.fail("an example is computed"))


def cautions_of(run: Path) -> list[str]:
    summary.summarise(run)
    return text.cautions_of(Loaded.read(run))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A task's file, and a run on it; whoever spoils the file mends it."""
    path = tmp_path_factory.mktemp("begun")
    task = written(path / "some.parquet", questions("blip", 8))
    return task, examples_of(config_of(task), small("blip"), path / "run")


# --- the model --------------------------------------------------------------------------------------------


def other_weights(model: HookedVLM) -> None:
    """One number of one weight."""
    with torch.no_grad():
        model.hf_model.text_encoder.encoder.layer[1].output.dense.weight[3, 5] += 1e-3


def other_config(model: HookedVLM) -> None:
    model.hf_model.config.text_config.layer_norm_eps *= 2


def other_tokenizer(model: HookedVLM) -> None:
    model.processor.tokenizer.add_tokens(["zebra"])


def other_pictures(model: HookedVLM) -> None:
    model.processor.image_processor.image_mean = [0.1, 0.2, 0.3]


def other_template(model: HookedVLM) -> None:
    model.processor.chat_template = "{{ messages }}"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "weights"),
        (other_config, "config"),
        (other_tokenizer, "tokenizer"),
        (other_pictures, "image processor"),
        (other_template, "chat template"),
    ],
)
def test_another_model_is_refused_by_what_differs(
    change: Callable[[HookedVLM], None], named: str, begun: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (task, run) = HookedVLM.from_hf(*checkpoints.blip_vqa()), begun
    change(model)
    nothing_computed(monkeypatch)
    with pytest.raises(ResumeError, match=rf"a model with other {named}: take another directory, or the model that"):
        examples_of(config_of(task), model, run)
    assert fingerprint.differences(fingerprint.of_model(small("blip")), fingerprint.of_model(model)) == [named]


def test_a_model_that_was_used_is_the_same_model() -> None:
    model = HookedVLM.from_hf(*checkpoints.blip_vqa())
    before = fingerprint.of_model(model)
    assert before == fingerprint.of_model(small("blip"))  # made alike, apart from each other
    pictures = [checkpoints.picture(i) for i in range(2)]
    model.generate(model.to_inputs(pictures, ["is it red ?", "is it the red or blue one ?"]), max_new_tokens=2)
    assert fingerprint.of_model(model) == before == fingerprint.of_model(model)


def test_a_checkpoint_on_disk_has_the_fingerprint_of_the_model_it_holds(tmp_path: Path) -> None:
    hf, processor = checkpoints.blip_vqa()
    directory = checkpoints.save(tmp_path / "checkpoint", hf, processor)
    loaded = HookedVLM.from_pretrained(directory)
    assert fingerprint.of_weights(loaded.hf_model) == fingerprint.of_weights(hf)
    again = fingerprint.of_model(HookedVLM.from_pretrained(directory))
    assert again == fingerprint.of_model(loaded)


# --- packages ---------------------------------------------------------------------------------------------


def test_other_packages_are_refused_by_name_and_accepted_on_demand(
    begun: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, version, task = small("blip"), importlib.metadata.version, begun[0]
    shutil.copytree(begun[1], tmp_path / "run")
    there = version("transformers")
    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "transformers" else version(name))
        with pytest.raises(ResumeError, match=rf"transformers {there} -> 9\.9\).*--accept-versions"):
            examples_of(config_of(task), model, tmp_path / "run")
        examples_of(config_of(task), model, tmp_path / "run", accept_versions=True)
        examples_of(config_of(task), model, tmp_path / "run")  # once is enough
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["packages"]["transformers"] == there
        assert [each["packages"]["transformers"] for each in record["accepted"]] == ["9.9"]
        told = f"transformers 9.9 in place of {there}"
        (caution,) = (each for each in cautions_of(tmp_path / "run") if told in each)
        assert caution.startswith("Accepted on demand: from 20")
        assert report.write(tmp_path / "run").read_text().count(told) == 2  # among the versions, and the cautions
    examples_of(config_of(task), model, tmp_path / "run")  # and those it began with are right for ever
    assert not any("on demand" in each for each in cautions_of(begun[1]))


# --- rows ---------------------------------------------------------------------------------------------------


def gone(rows: list[dict]) -> list[dict]:
    return rows[:1] + rows[2:]


def changed_text(rows: list[dict]) -> list[dict]:
    return [*rows[:1], rows[1] | {"prompt": f"tell me , {rows[1]['prompt']}"}, *rows[2:]]


def changed_picture(rows: list[dict]) -> list[dict]:
    picture = rows[1]["image"].copy()
    picture.putpixel((3, 3), (1, 2, 3))
    return [*rows[:1], rows[1] | {"image": picture}, *rows[2:]]


def new(rows: list[dict]) -> list[dict]:
    return [rows[0], rows[1] | {"id": "another"}, *rows[2:]]


def turned(rows: list[dict]) -> list[dict]:
    return [rows[1], rows[0], *rows[2:]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (gone, "'{}' is gone"),
        (changed_text, "'{}' is changed"),
        (changed_picture, "'{}' is changed"),
        (new, "'{}' is gone; 'another' is new"),
        (turned, "they stand in another order"),
    ],
)
def test_other_rows_are_refused_by_name(
    change: Callable[[list[dict]], list[dict]], named: str, begun: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, (task, run) = questions("blip", 8), begun
    told = named.format(rows[1]["id"])
    nothing_computed(monkeypatch)
    try:
        written(Path(task), change(rows))
        with pytest.raises(ResumeError, match=rf"on other rows of .*some\.parquet \({told}\): take another directory"):
            examples_of(config_of(task), small("blip"), run)
    finally:
        written(Path(task), rows)
    examples_of(config_of(task), small("blip"), run)  # the way out


def test_a_picture_deleted_from_a_folder_shifts_no_example(tmp_path: Path) -> None:
    """The rows behind it have other numbers then: the same command says so and does not mix them."""
    folder = tmp_path / "data"
    folder.mkdir()
    names = ("id", "image", "corrupt_image", "prompt", "answer", "wrong_answer")
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        for i, row in enumerate(questions("blip", 8)):
            for column in ("image", "corrupt_image"):
                row[column].save(folder / f"{column}-{i}.png")
            pictures = {column: f"{column}-{i}.png" for column in ("image", "corrupt_image")}
            table.writerow({name: row[name] for name in names} | pictures)
    config = NoticeConfig(model="blip", tasks=("folder",), corrupt=("image",), data=str(folder), **QUICK)
    examples_of(config, small("blip"), tmp_path / "run")
    (folder / "image-3.png").rename(tmp_path / "aside.png")
    with pytest.raises(ResumeError, match=r"other rows of folder \('row-\d+' is gone\)"):
        examples_of(config, small("blip"), tmp_path / "run")
    (tmp_path / "aside.png").rename(folder / "image-3.png")
    examples_of(config, small("blip"), tmp_path / "run")


@pytest.mark.parametrize("fits", [True, False])
def test_rows_that_change_while_the_run_reads_them_are_refused_or_not_read_any_more(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_there, path = questions("blip", 8), tmp_path / "some.parquet"
    task, verify = written(path, rows_there), pipeline.RunDirectory.verify

    def meanwhile(*args: Any) -> None:
        written(path, changed_picture(rows_there))
        verify(*args)

    monkeypatch.setattr(pipeline.RunDirectory, "verify", meanwhile)
    name = rows_there[1]["id"]
    if fits:
        place = pipeline.RunDirectory(examples_of(config_of(task), small("blip"), tmp_path / "run")).opened()
        assert place.example(task, 1)["fingerprint"] == fingerprint.of_row(rows_there[1])
        return
    monkeypatch.setattr(rows, "KEPT", 0)
    with pytest.raises(ResumeError, match=rf"row 1 of .* was '{name}' when the run began, and .*holds something else"):
        examples_of(config_of(task), small("blip"), tmp_path / "run")


def test_the_rows_of_a_run_are_those_that_its_files_name(begun: tuple[str, Path]) -> None:
    """By number, id and fingerprint."""
    task, run = begun
    place = pipeline.RunDirectory(run).opened()
    for number in place.numbers("examples", task):
        found = place.example(task, number)
        read = pairs.read_parquet(task)[number]
        assert (found["number"], found["example"]) == (number, read["id"])
        assert found["fingerprint"] == fingerprint.of_row(read)


# --- before the first example -----------------------------------------------------------------------------


SMALL_MASK = Image.fromarray(np.full((5, 5), 255, np.uint8))


@pytest.mark.parametrize("at", [0, -1])
def test_every_row_is_checked_before_the_first_example(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [dict(row) for row in questions("blip", 8)]
    found[2]["id"] = found[at]["id"] = "row-0"
    monkeypatch.setattr(pairs, "check", lambda task: task)  # whoever wrote the file
    task = written(tmp_path / "some.parquet", found)
    nothing_computed(monkeypatch)
    with pytest.raises(TaskSchemaError, match="called 'row-0'"):
        examples_of(config_of(task), small("blip"), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "row 7 has None as its id: expected a text"),
        ({"prompt": 3}, r"row 7 \('row-\d+'\) has 3 as its prompt"),
        ({"answer": " "}, "has ' ' as its answer"),
        ({"group": 2.5}, "has 2.5 as its group"),
        ({"image": None}, "has a NoneType as its image: expected a picture"),
        ({"corrupt_image": "a.png"}, "has a str as its corrupt_image"),
        ({"mask": SMALL_MASK}, "a mask has its picture's size"),
    ],
)
def test_a_row_that_no_run_can_use_is_named(change: dict, message: str) -> None:
    row = questions("blip", 8)[0]
    rows.check(row, "row 7")
    rows.check(row | {"corrupt_prompt": None, "group": None, "mask": None, "corrupt_image": None}, "row 7")
    with pytest.raises(TaskSchemaError, match=message):
        rows.check(row | change, "row 7")


@pytest.mark.parametrize("options", [{"seed": -1}, {"noise_scale": float("inf")}, {"batch": 0}, {"bootstrap": 0}])
def test_every_option_is_checked_before_anything_is_made(options: dict, tmp_path: Path) -> None:
    with unchecked(), pytest.raises(InputsError, match=f"{next(iter(options))} is"):
        examples_of(config_of("colour", **options), small("blip"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_named_before_the_first_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    nothing_computed(monkeypatch)
    task = answerable("blip", tmp_path / "some.parquet")
    with pytest.raises(MissingExtraError, match="inpainting needs OpenCV"):
        examples_of(config_of(task, region="inpaint", corrupt=("image",)), small("blip"), tmp_path / "run")


def test_what_is_refused_is_refused_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not computed anew each time: the refusal is the first thing that a second try comes to as well."""
    monkeypatch.setattr(pairs, "check", lambda task: task)
    task = written(tmp_path / "some.parquet", [row | {"id": "row-0"} for row in questions("blip", 8)])
    for _ in range(2):
        with pytest.raises(HookedVLMError, match="called 'row-0'"):
            pipeline.run(config_of(task), tmp_path / "run", progress=False, model=small("blip"))


def test_a_mask_of_another_size_is_left_out_and_its_row_is_named(tmp_path: Path) -> None:
    found = [dict(row) for row in questions("blip", 8)]
    found[1]["mask"] = SMALL_MASK
    task = written(tmp_path / "some.parquet", found)
    run = pipeline.run(
        config_of(task, kinds=("cross_attn-heads",)), tmp_path / "run", progress=False, model=small("blip")
    )
    (noted,) = json.loads((run / "summary.json").read_text())["noted"]
    assert (noted["reason"], noted["n"], noted["names"]) == (OTHER_SIZE["mask"], 1, [found[1]["id"]])


def test_a_configuration_of_a_directory_is_refused_before_a_row_is_read(
    begun: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "rows_of", lambda *args: pytest.fail("a row is read"))
    with pytest.raises(ResumeError, match="examples was 2 and is 3"):
        examples_of(dataclasses.replace(config_of(begun[0]), examples=3), small("blip"), begun[1])
