"""A configuration is validated, goes to JSON and back, and says how it differs from another."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hooked_vlm.errors import InputsError, ResumeError
from hooked_vlm.notice.config import BATCH, NoticeConfig, file_name, options
from hooked_vlm.notice.storage import digest_of
from hooked_vlm.notice.vocabulary import KINDS
from tests.models.unchecked import unchecked
from tests.notice.models import blip_shapes, untrained_llava

PLAIN = NoticeConfig(model="zoo:blip-shapes", tasks=("colour",))


@given(
    st.builds(
        NoticeConfig,
        model=st.just("m"),
        tasks=st.lists(st.sampled_from(["colour", "shape", "a/b.parquet"]), min_size=1, unique=True).map(tuple),
        corrupt=st.sampled_from([("image",), ("image", "text")]),  # with "text" alone there is no region
        kinds=st.lists(st.sampled_from(KINDS), unique=True).map(tuple),
        examples=st.integers(1, 99),
        seed=st.integers(0, 9),
        noise=st.booleans(),
        noise_scale=st.floats(0.5, 4),
        region=st.sampled_from([None, "blur"]),
        prompt_template=st.sampled_from([None, "{prompt} Answer:"]),
    )
)
def test_it_goes_to_json_and_back(config: NoticeConfig) -> None:
    assert NoticeConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.differences(config) == []


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, r"tasks is \(\); expected each name once, and at least one"),
        ({"tasks": "colour"}, "expected a sequence of names"),
        ({"tasks": ("colour", "colour")}, "each name once"),
        ({"tasks": ("a.parquet", "x/a.parquet")}, "files of the same names"),
        ({"corrupt": ("sound",)}, "corrupt has no 'sound': expected 'image', 'text'"),
        ({"kinds": ("heads",)}, "kinds has no 'heads': expected 'cross_attn-heads'"),
        ({"positions": "first"}, "positions has no 'first'"),
        ({"select_at": "first"}, "select_at has no 'first'"),
        ({"region": "erase"}, "region has no 'erase'"),
        ({"region": "blur", "corrupt": ("text",)}, "region is 'blur', and the image is not corrupted"),
        ({"examples": 0}, "examples is 0; expected 1 or more"),
        ({"examples": 2.5}, "examples is 2.5; expected a whole number"),
        ({"seed": "5"}, "seed is '5'; expected a whole number"),
        ({"noise_scale": 0.0}, "noise_scale is 0.0"),
        ({"bootstrap": 0}, "bootstrap is 0"),
        ({"random_draws": -1}, "random_draws is -1"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"seed": True}, "seed is True; expected a whole number"),
        ({"examples": None}, "examples is None; expected a whole number"),
        ({"noise_scale": math.nan}, "noise_scale is nan; expected a number above 0"),
        ({"noise_scale": math.inf}, "noise_scale is inf"),
        ({"noise_scale": "3"}, "noise_scale is '3'"),
        ({"noise": 1}, "noise is 1; expected True or False"),
        ({"model": None}, "model is None; expected a text"),
        ({"data": 3}, "data is 3; expected a text"),
        ({"data": "a\0b"}, "expected a text that can be written"),
        ({"prompt_template": "{prompt}\ud800"}, "expected a text that can be written"),
        ({"model": ""}, "model is ''; expected a text that says something$"),
        ({"device": ""}, "device is ''; expected a text that says something; leave it out"),
        ({"dtype": " "}, "dtype is ' '"),
        ({"data": ""}, "data is ''"),
        ({"revision": "\u200b"}, "revision is "),
        ({"examples": 10**30}, "examples is 10+; expected 1 or more, and 100000 at most"),
        ({"examples": 10**5000}, "examples is an integer of 16610 bits"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808; expected 0 or more"),
        ({"bootstrap": 10**9}, "and 100000 at most"),
        ({"random_draws": 10**9}, "and 10000 at most"),
        ({"batch": 10**9}, "batch is 1000000000"),
        ({"positions": "x" * 3000}, r"^positions has no 'x+ \.\.\. x+': expected 'text'.{,60}$"),
        ({"tasks": 3}, "tasks is 3; expected a sequence of names"),
        ({"batch": 0}, "batch is 0; expected 1 or more"),
        ({"prompt_template": "no place"}, "expected a text with {prompt} in it"),
        ({"positions": "last", "select_at": "answer"}, "cannot be selected at 'answer' where positions is 'last'"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict, message: str) -> None:
    with unchecked(), pytest.raises(InputsError, match=message):
        NoticeConfig(**{"model": "m", "tasks": ("colour",)} | changes)


def test_json_with_other_options_is_refused() -> None:
    with pytest.raises(InputsError, match=r"no option 'exampels': the closest are examples"):
        NoticeConfig.from_json(PLAIN.to_json() | {"exampels": 3})
    with pytest.raises(InputsError, match="lacks model"):
        NoticeConfig.from_json({"tasks": ["colour"]})


@pytest.mark.parametrize("given", [None, 3, "model", ["model", "tasks"], {3: "model"}])
def test_what_is_no_configuration_is_refused(given: Any) -> None:
    with unchecked(), pytest.raises(InputsError, match=r"the configuration is .*expected options by name"):
        NoticeConfig.from_json(given)


def test_another_configuration_is_refused_with_the_differences() -> None:
    other = dataclasses.replace(PLAIN, seed=3, noise=True)
    with pytest.raises(ResumeError, match="seed was 0 and is 3; noise was False and is True"):
        PLAIN.refuse_another(other, Path("runs/a"))
    PLAIN.refuse_another(PLAIN, Path("runs/a"))


@pytest.mark.parametrize(
    ("began", "asked", "named"),
    [
        ({"every_position": False}, {"select_at": "every position"}, "select_at was 'last' and is 'every position'"),
        ({}, {"positions": "answer"}, "positions was 'text' and is 'answer'"),
    ],
)
def test_another_choice_is_refused_by_its_name_whatever_was_decided_beside_it(
    began: dict[str, Any], asked: dict[str, Any], named: str
) -> None:
    """The two together would be no configuration; each is one, and they differ."""
    stored = dataclasses.replace(PLAIN, select_at="last", batch=3, kinds=("mlp",), **began)
    with pytest.raises(ResumeError, match=re.escape(f"({named})")):
        stored.refuse_another(dataclasses.replace(PLAIN, **asked), Path("runs/a"))


def test_what_is_left_open_is_decided_by_the_model() -> None:
    blip, llava = PLAIN.resolved(blip_shapes()), PLAIN.resolved(untrained_llava())
    assert blip.kinds == KINDS and llava.kinds == ("attn-heads", "attn", "mlp", "resid")
    assert (blip.watch_at, llava.watch_at) == ("answer", "last")
    assert blip.batch == BATCH
    assert dataclasses.replace(PLAIN, batch=3, select_at="every position").resolved(blip_shapes()).batch == 3
    assert blip.differences(PLAIN) == [] and blip.resolved(blip_shapes()) == blip
    with pytest.raises(InputsError, match="HookedLLaVA has no 'cross_attn' in its language_model: it has attn-heads"):
        dataclasses.replace(PLAIN, kinds=("cross_attn",)).resolved(untrained_llava())


def everywhere(every: bool | None, **options: Any) -> tuple[str, str, bool | None]:
    """Where BLIP's heads are selected and watched, and whether they are patched at every position."""
    found = dataclasses.replace(PLAIN, every_position=every, **options).resolved(blip_shapes())
    return found.select_at, found.watch_at, found.every_position


