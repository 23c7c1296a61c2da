"""Checkpoints that were published as pickles are converted in a process of its own, checked, and in place whole."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hooked_vlm import HookedVLM, cli, unpickling
from hooked_vlm.errors import CheckpointError, UnsupportedArchitectureError
from hooked_vlm.models import conversion
from hooked_vlm.models.conversion import convert
from tests.models.checkpoints import blip_captioner, blip_retrieval, blip_vqa, llava, picture, save
from tests.models.reference import hf_logits, scale
from tests.models.test_published import with_towers

KINDS = {"vqa": blip_vqa, "caption": blip_captioner, "itm": blip_retrieval, "llava": llava}
TEXT = {"llava": "<image> is it red ?"}


def pickled(directory: Path, kind: str = "vqa", *, shards: int = 1, zipped: bool = True) -> Path:
    """A checkpoint as BLIP's were published: a pickled state dict with tied weights and buffers in it."""
    hf, processor = KINDS[kind]()
    save(directory, hf, processor)
    (directory / "model.safetensors").unlink()
    state = hf.state_dict()
    if kind == "vqa":
        state |= {
            f"{name}.embeddings.position_ids": torch.arange(40)[None] for name in ("text_encoder", "text_decoder.bert")
        }
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return directory
    names = [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
    where = {name: names[i % shards] for i, name in enumerate(state)}
    for part in names:
        torch.save({name: state[name] for name in state if where[name] == part}, directory / part)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pickled(tmp_path_factory.mktemp("pickled") / "vqa")


@pytest.fixture
def vqa(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "vqa"))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started."""

    def started(*_: Any) -> Any:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(conversion, "_child", started)


def refused(directory: Path, out: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(str(directory), out)
    assert not [each for each in out.parent.iterdir() if each.name.endswith(".part")]


# --- what it makes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("vqa", {"zipped": False}), ("caption", {"shards": 2}), ("itm", {}), ("llava", {"shards": 3})],
    ids=["vqa-legacy", "caption-2-shards", "itm", "llava-3-shards"],
)
def test_the_command_that_the_error_names_makes_the_same_model(
    kind: str,
    layout: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, out = pickled(tmp_path / "it's pickled", kind, **layout), tmp_path / "out"
    with pytest.raises(
        CheckpointError, match=r"pickled weights alone \(pytorch_model\.bin.*`hooked-vlm convert"
    ) as raised:
        HookedVLM.from_pretrained(str(directory))
    command = str(raised.value).split("`")[1].replace("OUT", f"'{out}'")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    if kind in ("itm", "llava"):
        in_process(monkeypatch)  # starting torch anew takes seconds
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = capsys.readouterr().out.splitlines()
    hf = KINDS[kind]()[0]
    assert "tensors" in told[0] and "bit for bit" in told[0]
    assert type(hf).__name__ in told[1] and "largest difference" in told[1]
    assert str(out) in told[2]
    model = HookedVLM.from_pretrained(str(out))
    inputs = model.to_inputs(picture(), TEXT.get(kind, "is it red ?"))
    inputs = inputs.replace(decoder_input_ids=torch.tensor([[4, 9]]) if kind == "vqa" else None)
    theirs = hf_logits(hf, kind, inputs)
    assert (model(inputs) - theirs).abs().max() < 1e-4 * scale(theirs)
    for name, parameter in hf.state_dict().items():
        assert torch.equal(model.hf_model.state_dict()[name], parameter), name
    assert not list(out.glob("*.bin*")) and oct(out.stat().st_mode) == oct(directory.stat().st_mode)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


@given(st.data())
@settings(max_examples=25)
def test_every_tensor_is_written_as_it_was_pickled(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
    state: dict[str, torch.Tensor] = {}
    for i in range(data.draw(st.integers(1, 5))):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        tensor = (torch.randn(shape) * 100).to(data.draw(st.sampled_from(dtypes)))
        if tensor.is_floating_point() and tensor.numel() and data.draw(st.booleans()):
            tensor.view(-1)[0] = float("nan")
        state[f"weight.{i}"] = tensor
        how = data.draw(st.sampled_from(["alone", "tied", "transposed", "part"]))
        if how == "tied":
            state[f"tied.{i}"] = tensor
        elif how == "transposed":
            state[f"tied.{i}"] = tensor.T if tensor.ndim == 2 else tensor
        elif how == "part":
            state[f"tied.{i}"] = tensor.reshape(-1)[: tensor.numel() // 2]
    folder = tmp_path_factory.mktemp("weights")
    torch.save(state, folder / "a.bin", _use_new_zipfile_serialization=data.draw(st.booleans()))
    shapes = unpickling.converted(str(folder / "a.bin"), str(folder / "a.safetensors"))
    written = load_file(folder / "a.safetensors")
    assert shapes == {name: list(tensor.shape) for name, tensor in state.items()} and written.keys() == state.keys()
    for name, tensor in state.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


# --- what it refuses ----------------------------------------------------------------------------------------


class Trap:
    """What is pickled of it makes a directory where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.place,)


