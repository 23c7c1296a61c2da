"""What earlier versions wrote, in today's words, so that their runs can be reported, compared and gone on with.

Knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hooked_vlm.analysis.heads import RULES
from hooked_vlm.errors import RunDirectoryError, quoted
from hooked_vlm.notice.schema import SUMMARY_VERSION, Summary, checked

# A column of tables of results, and of summaries before version 2.
COLUMNS: Final = {"normalised": "normalized"}

# The rule that controls the false discovery rate was "the sound rule".
NAMES: Final = {"sound": "fdr", "sound_all": "fdr_all"}
PHRASES: Final = {"the sound rule": RULES["fdr"], "the sound one": "the FDR-controlled one"}


def as_now(summary: Mapping[str, Any]) -> Summary:
    """A summary.json in today's words, whichever version wrote it.

    Raises:
        RunDirectoryError: if it is of a version that is not known, or no summary.

    >>> as_now({"universal": [{"layer": 1, "rule": "sound"}], "cautions": ["Too few for the sound rule."]})["universal"]
    [{'layer': 1, 'rule': 'fdr'}]
    """
    version = summary.get("version", 0)
    if version not in range(SUMMARY_VERSION + 1):
        raise RunDirectoryError(
            f"summary.json has version {quoted(version)} and this package reads {SUMMARY_VERSION} and earlier ones: "
            "take the hooked-vlm that wrote it, or run the same `hooked-vlm notice` command, which computes it again"
        )
    found = checked({**summary, "version": SUMMARY_VERSION})
    if version < 2:
        names = {**COLUMNS, **NAMES}
        found["heads"] = [{names.get(key, key): value for key, value in row.items()} for row in found.get("heads", [])]
    if version < 1:
        found["universal"] = [row | {"rule": NAMES.get(row["rule"], row["rule"])} for row in found.get("universal", [])]
        found["findings"] = [{key: _said(value) for key, value in row.items()} for row in found.get("findings", [])]
        found["disagreements"] = [_said(sentence) for sentence in found.get("disagreements", [])]
        found["cautions"] = [_said(sentence) for sentence in found.get("cautions", [])]
    return found


def _said(value: Any) -> Any:
    for before, now in PHRASES.items() if isinstance(value, str) else ():
        value = value.replace(before, now)
    return value
