"""The command line: `hooked-vlm`. Everything heavy is imported inside the command that needs it.

An error that the package raises on purpose is printed in one line; any other keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hooked_vlm import __version__
from hooked_vlm.errors import HookedVLMError, HookNameError

app = typer.Typer(
    name="hooked-vlm",
    help="TransformerLens for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160  # columns where nobody looks, so that no name is cut


def main() -> None:
    """Run the command line."""
    try:
        app()
    except HookedVLMError as error:
        typer.echo(f"hooked-vlm: {' '.join(str(error).split())}", err=True)
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
    from hooked_vlm.models import table

    rows = table.hook_table(table.skeleton(model, revision=revision))
    shown = [row for row in rows if filter in row.name]
    if not shown:
        raise HookNameError(f"none of the {len(rows)} hook points of {model!r} contains {filter!r}")
    if markdown:
        typer.echo(table.to_markdown(shown))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    printed = Table(*table.HEADER, box=box.SIMPLE, pad_edge=False)
    for column in printed.columns:
        column.overflow = "fold"
    for row in shown:
        printed.add_row(*(Text(cell) for cell in (row.name, row.shape, row.fires)))
    _console().print(printed)


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
def compare(
    directories: Annotated[list[str], typer.Argument(metavar="DIR", help="Run directories, two or more.")],
    out: Annotated[str, typer.Option("--out", help="The HTML file to write.")],
) -> None:
    """Put several runs of `notice` (models, tasks, corruptions) into one report that opens offline."""
    from hooked_vlm.notice.compare import compare as write

    typer.echo(f"The comparison is in {write(directories, out)}")


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)
