"""Make the API reference from the docstrings: `make docs` runs `python docs/make.py DIR`.

Names that the package imports on first use are imported here, or pdoc would not find them.
"""

from __future__ import annotations

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import hooked_vlm.analysis
import hooked_vlm.notice
from hooked_vlm.deprecated import MOVED


def modules() -> list[str]:
    """Every module of the package, by dotted name; old spellings are left out."""
    found = pkgutil.walk_packages(hooked_vlm.__path__, "hooked_vlm.")
    return ["hooked_vlm", *sorted(module.name for module in found if module.name not in MOVED)]


def main(out: Path) -> None:
    """Write the reference as HTML."""
    for package in (hooked_vlm, hooked_vlm.analysis, hooked_vlm.notice):
        for name in package.__all__:
            setattr(package, name, getattr(package, name))
    pdoc.render.configure(docformat="google", math=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has already been added")  # by the package it is in
        pdoc.pdoc(*modules(), output_directory=out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