def test_heads_are_selected_at_every_position_where_they_are_patched_so() -> None:
    """Else where they are watched: whether it is affordable is `planning`'s to say, and until then it is open."""
    assert everywhere(True) == ("every position", "answer", True)
    assert everywhere(False) == ("answer", "answer", False)
    assert everywhere(None) == ("auto", "answer", None)
    assert everywhere(None, select_at="every position") == ("every position", "answer", True)


@pytest.mark.parametrize("at", ["answer", "last"])
def test_where_single_positions_are_asked_for_heads_are_selected_and_watched_there(at: Any) -> None:
    assert everywhere(None, positions=at) == (at, at, False)
    assert everywhere(True, positions=at) == ("every position", at, True)
    assert everywhere(None, positions=at, select_at="every position") == ("every position", at, True)


@given(
    every=st.sampled_from([None, True, False]),
    select=st.sampled_from(["auto", "answer", "last", "every position"]),
    watch=st.sampled_from(["answer", "last", "every position"]),
)
def test_heads_are_watched_where_that_is_asked_for_wherever_they_are_selected(
    every: Any, select: Any, watch: Any
) -> None:
    assume(not (every is False and select == "every position"))
    assert everywhere(every, select_at=select, watch_at=watch)[1] == watch
    if select in ("answer", "last"):
        assert everywhere(every, select_at=select)[:2] == (select, select)


