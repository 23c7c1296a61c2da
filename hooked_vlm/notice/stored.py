"""summary.json as values: what stands in it today, and what earlier versions wrote, in today's form.

Nothing in it is a sentence but what a user named, or why the data stage passed over a row: `report.text` makes those.
Knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # which pydantic reads below Python 3.12

from hooked_vlm.analysis.heads import RULES
from hooked_vlm.errors import RunDirectoryError, quoted
from hooked_vlm.notice.claims import Earlier, Verdict
from hooked_vlm.notice.schema import (
    Ablation,
    Behaviour,
    ByAnswer,
    Counts,
    Figure,
    Function,
    Grounding,
    HeadEffect,
    Localised,
    Noise,
    Noted,
    RoleEffect,
    Selection,
    Strongest,
    Universal,
)
from hooked_vlm.notice.storage import RENAMED

VERSION: Final = 2  # of summary.json

# The rule that controls the false discovery rate was "the sound rule" in version 0.
NAMES: Final = {"sound": "fdr", "sound_all": "fdr_all", **RENAMED}
PHRASES: Final = {"the sound rule": RULES["fdr"], "the sound one": "the FDR-controlled one"}


class Summary(TypedDict, total=False):
    """summary.json: every number that the report prints.

    Each key is a list of flat records unless said. Intervals are 95 %, over examples: exact (Clopper-Pearson) of
    shares, percentile bootstrap of the rest unless said. What cannot be computed is null; so is the interval of numbers
    that are all equal.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    version: int
    """Of what stands below; a summary of before there was one has none."""
    counts: list[Counts]
    noted: list[Noted]
    behaviour: list[Behaviour]
    heads: list[HeadEffect]
    localised: list[Localised]
    answers: list[ByAnswer]
    roles: list[RoleEffect]
    universal: list[Universal]
    functions: list[Function]
    """All tasks together."""
    functions_by_task: list[Function]
    """The same with task, since a head may look at the object in one task and away in another."""
    grounding: list[Grounding]
    ablation: list[Ablation]
    noise: list[Noise]
    strongest: list[Strongest]
    findings: list[Verdict]
    rule: dict[str, int | float | None]
    """The numbers that heads were selected by, `universal_heads.Rule`'s."""
    select_at: dict[str, str]
    """Kind to token role."""
    config: dict[str, Any]
    """As in run.json, and so the model."""
    model: dict[str, Any]
    figures: list[Figure]
    disagreements: list[str]
    """Sentences, of a summary of version 1 alone; and so the cautions."""
    cautions: list[str]


_SUMMARY: Final = TypeAdapter(Summary)


def columns(table: str) -> list[str]:
    """What a row of one of the summary's tables has."""
    return list(get_type_hints(get_type_hints(Summary)[table].__args__[0]))


def checked(values: Any) -> Summary:
    """Plain values as a summary.

    Raises:
        RunDirectoryError: if they are none; it names the first part that is something else.
    """
    found: Summary = _validated(_SUMMARY.validate_python, values)
    return found


def _validated(form: Callable[[Any], Any], values: Any) -> Any:
    try:
        return form(values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        part = ".".join(map(str, wrong["loc"])) or "all of it"
        raise RunDirectoryError(
            f"summary.json is damaged ({part} is {quoted(wrong['input'])}): run the same `hooked-vlm notice` command, "
            "which computes it again"
        ) from None


def plain(summary: Summary) -> dict[str, Any]:
    """A summary as plain values, which JSON has."""
    found: dict[str, Any] = _SUMMARY.dump_python(summary, mode="json")
    return found


# --- earlier versions -------------------------------------------------------------------------------


def as_now(values: Mapping[str, Any]) -> Summary:
    """A summary.json as today's, whichever version wrote it; sentences that it kept stay as they are.

    Raises:
        RunDirectoryError: if it is of a version that is not known, or no summary.

    >>> as_now({"universal": [{"layer": 1, "rule": "sound"}], "cautions": ["Too few for the sound rule."]})["universal"]
    [{'layer': 1, 'rule': 'fdr'}]
    """
    version = values.get("version", 0)
    if version not in range(VERSION + 1):
        raise RunDirectoryError(
            f"summary.json has version {quoted(version)} and this package reads {VERSION} and earlier ones: "
            "take the hooked-vlm that wrote it, or run the same `hooked-vlm notice` command, which computes it again"
        )
    if version == VERSION:
        return checked(values)
    found: dict[str, Any] = {"cautions": [], "disagreements": []} | _validated(_BEFORE.validate_python, values)
    found["heads"] = [{NAMES.get(key, key): value for key, value in row.items()} for row in found.get("heads", [])]
    if version < 1:
        found |= {name: _said(found.get(name, [])) for name in ("findings", "disagreements", "cautions")}
        found["universal"] = [row | {"rule": NAMES.get(row["rule"], row["rule"])} for row in found.get("universal", [])]
    told = {one.name for one in fields(Earlier)}
    found["findings"] = [
        {"holds": row.get("holds"), "parts": row.get("parts") or {}}
        | {
            "evidence": {
                **{key: row[key] for key in told & row.keys()},
                "of": row.get("about") or "",
                "about": "earlier",
            }
        }
        for row in found.get("findings", [])
    ]
    found["ablation"] = [row | {"selection": Selection.parse(row["selection"])} for row in found.get("ablation", [])]
    return checked({**found, "version": VERSION})


class _Before(TypedDict, total=False):
    """What stood otherwise before version 2."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    heads: list[dict[str, Any]]
    universal: list[dict[str, Any]]
    ablation: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    disagreements: list[str]
    cautions: list[str]


_BEFORE: Final = TypeAdapter(_Before)


def _said(value: Any) -> Any:
    """The same with today's name of the rule in its sentences."""
    if isinstance(value, list):
        return [_said(each) for each in value]
    if isinstance(value, dict):
        return {key: _said(each) for key, each in value.items()}
    for before, now in PHRASES.items() if isinstance(value, str) else ():
        value = value.replace(before, now)
    return value
