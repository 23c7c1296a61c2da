"""The command line: `hooked-vlm`. Everything heavy is imported inside the command that needs it.

An error that the package raises on purpose is printed in one line, and so is a lack of memory; any other keeps its
traceback.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from hooked_vlm import __version__
from hooked_vlm.errors import HookedVLMError, HookNameError, InputsError, quoted
from hooked_vlm.notice.config import Flag, NoticeConfig, options
from hooked_vlm.notice.vocabulary import CORRUPT

app = typer.Typer(
    name="hooked-vlm",
    help="TransformerLens for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

if TYPE_CHECKING:
    from rich.console import Console

SHAPES_WORLD = ("colour", "shape", "place")
PIPED_WIDTH = 160  # columns where nobody looks, so that no name is cut


def main() -> None:
    """Run the command line."""
    try:
        app()
    except HookedVLMError as error:
        _end(str(error))
    except (MemoryError, RuntimeError, OSError) as error:
        from hooked_vlm.given import told
        from hooked_vlm.models.memory import ran_out

        if not ran_out(error):
            raise
        _end(f"out of memory ({told(error)}): end other programs, or ask for less at a time")


def _end(said: str) -> NoReturn:
    typer.echo(f"hooked-vlm: {' '.join(said.split())}", err=True)
    sys.exit(1)


def _show_version(asked: bool | None) -> None:
    if asked:
        typer.echo(f"hooked-vlm {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")
    ] = None,
) -> None:
    pass


@app.command()
def hooks(
    model: Annotated[str, typer.Argument(help='A hub name, a directory, or "zoo:..." for a model that ships here.')],
    filter: Annotated[str, typer.Option("--filter", help="Only hook points whose name contains this.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table instead.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """List the hook points of a checkpoint: name, axes, and when it fires. Reads its config, not its weights."""
    from hooked_vlm.models import loading, placement, skeleton, table

    rows = table.hook_table(skeleton.skeleton(model, revision=revision))
    shown = [row for row in rows if filter in row.name]
    if not shown:
        raise HookNameError(f"none of the {len(rows)} hook points of {quoted(model)} contains {quoted(filter)}")
    if markdown:
        typer.echo(table.to_markdown(shown))
        return
    config = loading.read_config(loading.resolve(model), revision=revision)[0]
    from rich import box
    from rich.table import Table
    from rich.text import Text

    printed = Table(*table.HEADER, box=box.SIMPLE, pad_edge=False)
    for column in printed.columns:
        column.overflow = "fold"
    for row in shown:
        printed.add_row(*(Text(cell) for cell in (row.name, row.shape, row.fires)))
    _console().print(printed)
    typer.echo(f"Loaded on this machine it runs {placement.told(*placement.placed(None, None, config))}.")


@app.command()
def demo() -> None:
    """Cache, hook and patch cross-attention heads of a small BLIP. Needs no network and no accelerator."""
    console = _console()
    with console.status("Importing torch, transformers and transformer_lens"):
        import torch

        from hooked_vlm import demo as shown
    torch.set_num_threads(1)  # for matrices this small, a second thread costs more than it brings
    shown.run(console)


@app.command()
def convert(
    name: Annotated[str, typer.Argument(help="A hub name or a directory, with pickled weights (.bin) alone.")],
    out: Annotated[str, typer.Argument(help="The new checkpoint's directory: a new one, or an empty one.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Make safetensors of a checkpoint that has pickles alone, in a process of its own, and check them."""
    from transformers.utils import logging

    from hooked_vlm.models import conversion

    logging.disable_progress_bar()
    for said in conversion.convert(name, out, revision=revision).told():
        typer.echo(said)


def _taking_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes the options of a run besides its own: what `NoticeConfig` says of them."""
    found = [_parameter(name, option) for name, option in options().items()]
    own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != "asked"]
    command.__signature__ = inspect.Signature([*found[:2], *own, *found[2:]])  # type: ignore[attr-defined]  # the model and tasks first
    return command


def _parameter(name: str, option: FieldInfo) -> inspect.Parameter:
    """An option of a run as typer reads it; a switch that may be left open is two flags."""
    kind, default = _plain(option.annotation), None if option.default == () else option.default
    flag = next((mark for mark in option.metadata if isinstance(mark, Flag)), f"--{name.replace('_', '-')}")
    if name == "corrupt":
        kind, default = str, "both"
    said = " ".join(str(option.description).split())
    how: Any = typer.Argument(help=said)
    if name != "model":
        how = typer.Option(f"{flag}/--no-{flag[2:]}" if kind == bool | None else flag, help=said)
    start = inspect.Parameter.empty if option.is_required() else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=start, annotation=Annotated[kind, how])


def _plain(annotation: Any) -> Any:
    """A type without what is said of it: a text for choices, a list for a tuple."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(parts[0])
    if origin in (Literal, tuple):
        return str if origin is Literal else list[str]
    return _plain(parts[0]) | None if type(None) in parts else annotation


@app.command()
@_taking_options
def notice(
    *,
    out: Annotated[
        str | None, typer.Option("--out", help="The run's directory; a run that was stopped goes on.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what it would cost (sites, memory, time), and run nothing.")
    ] = False,
    accept_versions: Annotated[
        bool, typer.Option("--accept-versions", help="Go on although packages have other versions; run.json notes it.")
    ] = False,
    **asked: Any,
) -> None:
    """Run NOTICE: patch clean activations into corrupted runs, select heads, ablate them, and write a report.

    Press Ctrl-C to stop when the examples in flight are done; the same command goes on from there.
    """
    if out is None and not plan:
        raise InputsError("where the run is to be written is missing: --out DIRECTORY, or --plan to run nothing")
    asked["tasks"] = [name for each in asked["tasks"] for name in (SHAPES_WORLD if each == "all" else (each,))]
    asked["corrupt"] = CORRUPT if asked["corrupt"] == "both" else [asked["corrupt"]]
    config = NoticeConfig(**{name: value for name, value in asked.items() if value is not None})
    console = _console()
    with console.status("Importing torch, transformers and transformer_lens"):
        import torch
        from transformers.utils import logging

        from hooked_vlm.notice import terminal
        from hooked_vlm.notice.pipeline import run
        from hooked_vlm.notice.planning import plan as planned
    if config.model.startswith("zoo:"):
        torch.set_num_threads(1)  # for matrices this small, a second thread costs more than it brings
    logging.disable_progress_bar()  # a checkpoint's loading is not the run's progress
    if out is None or plan:
        typer.echo(str(planned(config)))
        return
    try:
        directory = run(config, out, accept_versions=accept_versions)
    except KeyboardInterrupt as stopped:
        typer.echo(f"hooked-vlm: {str(stopped) or 'stopped'}", err=True)
        raise typer.Exit(130) from None
    terminal.show_ending(console, directory)


@app.command()
def compare(
    directories: Annotated[list[str], typer.Argument(metavar="DIR", help="Run directories, two or more.")],
    out: Annotated[str, typer.Option("--out", help="The HTML file to write.")],
) -> None:
    """Put several runs of `notice` (models, tasks, corruptions) into one report that opens offline."""
    from hooked_vlm.notice.report.compare import compare as write

    typer.echo(f"The comparison is in {write(directories, out)}")


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)
