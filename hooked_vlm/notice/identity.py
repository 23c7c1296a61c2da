"""Of which configuration, model, rows and packages a run is: said as it begins, and held against what goes on with it.

Costs what fingerprints cost, and a look at every row. Knows no model but through its public face.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hooked_vlm.errors import ResumeError
from hooked_vlm.models.base import HookedVLM
from hooked_vlm.notice import directory, fingerprint
from hooked_vlm.notice.config import NoticeConfig, file_name
from hooked_vlm.notice.directory import RunDirectory, block_size
from hooked_vlm.notice.examples import refuse_unreadable
from hooked_vlm.notice.rows import TaskRows
from hooked_vlm.notice.storage import digest_of


def begun(place: RunDirectory, config: NoticeConfig) -> NoticeConfig:
    """The configuration, as decided where the run began; another one's directory is refused before anything is loaded.

    Raises:
        ResumeError: if the directory holds another configuration's run.
        RunDirectoryError: if what is in it cannot be read.
    """
    stored = place.stored()
    if stored is not None:
        before = NoticeConfig.from_json(stored["config"])
        before.refuse_another(config, place.path)
        return before
    return config


def started(
    place: RunDirectory, config: NoticeConfig, model: HookedVLM, rows: Mapping[str, TaskRows], *, accept_versions: bool
) -> NoticeConfig:
    """The configuration, decided, once every row that may be used is looked through; all of it as when the run began.

    Args:
        place: the run's directory, locked.
        config: what was asked for.
        model: a `HookedVLM`.
        rows: of each task.
        accept_versions: go on with packages of other versions.

    Raises:
        ResumeError: if the run began with another model, other rows, or other packages; it names them.
        TaskSchemaError, DataError, InputsError, ...: if a row or an option cannot be used.
        TextError, ImageError, ...: if no row of a task can be given to the model; of the first.
        RunDirectoryError: if a file in the directory is another run's, or it cannot be written.
    """
    config = config.resolved(model)
    for task, each in rows.items():
        each.survey(model)
        refuse_unreadable(model, config, task, each.again(model, range(len(each))))
    now = {
        "fingerprints": fingerprint.of_model(model),
        "rows": {task: {"n": len(each), "digest": each.digest} for task, each in rows.items()},
        "packages": fingerprint.packages(),
    }
    stored = place.stored()
    if stored is None:
        place.begin(_record(config, model, now))
    else:
        place.record = stored
        _refuse_another(place, model, now, rows, accept_versions=accept_versions)
    place.verify(config.tasks)
    for task, each in rows.items():
        if not place.has(_rows_file(task)):
            place.write_json(_rows_file(task), {"ids": each.ids, "fingerprints": each.prints})
    place.write_json(directory.SOURCES, {task: each.noted for task, each in rows.items()})
    return config


def _record(config: NoticeConfig, model: HookedVLM, now: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of a run that begins."""
    cfg = model.stacks[model.prompt_stack].cfg
    assert config.batch is not None
    return {
        "version": directory.VERSION,
        "id": digest_of({"config": config.to_json(), **now}),
        "config": config.to_json(),
        "model": {
            "name": config.model,
            "class": type(model).__name__,
            "stack": model.prompt_stack,
            "layers": cfg.n_layers,
            "heads": cfg.n_heads,
            "d_model": cfg.d_model,
        },
        "commit": _commit(model),
        **now,
        "accepted": [],
        "block": block_size(config.batch),
        "started": _now(),
    }


def _refuse_another(
    place: RunDirectory,
    model: HookedVLM,
    now: Mapping[str, Any],
    rows: Mapping[str, TaskRows],
    *,
    accept_versions: bool,
) -> None:
    """Refuse to go on with another model, other rows, or other packages than the run began with, by name."""
    stored = place.record
    differ = fingerprint.differences(stored["fingerprints"], now["fingerprints"])
    if differ:
        commits = [stored["commit"], _commit(model)]
        of = f" (commit {commits[0]} -> {commits[1]})" if commits[0] != commits[1] else ""
        raise ResumeError(
            f"{place.path} holds a run of a model with other {', '.join(differ)}{of}: take another directory, or the "
            "model that the run began with"
        )
    for task, each in rows.items():
        if stored["rows"].get(task) != now["rows"][task]:
            place.read_list()
            told = ["they differ from those that the run began with"]
            if place.has(_rows_file(task)):
                before = place.values(_rows_file(task))
                told = each.changes(before["ids"], before["fingerprints"]) or told
            raise ResumeError(
                f"{place.path} holds a run on other rows of {task} ({'; '.join(told)}): take another directory, or the "
                "data that the run began with"
            )
    known = [stored["packages"], *(each["packages"] for each in stored["accepted"])]
    if now["packages"] in known:
        return
    if not accept_versions:
        before = known[-1]
        differ = fingerprint.differences(before, now["packages"])
        raise ResumeError(
            f"{place.path} holds a run made with other packages ("
            + ", ".join(f"{name} {before.get(name)} -> {now['packages'].get(name)}" for name in differ)
            + "): install those again, take another directory, or go on with these by --accept-versions "
            "(accept_versions=True), which run.json notes"
        )
    place.begin(stored | {"accepted": [*stored["accepted"], {"packages": now["packages"], "when": _now()}]})


def _commit(model: HookedVLM) -> str | None:
    """The commit on the hub that a model was loaded from."""
    found: str | None = getattr(model.hf_model.config, "_commit_hash", None)
    return found


def _rows_file(task: str) -> str:
    return f"{directory.ROWS}/{file_name(task)}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
