"""Every combination of options runs to its tables, or is refused in one sentence before anything is written."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hooked_vlm import HookedVLM, viz
from hooked_vlm.errors import InputsError, MissingExtraError, TextError
from hooked_vlm.notice import NoticeConfig, run, summarise
from hooked_vlm.notice.vocabulary import EVERY, KINDS
from tests.notice import speaking
from tests.notice.models import FAMILIES, answerable, small

PLACES = list(product(("text", "answer", "last", "all"), ("auto", "answer", "last", "every position")))
HEADS = {"blip": "cross_attn-heads", "llava": "attn-heads"}  # those that see the image
OWN = {"blip": "answer", "llava": "last"}
TEMPLATES = {"blip": "{prompt} yes or no", "llava": "USER: <image>\n{prompt} ASSISTANT:"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: answerable(family, tmp_path_factory.mktemp(family) / "some.parquet") for family in FAMILIES}


def go(family: str, task: str, path: Path, **options: Any) -> Path:
    """A run without figures, as where matplotlib is not installed."""
    quick = {"bootstrap": 10, "random_draws": 0, "examples": 2, "kinds": (HEADS[family], "mlp"), "batch": 4}
    config = NoticeConfig(model=family, tasks=(task,), **quick | options)

    def missing(*args: Any, **options: Any) -> None:
        raise MissingExtraError("no matplotlib")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(viz, "overlay", missing)
        return run(config, path, progress=False, model=small(family))


def read(directory: Path, kind: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((directory / kind).glob("*.parquet"))])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("positions", "select_at"), PLACES)
def test_positions_and_where_heads_are_selected(
    positions: str, select_at: str, family: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    if family == "blip" and positions == "all" and select_at != "auto":
        pytest.skip("BLIP's prompt has no image positions: all of them are text")
    options = {"positions": positions, "select_at": select_at, "corrupt": ("image",)}
    if positions in ("answer", "last") and select_at not in ("auto", positions, EVERY):
        with pytest.raises(InputsError, match=f"cannot be selected at '{select_at}' where positions is '{positions}'"):
            go(family, tasks[family], tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()
        return
    directory = go(family, tasks[family], tmp_path / "run", **options)
    effects, attention = read(directory, "effects"), read(directory, "attention")
    alone = positions in ("answer", "last")  # then nothing else is swept, unless heads are selected there
    at = select_at if select_at != "auto" else positions if alone else EVERY
    watched = at if at != EVERY else positions if alone else OWN[family]
    found = set(effects["role"])
    assert found == {positions} | {EVERY} & {at} if alone else found > {"answer", "last", EVERY}
    assert ("image" in found) == (family == "llava" and positions == "all")
    assert set(attention["query_role"]) == {watched}
    heads = pd.DataFrame(summarise(directory)["heads"]).set_index(["layer", "head"])
    own = effects[(effects["role"] == at) & (effects["kind"] == HEADS[family])]
    expected = own.groupby(["example", "layer", "head"])["effect"].mean().groupby(["layer", "head"]).mean()
    assert heads["mean"].to_dict() == pytest.approx(expected.to_dict(), rel=1e-5, abs=1e-6)
    assert (directory / "report.html").stat().st_size > 0


@pytest.mark.parametrize("watch_at", ["answer", "last", EVERY])
def test_heads_are_watched_where_it_is_asked_for_and_selected_elsewhere(
    watch_at: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    directory = go("blip", tasks["blip"], tmp_path / "run", watch_at=watch_at, corrupt=("image",))
    assert set(read(directory, "attention")["query_role"]) == {watch_at}
    assert set(summarise(directory)["select_at"].values()) == {EVERY}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "kinds", [("attn-heads",), ("mlp",), ("cross_attn", "attn"), KINDS[:2], ("resid", "attn-heads")]
)
def test_sites(family: str, kinds: tuple[str, ...], tasks: dict[str, str], tmp_path: Path) -> None:
    if family == "llava" and any(kind.startswith("cross_attn") for kind in kinds):
        with pytest.raises(InputsError, match=r"has no 'cross_attn.*: it has attn-heads, attn, mlp, resid"):
            go(family, tasks[family], tmp_path / "run", kinds=kinds)
        assert not (tmp_path / "run" / "run.json").exists()
        return
    directory = go(family, tasks[family], tmp_path / "run", kinds=kinds)
    assert set(read(directory, "effects")["kind"]) == set(kinds)
    assert "<h1>" in (directory / "report.html").read_text()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        *({"region": region, "corrupt": ("image",)} for region in ("blur", "mean", "inpaint")),
        {"region": "mean", "corrupt": ("image", "text"), "noise": True},
        {"corrupt": ("text",), "noise": True, "noise_scale": 0.5},
        {"corrupt": ("text",), "region": "blur"},
    ],
    ids=str,
)
def test_corruptions(family: str, options: dict[str, Any], tasks: dict[str, str], tmp_path: Path) -> None:
    if options.get("region") == "inpaint":
        pytest.importorskip("cv2")
    if options.get("region") and "image" not in options["corrupt"]:
        with pytest.raises(InputsError, match="region is 'blur', and the image is not corrupted"):
            go(family, tasks[family], tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()
        return
    directory = go(family, tasks[family], tmp_path / "run", **options)
    names = {
        f"{target}{ending}" for target in options["corrupt"] for ending in ("", "_noise")[: 1 + ("noise" in options)]
    }
    effects = read(directory, "effects")
    assert set(effects["corrupt"]) == names
    assert (effects.groupby("corrupt", observed=True)["effect"].agg(lambda each: each.abs().max()) > 1e-6).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_of_ones_own_stands_around_every_prompt(
    family: str, tasks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = small(family), []
    to_inputs = model.to_inputs

    def recorded(images: Any, prompts: Any, **options: Any) -> Any:
        asked.extend([prompts] if isinstance(prompts, str) else prompts)
        return to_inputs(images, prompts, **options)

    monkeypatch.setattr(model, "to_inputs", recorded)
    directory = go(family, tasks[family], tmp_path / "run", prompt_template=TEMPLATES[family], examples=3)
    begin, _, end = TEMPLATES[family].partition("{prompt}")
    assert asked and all(prompt.startswith(begin) and prompt.endswith(end) for prompt in asked)
    assert set(read(directory, "examples")["prompt"].str.contains("{", regex=False)) == {False}


def test_a_template_without_the_image_stands_inside_the_models_own(tmp_path: Path) -> None:
    _, task = speaking.data("parquet", tmp_path)
    config = NoticeConfig(model="m", tasks=(task,), corrupt=("text",), kinds=("mlp",), examples=2, bootstrap=10)
    model = HookedVLM.from_hf(*speaking.llava("red"))
    directory = run(
        replace(config, prompt_template="{prompt} yes or no"), tmp_path / "run", progress=False, model=model
    )
    effects = read(directory, "effects")
    for _, prompt in effects[effects["layer"] == 0].sort_values("position").groupby("example"):
        tokens = [token.strip() for token in prompt["token"]]
        assert tokens[-5:] == ["yes", "or", "no", "ASSISTANT", ":"] and tokens.count("USER") == 1
        assert set(prompt["role"].iloc[-5:-1]) == {"template"} and prompt["role"].iloc[-1] == "last"


def test_a_template_that_the_model_cannot_read_is_refused(tasks: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(TextError, match="<image>"):
        go("llava", tasks["llava"], tmp_path / "run", prompt_template="USER: <image><image>{prompt} ASSISTANT:")
    assert not (tmp_path / "run" / "run.json").exists()