HOSTILE = {
    "bare": lambda trap, weights: weights.write_bytes(pickle.dumps(trap, protocol=2)),
    "zipped": lambda trap, weights: torch.save(trap, weights),
    "older": lambda trap, weights: torch.save({"a": trap}, weights, _use_new_zipfile_serialization=False),
    "among weights": lambda trap, weights: torch.save({"weight": torch.zeros(2), "trap": trap}, weights),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_pickle_is_named_and_runs_nothing(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    HOSTILE[how](Trap(tmp_path / "trapped"), tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=r"it asks for \w+\.mkdir, which is no tensor; nothing of it was run"):
        unpickling.converted(str(tmp_path / "a.bin"), str(tmp_path / "a.safetensors"))
    assert not (tmp_path / "trapped").exists() and not (tmp_path / "a.safetensors").exists()


def test_a_checkpoint_with_a_hostile_pickle_is_refused_by_name(vqa: Path, tmp_path: Path) -> None:
    HOSTILE["among weights"](Trap(tmp_path / "trapped"), vqa / "pytorch_model.bin")
    refused(vqa, tmp_path / "out", r"pytorch_model\.bin of .*vqa' is not converted: it asks for \w+\.mkdir")
    assert not (tmp_path / "trapped").exists() and not (tmp_path / "out").exists()


def hold(weights: Path, content: Any) -> None:
    torch.save(content, weights)


def cut_off(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:2000])


def inflated(weights: Path) -> None:
    """A tensor of stride 0, whose numbers are no more than one."""
    torch.save({"a": torch.zeros(1).expand(10**6)}, weights)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda w: hold(w, [torch.zeros(1)]), "it holds a list; expected tensors by name"),
        (lambda w: hold(w, {}), "expected tensors by name"),
        (lambda w: hold(w, {"model": {"a": torch.zeros(1)}}), "its 'model' is a dict; expected tensors by name"),
        (lambda w: hold(w, {"a": torch.zeros(2, 2).to_sparse()}), "'a' is no dense tensor"),
        (inflated, "'a' has 1,000,000 numbers, more than the file can hold"),
        (cut_off, "it cannot be read as weights"),
        (lambda w: w.write_bytes(b""), "it cannot be read as weights"),
        (lambda w: w.write_bytes(b"garbage" * 99), "it cannot be read as weights"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(vqa: Path, spoil: Any, reason: str, tmp_path: Path) -> None:
    spoil(vqa / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=reason):
        unpickling.converted(str(vqa / "pytorch_model.bin"), str(tmp_path / "a.safetensors"))


def test_a_process_that_is_killed_is_told(vqa: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "killed.py"
    program.write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(conversion, "_UNPICKLES", (str(program),))
    refused(vqa, tmp_path / "out", r"the process that reads it ended \(signal SIGKILL")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unread")
def test_a_place_that_is_taken_is_refused_and_an_empty_one_is_not(vqa: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    refused(vqa, tmp_path / "full", "full' is not empty: name a new directory")
    refused(vqa, tmp_path / "file", "file' is a file: name a new directory")
    refused(vqa, tmp_path / "link", "link' is a symbolic link")
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("unread")
def test_what_need_not_or_cannot_be_converted_is_not_unpickled(vqa: Path, tmp_path: Path) -> None:
    refused(
        Path(save(tmp_path / "safe", *blip_vqa())), tmp_path / "out", r"has safetensors \(model\.safetensors\): load it"
    )
    (vqa / "pytorch_model.bin").rename(tmp_path / "outside.bin")
    refused(vqa, tmp_path / "out", "has no weights: neither model.safetensors nor pytorch_model.bin")
    (vqa / "pytorch_model.bin").symlink_to(tmp_path / "outside.bin")
    refused(vqa, tmp_path / "out", "'pytorch_model.bin' of .* leads out of it")
    other = Path(save(tmp_path / "other", with_towers(text="qwen3")))
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises(UnsupportedArchitectureError, match="'qwen3'"):
        convert(str(other), tmp_path / "out")


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("../outside.bin", "outside.bin' of .* leads out of it"),
        ("a.pt", "is damaged: expected a weight_map from names to .bin files"),
        ("missing.bin", "names missing.bin, which is not there"),
        (None, "is damaged"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(vqa: Path, parts: str | None, message: str, tmp_path: Path) -> None:
    shutil.move(vqa / "pytorch_model.bin", tmp_path / "outside.bin")
    values = {} if parts is None else {"weight_map": {"a": parts}}
    (vqa / "pytorch_model.bin.index.json").write_text(json.dumps(values))
    refused(vqa, tmp_path / "out", message)


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work, done here, for tests of what comes after it."""
    monkeypatch.setattr(
        conversion, "_child", lambda job: {"shapes": [unpickling.converted(*pair) for pair in job["files"]]}
    )


def test_nothing_is_kept_of_a_model_that_does_not_compute_what_it_should(
    vqa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    out = tmp_path / "out"
    weights = torch.load(vqa / "pytorch_model.bin", weights_only=True)
    torch.save({name: tensor for name, tensor in weights.items() if "query" not in name}, vqa / "pytorch_model.bin")
    refused(vqa, out, r"was unpickled, and is no checkpoint that can be used: the weights of '.*out' are not")
    torch.save(weights, vqa / "pytorch_model.bin")
    family = HookedVLM._family("BlipForQuestionAnswering", None)
    with monkeypatch.context() as patched:
        theirs = family._hf_logits
        patched.setattr(family, "_hf_logits", lambda self, inputs: theirs(self, inputs) * 1.001)
        refused(vqa, out, "its logits are not Hugging Face's")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        refused(vqa, out, r"out' cannot be written \(No space left on device\)")
    assert not out.exists()
    out.mkdir()
    made = convert(str(vqa), out)
    assert made.path == out and made.difference < 1e-5 * made.scale and made.n_tensors == len(weights)


def test_the_pickles_on_the_hub_are_looked_for_and_not_fetched(
    vqa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("0" * 40)
    shutil.copytree(vqa, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    command = r"`hooked-vlm convert some/model OUT --revision main`"
    with pytest.raises(CheckpointError, match=command):
        HookedVLM.from_pretrained("some/model", cache_dir=str(tmp_path / "hub"), revision="main", local_files_only=True)
