"""Small trained models that ship with the package, by name: `zoo:blip-shapes` and `zoo:llava-shapes`.

They live in the shapes world (`hooked_vlm.datasets.shapes`), load offline like any checkpoint, and are what
the tests, the demo and the notebooks run on. This module finds them and verifies their bytes; it imports
neither torch nor transformers, and costs a hash of some 6 MB a call. `python -m hooked_vlm.zoo.train` makes
them again, `python -m hooked_vlm.zoo.evaluate` measures them.
"""

import hashlib
import json
import pathlib

from hooked_vlm.errors import DamagedCheckpointError, UnknownCheckpointError

PREFIX = "zoo:"
_HERE = pathlib.Path(__file__).parent
_CHECKSUMS = _HERE / "checksums.json"
CARD = "README.md"  # read by people alone, and so not listed


def _listing() -> dict[str, dict[str, str]]:
    listing: dict[str, dict[str, str]] = json.loads(_CHECKSUMS.read_text(encoding="utf-8"))
    return listing


def digest(file: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Args:
        file: The file.

    Returns:
        64 characters.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


ZOO: dict[str, dict[str, str]] = _listing()
"""Of each checkpoint, the SHA-256 of each of its files."""


def locate(name: str) -> pathlib.Path:
    """The folder of a checkpoint of the zoo, every file of it verified.

    Args:
        name: "zoo:blip-shapes" or "blip-shapes", "zoo:llava-shapes" or "llava-shapes".

    Returns:
        A folder that Hugging Face's `from_pretrained` reads.

    Raises:
        UnknownCheckpointError: There is no such checkpoint.
        DamagedCheckpointError: A file is missing, differs from the listed one, or is not listed.

    Example:
        >>> locate("zoo:blip-shapes").name
        'blip-shapes'
    """
    files = ZOO.get(name.removeprefix(PREFIX))
    if files is None:
        known = ", ".join(PREFIX + each for each in sorted(ZOO))
        raise UnknownCheckpointError(f"The zoo has no checkpoint {name!r}: it has {known}.")
    folder = _HERE / name.removeprefix(PREFIX)
    for file, listed in files.items():
        if not (folder / file).is_file():
            raise DamagedCheckpointError(f"{folder / file} is missing: reinstall hooked-vlm.")
        if (found := digest(folder / file)) != listed:
            raise DamagedCheckpointError(
                f"{folder / file} has the SHA-256 {found}, and {listed} was shipped: reinstall hooked-vlm."
            )
    if strangers := sorted({each.name for each in folder.iterdir()} - {*files, CARD}):
        raise DamagedCheckpointError(
            f"{folder} holds {', '.join(strangers[:3])}, which was not shipped: take it away, or reinstall hooked-vlm."
        )
    return folder
