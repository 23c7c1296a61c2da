"""The words of a run, each spelled in one place: corruptions, kinds of sites, roles.

They stand in configurations, parquet files, summary.json and reports. Costs nothing; knows no model and no file.
"""

from __future__ import annotations

from typing import Final, get_args

from hooked_vlm.analysis.heads import HEAD_KINDS
from hooked_vlm.notice.schema import Corrupt, Kind, Role

CORRUPT: Final[tuple[Corrupt, ...]] = get_args(Corrupt)
NOISES: Final = ("image_noise", "text_noise")  # the same modalities under Gaussian noise
CORRUPTIONS: Final = (*CORRUPT, *NOISES)

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MODULE_KINDS: Final = KINDS[len(HEAD_KINDS) :]

EVERY: Final = "every position"  # the role of a site that is every position at once
ROLES: Final[tuple[Role, ...]] = get_args(Role)
