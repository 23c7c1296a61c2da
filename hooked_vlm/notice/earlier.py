"""What earlier versions wrote, in today's words, so that their runs can be reported and compared. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hooked_vlm.analysis.heads import RULES

# The rule that controls the false discovery rate was "the sound rule".
NAMES: Final = {"sound": "fdr", "sound_all": "fdr_all"}
PHRASES: Final = {"the sound rule": RULES["fdr"], "the sound one": "the FDR-controlled one"}


def as_now(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary.json in today's words, whichever version wrote it.

    >>> as_now({"universal": [{"layer": 1, "rule": "sound"}], "cautions": ["Too few for the sound rule."]})
    {'universal': [{'layer': 1, 'rule': 'fdr'}], 'cautions': ['Too few for the FDR-controlled rule.']}
    """
    found = dict(summary)
    if heads := found.get("heads"):
        found["heads"] = [{NAMES.get(key, key): value for key, value in row.items()} for row in heads]
    if universal := found.get("universal"):
        found["universal"] = [{**row, "rule": NAMES.get(row["rule"], row["rule"])} for row in universal]
    if findings := found.get("findings"):
        found["findings"] = [{key: _said(value) for key, value in row.items()} for row in findings]
    for name in ("disagreements", "cautions"):
        if sentences := found.get(name):
            found[name] = [_said(sentence) for sentence in sentences]
    return found


def _said(value: Any) -> Any:
    for before, now in PHRASES.items() if isinstance(value, str) else ():
        value = value.replace(before, now)
    return value
