"""Finding a checkpoint of the zoo: by name, byte for byte, offline, and without the weight of torch."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from hooked_vlm import zoo

names = pytest.mark.parametrize("name", sorted(zoo.ZOO))


def test_the_zoo_lists_what_ships() -> None:
    shipped = [folder.parent.name for folder in pathlib.Path(zoo.__file__).parent.glob("*/model.safetensors")]
    assert sorted(zoo.ZOO) == sorted(shipped) and "blip-shapes" in shipped


@names
def test_a_checkpoint_is_found_with_and_without_the_prefix(name: str) -> None:
    folder = zoo.locate(name)
    assert folder == zoo.locate(f"zoo:{name}")
    assert (folder / "model.safetensors").is_file()
    assert (folder / "README.md").is_file()


@names
def test_every_file_but_the_card_is_listed(name: str) -> None:
    there = {file.name for file in zoo.locate(name).iterdir()}
    assert there == {*zoo.ZOO[name], "README.md"}


@names
def test_a_checkpoint_has_at_most_eight_megabytes(name: str) -> None:
    assert sum(file.stat().st_size for file in zoo.locate(name).iterdir()) <= 8_000_000


@pytest.mark.parametrize("name", ["zoo:clip-shapes", "blip", "zoo:", "../zoo/blip-shapes", "zoo:zoo:blip-shapes"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(zoo.UnknownCheckpointError) as raised:
        zoo.locate(name)
    known = ", ".join(f"zoo:{each}" for each in sorted(zoo.ZOO))
    assert str(raised.value) == f"The zoo has no checkpoint {name!r}: it has {known}."


@pytest.fixture
def copied(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    shutil.copytree(zoo.locate("blip-shapes"), tmp_path / "blip-shapes")
    monkeypatch.setattr(zoo, "_HERE", tmp_path)
    return tmp_path / "blip-shapes"


@pytest.mark.parametrize("file", sorted(zoo.ZOO["blip-shapes"]))
def test_one_changed_bit_in_any_file_is_found(copied: pathlib.Path, file: str) -> None:
    assert zoo.locate("blip-shapes") == copied
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / file).write_bytes(data)
    with pytest.raises(zoo.DamagedCheckpointError, match=f"{file} has the SHA-256 .* was shipped: reinstall"):
        zoo.locate("blip-shapes")


def test_a_missing_file_is_named(copied: pathlib.Path) -> None:
    (copied / "config.json").unlink()
    with pytest.raises(zoo.DamagedCheckpointError, match=r"config\.json is missing: reinstall"):
        zoo.locate("blip-shapes")


@pytest.mark.parametrize("file", ["model.safetensors.index.json", "pytorch_model.bin", "modeling.py", "adapter/w.bin"])
def test_a_file_that_was_not_shipped_is_refused(copied: pathlib.Path, file: str) -> None:
    (copied / file).parent.mkdir(exist_ok=True)
    (copied / file).touch()
    with pytest.raises(zoo.DamagedCheckpointError, match=rf"holds {file.partition('/')[0]}, which was not shipped"):
        zoo.locate("blip-shapes")


def test_finding_a_checkpoint_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, json; from hooked_vlm import zoo; zoo.locate('blip-shapes'); "
    code += "print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert not {"torch", "transformers", "datasets"} & set(loaded)
