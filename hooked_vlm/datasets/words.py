"""What is known about the words of the original data sets: which are too near to face each other, and spare ones.

Two words are too near if they mean nearly the same, if one is a kind of the other, or if a picture of one is as a
rule a picture of the other too (a shattered cup is broken). Such words are never the two answers of a question,
and never replace each other. The tables cover the words that occur often; they are judgements, not measurements,
and a word that stands in no table is near to its own forms alone.

The words stand in `words.json`, each table with its source and licence; here is what is made of them. Costs a
millisecond. Knows no picture and no model.
"""

import json
from pathlib import Path
from typing import Any

from hooked_vlm.datasets.replacements import Related

_TABLES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))


def _words(table: str) -> tuple[str, ...]:
    return tuple(word for line in _TABLES[table]["words"] for word in line.split())


def _groups(table: str) -> list[str]:
    return [group for groups in _TABLES[table]["groups"].values() for group in groups]


STATES = _words("states")
"""The adjectives of MIT-States (Isola et al., CVPR 2015)."""
PUBLISHED_STATES = _words("published_states")
"""Of those, the ones that the released NOTICE code takes."""
NEAR_STATES = Related(*_groups("near_states"))

EMOTIONS: dict[str, str] = _TABLES["emotions"]["words"]
"""Of each folder name that data sets of faces use, the word that fits "is this person feeling ...?"."""
SPARE_EMOTIONS = _words("spare_emotions")
NEAR_EMOTIONS = Related(*_groups("near_emotions"))

_PEOPLE, _TRADES, _ANIMALS = (_words(table) for table in ("people", "trades", "animals"))
NEAR_NOUNS = Related(
    *(f"person people human individual someone adult {one}" for one in (*_PEOPLE, *_TRADES)),
    *(f"{person} {trade}" for trade in _TRADES for person in _PEOPLE),
    *(f"animal pet creature wildlife {one}" for one in _ANIMALS),
    *_groups("near_nouns"),
)
SPARE_SUBJECTS = _words("spare_subjects")
SPARE_OBJECTS = _words("spare_objects")

NEAR_VERBS = Related(*_groups("near_verbs"))
SPARE_VERBS = _words("spare_verbs")

PARTICIPLES = {"program": "programming", "worship": "worshipping", "kidnap": "kidnapping"}
PARTICIPLES |= {"lie": "lying", "die": "dying", "tie": "tying", "be": "being", "dye": "dyeing", "singe": "singeing"}
"""Of verbs that follow no rule or several, the form in -ing; of all others, lemminflect's."""

PARTICLES = _words("particles")
"""What follows a verb of two words, whose first word then takes the ending ("picking up")."""