# What run.json held before options were typed by pydantic, and its part of the run's id.
STORED = """
{"model": "zoo:blip-shapes", "tasks": ["colour"], "corrupt": ["image", "text"],
"kinds": ["cross_attn-heads", "attn-heads", "cross_attn", "attn", "mlp", "resid"], "positions": "text",
"select_at": "answer", "every_position": true, "screen": null, "examples": 6, "seed": 0, "data": null, "noise": true,
"noise_scale": 3.0, "region": null, "prompt_template": null, "random_draws": 20, "bootstrap": 1000, "device": "cpu",
"dtype": "float32", "revision": null, "batch": 16}"""
ITS_DIGEST = "fe440cd8d331e1757d8a0b25d60f5954569d0330cc2add41aab5b546ad2132ae"


def test_a_stored_configuration_is_read_and_written_as_it_was() -> None:
    """But for where heads are watched, which was where they were selected, and a mode that there was not."""
    config = NoticeConfig.from_json(json.loads(STORED))
    written = config.to_json()
    assert written.pop("watch_at") == "answer"
    assert not written.pop("as_published") and not written.pop("published_off_by_one")
    assert list(written.items()) == list(json.loads(STORED).items())
    assert digest_of(written) == ITS_DIGEST
    assert config.resolved(blip_shapes()) == config
    asked = dataclasses.replace(PLAIN, noise=True, examples=6)
    config.refuse_another(dataclasses.replace(asked, random_draws=20), Path("runs/a"))
    with pytest.raises(ResumeError, match=r"\(random_draws was 20 and is 199\)"):
        config.refuse_another(asked, Path("runs/a"))


@pytest.mark.parametrize("at", ["answer", "last", "every position", "auto"])
def test_a_configuration_that_does_not_say_where_heads_are_watched_watches_them_where_they_are_selected(
    at: Any,
) -> None:
    plain = dataclasses.replace(PLAIN, select_at=at).to_json()
    del plain["watch_at"]
    assert NoticeConfig.from_json(plain).watch_at == at


def test_every_option_says_once_what_it_is() -> None:
    found = options()
    assert list(found) == [field.name for field in dataclasses.fields(NoticeConfig)]
    assert all(str(option.description).endswith(".") for option in found.values())
    given = {name: option.default for name, option in found.items() if not option.is_required()}
    assert NoticeConfig(model="m", tasks=("colour",), **given) == NoticeConfig(model="m", tasks=("colour",))


def test_an_option_that_no_run_has_is_refused_where_it_is_given() -> None:
    with pytest.raises(InputsError, match=r"no option 'exampels': the closest are examples"):
        NoticeConfig(model="m", tasks=("colour",), exampels=3)  # type: ignore[call-arg]


def test_tasks_have_plain_file_names() -> None:
    assert [file_name(task) for task in ("colour", "a/my task.parquet", "svo_verb")] == [
        "colour",
        "my_task",
        "svo_verb",
    ]
