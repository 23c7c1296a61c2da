"""Trust: a checkpoint gives Hugging Face nothing but safetensors of its own, of a size that they fill, all finite."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hooked_vlm import HookedVLM
from hooked_vlm.errors import CheckpointError, InputsError
from tests.models.checkpoints import blip_vqa, llava, save

QUERY = "text_encoder.encoder.layer.0.attention.self.query.weight"
TRACE = "PICKLED"


class Trap:
    """What is pickled of it sets an environment variable where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.putenv, (TRACE, "1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    return {
        "vqa": Path(save(folder / "vqa", *blip_vqa())),
        "llava": Path(save(folder / "llava", *llava())),
    }


@pytest.fixture
def vqa(saved: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(saved["vqa"], tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture(autouse=True)
def unpickles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch.load was reached")

    monkeypatch.setattr(torch, "load", loaded)


def change(directory: Path, file: str, **changes: Any) -> Path:
    path = directory / file
    values = json.loads(path.read_text()) if path.exists() else {}
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (values[part] if part else values)[key] = value
    path.write_text(json.dumps(values))
    return directory


def sharded(directory: Path, parts: Callable[[str], str]) -> Path:
    """The weights in one shard, with an index that names `parts(weight)` for each."""
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").rename(directory / "shard.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {name: parts(name) for name in weights}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def load(directory: Path, **options: Any) -> Any:
    return HookedVLM.from_pretrained(str(directory), **options)


def refused(directory: Path, message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(directory, **options)


# --- only safetensors, and only its own ---------------------------------------------------------------


def test_an_index_of_its_own_safetensors_loads(vqa: Path, saved: dict[str, Path]) -> None:
    whole, parts = load(saved["vqa"]), load(sharded(vqa, lambda _: "shard.safetensors"))
    assert torch.equal(whole.unembed.W_U, parts.unembed.W_U)


@pytest.mark.parametrize("few", [False, True], ids=["all", "one"])
def test_an_index_that_names_a_pickle_is_refused(vqa: Path, few: bool) -> None:
    torch.save(blip_vqa()[0].state_dict(), vqa / "a.bin")
    (vqa / "a.bin").write_bytes(pickle.dumps(Trap()))
    sharded(vqa, lambda name: "shard.safetensors" if few and name != QUERY else "a.bin")
    refused(vqa, r"index\.json of .* names 'a\.bin' for .*only safetensors are read")


@pytest.mark.parametrize("spelling", ["../outside.safetensors", "{absolute}", "in/../../outside.safetensors"])
def test_an_index_that_names_a_file_outside_is_refused(vqa: Path, spelling: str) -> None:
    outside = vqa.parent / "outside.safetensors"
    shutil.copy(vqa / "model.safetensors", outside)
    (vqa / "in").mkdir()
    sharded(vqa, lambda _: spelling.format(absolute=outside))
    refused(vqa, r"outside\.safetensors' of .* leads out of it")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_out_of_the_checkpoint_is_refused(vqa: Path, file: str) -> None:
    (vqa / file).rename(vqa.parent / file)
    (vqa / file).symlink_to(vqa.parent / file)
    refused(vqa, rf"'{file}' of .* leads out of it .*copy the file")


def test_a_link_inside_and_a_linked_directory_are_followed(vqa: Path) -> None:
    (vqa / "model.safetensors").rename(vqa / "other.safetensors")
    (vqa / "model.safetensors").symlink_to("other.safetensors")
    (vqa.parent / "linked").symlink_to(vqa)
    assert load(vqa.parent / "linked").stacks


def cached(saved: Path, cache: Path, change: Callable[[Path], Any] = lambda _: None) -> Path:
    """A hub's cache with the checkpoint as someone/model: a snapshot of links into blobs."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = cache / "models--someone--model"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / commit).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    shutil.copytree(saved, cache / "made")
    change(cache / "made")
    for file in (cache / "made").iterdir():
        file.rename(model / "blobs" / f"of-{file.name}")
        (model / "snapshots" / commit / file.name).symlink_to(f"../../blobs/of-{file.name}")
    return model / "snapshots" / commit


def test_a_hubs_cache_loads_by_name_and_by_directory(saved: dict[str, Path], tmp_path: Path) -> None:
    directory = cached(saved["vqa"], tmp_path, lambda made: sharded(made, lambda _: "shard.safetensors"))
    by_name = HookedVLM.from_pretrained("someone/model", cache_dir=tmp_path)
    assert torch.equal(by_name.unembed.W_U, load(directory).unembed.W_U)


@pytest.mark.parametrize("part", ["a.bin", "../../../../outside.safetensors", "/outside.safetensors"])
def test_an_index_in_a_hubs_cache_is_checked_too(saved: dict[str, Path], tmp_path: Path, part: str) -> None:
    cached(saved["vqa"], tmp_path, lambda made: sharded(made, lambda _: part))
    shutil.copy(saved["vqa"] / "model.safetensors", tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match=r"only safetensors are read|leads out of it"):
        HookedVLM.from_pretrained("someone/model", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}, "metadata": {}}', '{"weight_map": {"a": "b"}}'],
)
def test_an_index_that_is_none_is_refused(vqa: Path, index: str) -> None:
    (vqa / "model.safetensors").unlink()
    (vqa / "model.safetensors.index.json").write_text(index)
    refused(vqa, r"index\.json of .* (is damaged|names 3)")


def test_an_index_with_a_part_that_is_not_there_names_it(vqa: Path) -> None:
    refused(sharded(vqa, lambda _: "gone.safetensors"), r"names gone\.safetensors, which is not there")


@pytest.mark.parametrize("named", ["adapter_model.bin", "weights.bin", "../outside.safetensors", 3])
def test_weights_named_by_the_config_are_safetensors_of_its_own(vqa: Path, named: Any) -> None:
    (vqa / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    shutil.copy(vqa / "model.safetensors", vqa.parent / "outside.safetensors")
    refused(change(vqa, "config.json", transformers_weights=named), "only safetensors are read|leads out of it")


def test_a_processor_that_names_a_second_model_is_refused(vqa: Path) -> None:
    second = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str(vqa)}
    torch.save({}, vqa / "pytorch_model.bin")
    refused(change(vqa, "processor_config.json", audio_tokenizer=second), "names a second model")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_config.json", "holds an adapter"),
        ("shard-00000-model-00000-of-00001.safetensors", "distributed checkpoint"),
        ("audio_tokenizer_config.json", "second model"),
    ],
)
def test_parts_that_would_be_loaded_beside_the_weights_are_refused(vqa: Path, file: str, message: str) -> None:
    (vqa / file).write_text("{}")
    refused(vqa, message)


def test_a_tokenizer_of_another_folder_is_refused(vqa: Path) -> None:
    shutil.copy(vqa / "tokenizer.json", vqa.parent / "tokenizer.4.0.0.json")
    change(vqa, "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"])
    refused(vqa, r"tokenizer\.4\.0\.0\.json' of .* leads out of it")


def test_code_that_a_config_names_is_not_run(vqa: Path) -> None:
    (vqa / "evil.py").write_text(f"import os\nos.environ[{TRACE!r}] = '1'\nclass Config: ...\n")
    map_ = {"AutoConfig": "evil.Config", "AutoProcessor": "evil.Config", "AutoModel": "evil.Config"}
    change(vqa, "config.json", auto_map=map_)
    change(vqa, "processor_config.json", auto_map=map_)
    assert load(vqa).stacks and TRACE not in os.environ
    refused(change(vqa, "config.json", model_type="unheard-of"), r"config\.json of .* cannot be read")
    assert TRACE not in os.environ


def test_a_kernel_that_a_config_names_is_refused(vqa: Path) -> None:
    refused(change(vqa, "config.json", text_config__attn_implementation="someone/kernel"), "is code from a hub")


def test_a_file_is_no_checkpoint(vqa: Path) -> None:
    refused(vqa / "config.json", "is a file; expected a directory")


@pytest.mark.parametrize(
    "option", ["config", "gguf_file", "state_dict", "weights_only", "adapter_kwargs", "use_kernels"]
)
def test_options_that_would_read_something_else_are_refused(saved: dict[str, Path], option: str) -> None:
    with pytest.raises(InputsError, match=f"{option} is not yours to set here"):
        load(saved["vqa"], **{option: True})


# --- configs that nothing fills -----------------------------------------------------------------------

ABSURD: dict[str, Any] = {
    "text_config__num_hidden_layers": 10**9,
    "vision_config__num_hidden_layers": 5000,
    "text_config__vocab_size": 10**12,
    "text_config__hidden_size": 10**7,
    "text_config__intermediate_size": 10**9,
    "text_config__max_position_embeddings": 10**11,
    "vision_config__image_size": 10**6,
    "text_config__num_attention_heads": 0,
    "text_config__num_hidden_layers ": -1,
    "text_config__hidden_size ": -16,
    "vision_config__patch_size": 0,
    "text_config__vocab_size ": "many",
    "text_config__num_attention_heads ": 10**40,
    "text_config__hidden_size  ": 16.5,
    "text_config__hidden_size   ": float("nan"),
    "text_config__num_hidden_layers  ": float("inf"),
    "vision_config__num_hidden_layers ": 1e9,
    "num_labels": 10**9,
    "text_config": "wide",
    "vision_config": [],
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_config_is_refused_before_it_is_built(vqa: Path, name: str) -> None:
    refused(change(vqa, "config.json", **{name.strip(): ABSURD[name]}), r"config\.json|cannot be built")


@pytest.mark.parametrize("layers", [10**9, 4000])
def test_a_language_model_with_more_layers_than_its_files_have_tensors_is_refused(tmp_path: Path, layers: int) -> None:
    directory = Path(save(tmp_path / "llava", *llava(text="llama")))
    refused(change(directory, "config.json", text_config__num_hidden_layers=layers), f"num_hidden_layers = {layers}")


@pytest.mark.parametrize("depth", [700, 100_000])
def test_a_config_nested_beyond_measure_is_refused(vqa: Path, depth: int) -> None:
    (vqa / "config.json").write_text('{"a":' * depth + "1" + "}" * depth)
    refused(vqa, r"config\.json of .* (is nested too deeply|cannot be read)")


# --- numbers ------------------------------------------------------------------------------------------


def spoil(directory: Path, *values: float) -> Path:
    weights = load_file(directory / "model.safetensors")
    names = [
        QUERY,
        "text_decoder.cls.predictions.bias",
        "vision_model.post_layernorm.weight",
        "vision_model.post_layernorm.bias",
    ]
    for name, value in zip(names, values, strict=False):
        weights[name].view(-1)[1] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_weight_that_is_no_number_is_refused_by_name(vqa: Path, value: float, dtype: str) -> None:
    refused(spoil(vqa, value), rf"1 tensors hold NaN or infinities \({QUERY}: 1 of 256\).*check_weights", dtype=dtype)
    loaded = load(vqa, dtype=dtype, check_weights=False)
    with pytest.raises(CheckpointError, match=QUERY):
        HookedVLM.from_hf(loaded.hf_model)
    assert HookedVLM.from_hf(loaded.hf_model, check_weights=False).stacks


def test_of_many_such_weights_three_are_named(vqa: Path) -> None:
    refused(spoil(vqa, *[float("nan")] * 4), r"4 tensors hold NaN or infinities \(([^,]+: 1 of \d+, ){3}\.\.\.\)")


def test_weights_that_are_not_in_memory_are_not_looked_at(vqa: Path, tmp_path: Path) -> None:
    options = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offloaded")}
    assert load(spoil(vqa, float("nan")), **options).stacks
