"""A run as published: what it reads, by which threshold it selects, and that its report says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_vlm import notice
from hooked_vlm.datasets.sources import source
from hooked_vlm.errors import DataError, InputsError, ResumeError
from hooked_vlm.notice.config import NoticeConfig
from hooked_vlm.notice.report.compare import compare
from hooked_vlm.notice.roles import as_published, roles
from hooked_vlm.notice.rows import TaskRows
from tests.notice.made import run_directory
from tests.notice.models import answerable, blip_shapes, pictures, small, untrained_llava
from tests.notice.report.parsed import Page

FEW: dict[str, Any] = {"kinds": ("cross_attn-heads",), "positions": "answer", "bootstrap": 20, "random_draws": 2}
CONFIG = NoticeConfig(model="zoo:blip-shapes", tasks=("colour", "shape"), examples=6, as_published=True, **FEW)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return notice.run(CONFIG, tmp_path_factory.mktemp("runs") / "published", progress=False, model=blip_shapes())


def effects(run: Path) -> pd.DataFrame:
    rows = pd.concat([pd.read_parquet(file) for file in (run / "effects").glob("*.parquet")])
    return rows[(rows["head"] >= 0) & (rows["role"] == "answer")]


def test_its_heads_are_those_that_the_parquet_files_give_by_hand(run: Path) -> None:
    found = json.loads((run / "summary.json").read_text())
    heads, rows = pd.DataFrame(found["heads"]), effects(run)
    everywhere: dict[str, list[set[tuple[int, int]]]] = {}
    for (corrupt, task), mine in rows.groupby(["corrupt", "task"], observed=True):
        assert (mine.groupby(["example", "layer", "head"], observed=True).size() == 1).all()  # one token alone
        wide = mine.pivot(index="example", columns=["layer", "head"], values="p_patched").to_numpy()
        sizes = np.abs(wide).sum(0) / len(wide)
        mean = sizes.sum() / len(sizes)
        threshold = mean + 2 * np.sqrt(((sizes - mean) ** 2).sum() / len(sizes))
        told = heads[(heads["corrupt"] == corrupt) & (heads["task"] == task)].sort_values(["layer", "head"])
        assert told["p_patched"].to_numpy() == pytest.approx(sizes, abs=1e-6)
        assert told["threshold"].to_numpy() == pytest.approx(threshold, abs=1e-6)
        assert (told["paper"].to_numpy() == (sizes >= threshold)).all()
        chosen = told[told["paper"]][["layer", "head"]].itertuples(index=False, name=None)
        everywhere.setdefault(str(corrupt), []).append(set(chosen))
    universal = {corrupt: set.intersection(*each) for corrupt, each in everywhere.items()}
    assert len(everywhere) == 2 and all(len(each) == 2 for each in everywhere.values())
    told = [(row["layer"], row["head"]) for row in found["universal"] if row["rule"] == "paper"]
    assert set(told) == universal["image"] | universal["text"]


def test_p_patched_is_a_probability_of_the_right_answer_and_no_effect(run: Path) -> None:
    model, rows = blip_shapes(), effects(run)
    rows = rows[(rows["corrupt"] == "image") & (rows["task"] == "colour")]
    at_rest = rows["p_patched"] - rows["restoration"]
    for row in source("colour", n=24, tokenizer=model.processor.tokenizer, as_published=True).rows:
        mine = rows["example"] == row["id"]
        if not mine.any():
            continue
        p = model(model.to_inputs(row["corrupt_image"], row["prompt"]), logits_at="last").reshape(-1).softmax(-1)
        right = float(p[model.to_single_token(row["answer"])])
        assert at_rest[mine].to_numpy() == pytest.approx(right, abs=1e-5)
    assert rows["p_patched"].between(0, 1 + 1e-6).all()


def test_other_runs_have_no_such_column(tmp_path: Path) -> None:
    one = NoticeConfig(model="zoo:blip-shapes", tasks=("colour",), examples=4, corrupt=("image",), **FEW)
    path = notice.run(one, tmp_path / "run", progress=False, model=blip_shapes())
    assert "p_patched" not in effects(path)
    assert "p_patched" not in json.loads((path / "summary.json").read_text())["heads"][0]


def test_the_first_screen_the_settings_and_the_command_say_so(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    first = page.text[: page.text.index("What was tested")]
    assert "This run is as published" in first and "|P_patched|" in first and "released code" in first
    assert "--as-published" in page.text


def test_a_comparison_says_which_runs_are_as_published(run: Path, tmp_path: Path) -> None:
    usual = [
        run_directory(tmp_path / name, tasks=("colour",), kept=4, noise=False, seed=i) for i, name in enumerate("ab")
    ]
    mixed = Page(compare([run, usual[0]], tmp_path / "mixed.html").read_text(encoding="utf-8"))
    assert "1 of the 2 runs is as published" in mixed.text
    alone = Page(compare(usual, tmp_path / "usual.html").read_text(encoding="utf-8"))
    assert "as published" not in alone.text


@pytest.mark.parametrize("changes", [{"as_published": False}, {"published_off_by_one": True}])
def test_going_on_otherwise_is_refused_by_name(run: Path, changes: dict[str, bool]) -> None:
    another = NoticeConfig(**{**CONFIG.to_json(), **changes})
    with pytest.raises(ResumeError, match=rf"{next(iter(changes))} was '?(True|False)'? and is"):
        notice.run(another, run, progress=False, model=blip_shapes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"as_published": False, "published_off_by_one": True}, "published_off_by_one is True and as_published is not"),
        ({"positions": "last"}, "as_published reads heads at the answer, and positions is 'last'"),
        ({"positions": "text", "select_at": "last"}, "as_published reads heads at the answer"),
        ({"as_published": "yes"}, "as_published is 'yes'; expected True or False"),
    ],
)
def test_options_that_contradict_it_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        NoticeConfig(**{**CONFIG.to_json(), **changes})


@pytest.mark.parametrize("model", [blip_shapes, untrained_llava])
def test_heads_are_read_at_the_answer_in_both_families(model: Any) -> None:
    decided = NoticeConfig(model="m", tasks=("colour",), as_published=True).resolved(model())
    assert (decided.select_at, decided.watch_at, decided.every_position) == ("answer", "answer", False)


@given(
    st.lists(st.sampled_from(["answer", "other", "wrong answer"]), min_size=1, max_size=9), st.booleans(), st.booleans()
)
def test_one_position_alone_is_the_answers(found: list[Any], last: bool, off: bool) -> None:
    there = as_published(found, last=last, off_by_one=off)
    if "answer" not in found:
        assert there == found
        return
    start = found.index("answer")
    stop = next((i for i in range(start, len(found)) if found[i] != "answer"), len(found))
    expected = (stop - 1 if last else start) - off
    assert [i for i, role in enumerate(there) if role == "answer"] == ([expected] if expected >= 0 else [])
    assert all(
        mine in (theirs, "other") for i, (mine, theirs) in enumerate(zip(there, found, strict=True)) if i != expected
    )


def test_of_an_answer_of_several_tokens_blip_reads_the_first_and_llava_the_last() -> None:
    model = small("blip")  # spells words it does not know in letters
    prompt = "is the red rede or redo?"
    inputs = model.to_inputs(pictures(1)[0], prompt)
    found, tokens = roles(inputs, prompt, "rede", "redo"), inputs.find("rede")
    assert len(tokens) > 1
    for last, off in ((False, False), (True, False), (False, True), (True, True)):
        there = as_published(found, last=last, off_by_one=off)
        assert there.index("answer") == tokens[-1 if last else 0] - off and there.count("answer") == 1


def test_own_data_that_replaces_no_answer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    task = answerable("blip", tmp_path / "own.parquet")  # its corrupt prompts keep both answers
    config = NoticeConfig(model="small", tasks=(task,), examples=2, as_published=True)
    with pytest.raises(
        DataError, match=r"no row of .*own\.parquet has a corrupt prompt in which both .*--corrupt image"
    ):
        TaskRows(config, task).survey(small("blip"))
    image = NoticeConfig(model="small", tasks=(task,), examples=2, as_published=True, corrupt=("image",))
    TaskRows(image, task).survey(small("blip"))
