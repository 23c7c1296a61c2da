"""Hostile cases, all of them or some: `python -m tests.sabotage [--family F] [--case ID] [--list] [--seed N]`.

Prints a table by family and every failure; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.sabotage import engine
from tests.sabotage.engine import FAILURE, NAMED, RIGHT, Verdict, draws
from tests.sabotage.families import FAMILIES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if a case fails."""
    asked = _asked(arguments)
    seed = secrets.randbelow(1 << 31) if asked.seed == "fresh" else int(asked.seed)
    _say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="sabotage-") as kept:
        cases = [
            case
            for family in asked.family or FAMILIES
            for case in FAMILIES[family](seed, Path(kept))
            if not asked.case or any(part in case.name for part in asked.case)
        ]
        if len(twice := [name for name, n in Counter(case.name for case in cases).items() if n > 1]):
            raise SystemExit(f"two cases are called {twice[0]}")
        if asked.sample is not None:
            cases = draws(seed, "sample").sample(cases, min(asked.sample, len(cases)))
        if asked.list:
            _say("\n".join(case.name for case in cases))
            return 0
        if not cases:
            raise SystemExit("no such case")
        began = time.monotonic()
        log = open(asked.log, "w", encoding="utf-8") if asked.log else None  # noqa: SIM115

        def tell(verdict: Verdict) -> None:
            if log is not None:
                log.write(json.dumps(vars(verdict)) + "\n")
                log.flush()
            if verdict.outcome == FAILURE or asked.case:
                _say(f"{verdict.outcome}: {verdict.name}: {verdict.text}")

        verdicts = engine.run(cases, Path(kept) / "cases", jobs=asked.jobs, limit=asked.limit, tell=tell)
    _say(f"\n{table(verdicts)}\n{time.monotonic() - began:.0f} s, seed {seed}")
    return int(any(verdict.outcome == FAILURE for verdict in verdicts))


def table(verdicts: Sequence[Verdict]) -> str:
    """Verdicts counted by family, as a Markdown table."""
    families = list(dict.fromkeys(verdict.name.partition("/")[0] for verdict in verdicts))
    count = Counter((verdict.name.partition("/")[0], verdict.outcome) for verdict in verdicts)
    rows = [(f, *(count[f, outcome] for outcome in (RIGHT, NAMED, FAILURE))) for f in sorted(families, key=_place)]
    rows.append(("all", *(sum(int(row[i]) for row in rows) for i in (1, 2, 3))))
    lines = ["| family | cases | right result | named error | failures |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {sum(n)} | {' | '.join(map(str, n))} |" for name, *n in rows)])


def _place(family: str) -> int:
    return list(FAMILIES).index(family)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.sabotage", description=__doc__)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="one family; again for more")
    parser.add_argument("--case", action="append", help="cases whose name contains this; again for more")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--sample", type=int, help="so many of the cases, drawn by the seed")
    parser.add_argument("--seed", default="0", help='of what is drawn, a number or "fresh"; 0 if left out')
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--limit", type=float, default=engine.LIMIT, help="seconds after which a case is killed")
    parser.add_argument("--log", help="a file for the verdicts, one JSON object a line")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
