"""Loading: a checkpoint gives the model it was saved from, and one that cannot says why and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from hooked_vlm import HookedBLIP, HookedLLaVA, HookedVLM, VLMInputs
from hooked_vlm.errors import CheckpointError, DenseWeightError, InputsError, UnsupportedArchitectureError
from hooked_vlm.models.blip import HookedBLIPForCaptioning, HookedBLIPForQuestionAnswering, HookedBLIPForRetrieval
from tests.models.checkpoints import blip_captioner, blip_processor, blip_retrieval, blip_vqa, llava, picture, save
from tests.models.unchecked import unchecked

MAKERS = {"vqa": blip_vqa, "captioner": blip_captioner, "retrieval": blip_retrieval, "llava": llava}
FAMILIES = {
    "vqa": HookedBLIPForQuestionAnswering,
    "captioner": HookedBLIPForCaptioning,
    "retrieval": HookedBLIPForRetrieval,
    "llava": HookedLLaVA,
}
QUERY = "text_encoder.encoder.layer.0.crossattention.self.query.weight"
load = HookedVLM.from_pretrained


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save(root / name, *make()) for name, make in MAKERS.items()}


@pytest.fixture
def vqa(checkpoints: dict[str, str], tmp_path: Path) -> Path:
    """A question-answering checkpoint to be spoilt."""
    return Path(shutil.copytree(checkpoints["vqa"], tmp_path / "spoilt"))


def asked(model: HookedVLM) -> VLMInputs:
    return model.to_inputs([picture(0), picture(1)], ["is it red ?", "what color is the circle ?"])


# --- what loads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_a_checkpoint_gives_its_family_and_the_logits_it_was_saved_with(kind: str, checkpoints: dict[str, str]) -> None:
    saved, loaded = HookedVLM.from_hf(*MAKERS[kind]()), load(checkpoints[kind])
    assert type(loaded) is type(saved) is FAMILIES[kind]
    assert torch.equal(loaded(asked(loaded)), saved(asked(saved)))
    assert loaded.cfg.model_name == checkpoints[kind] and loaded.dtype == torch.float32 and not loaded.training


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, "torch.float64"])
def test_the_dtype_asked_for_is_that_of_weights_and_logits(kind: str, dtype: Any, checkpoints: dict[str, str]) -> None:
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.removeprefix("torch."))
    model, full = load(checkpoints[kind], dtype=dtype), load(checkpoints[kind])
    assert {p.dtype for p in model.hf_model.parameters()} == {model.dtype} == {expected}
    logits, exact = model(asked(model)), full(asked(full))
    assert logits.dtype == expected
    eps = max(torch.finfo(expected).eps, torch.finfo(torch.float32).eps)  # of the less exact of the two
    assert (logits.double() - exact.double()).abs().mean() <= 8 * eps * exact.abs().mean()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "options",
    [
        {"device": "cpu"},
        {"device": torch.device("cpu")},
        {"device_map": {"": "cpu"}},
        {"device_map": "auto"},
        {"revision": "main"},
        {"local_files_only": True},
        {"low_cpu_mem_usage": True},
    ],
    ids=str,
)
def test_options_of_placement_and_of_the_hub_change_no_logit(
    kind: str, options: dict[str, Any], checkpoints: dict[str, str]
) -> None:
    plain, model = load(checkpoints[kind]), load(checkpoints[kind], **options)
    assert torch.equal(model(asked(model)), plain(asked(plain)))


def test_a_path_a_string_and_the_familys_own_class_load_the_same(checkpoints: dict[str, str]) -> None:
    with unchecked():
        models = [load(Path(checkpoints["vqa"])), HookedBLIP.from_pretrained(checkpoints["vqa"])]
    assert {type(model) for model in models} == {HookedBLIPForQuestionAnswering}


def test_a_processor_may_be_brought_along(vqa: Path) -> None:
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (vqa / name).unlink()
    processor = blip_processor()
    assert load(str(vqa), processor=processor).processor is processor


def test_a_model_in_training_is_set_to_evaluation() -> None:
    hf, processor = blip_vqa()
    assert not HookedVLM.from_hf(hf.train(), processor).hf_model.training


# --- offloaded --------------------------------------------------------------------------------------

OFFLOADED = {
    "vqa": [{"": "disk"}, {"vision_model": "cpu", "text_encoder": "disk", "text_decoder": "disk"}],
    "captioner": [{"": "disk"}],
    "retrieval": [{"": "disk"}],
    "llava": [
        {"": "disk"},
        {
            "model.vision_tower": "disk",
            "model.multi_modal_projector": "cpu",
            "model.language_model": "cpu",
            "lm_head": "disk",
        },
    ],
}


@pytest.mark.parametrize(("kind", "device_map"), [(kind, m) for kind, maps in OFFLOADED.items() for m in maps], ids=str)
def test_an_offloaded_model_runs_caches_and_answers_as_one_in_memory(
    kind: str, device_map: dict[str, str], checkpoints: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    model, plain = load(checkpoints[kind], device_map=device_map, offload_folder=str(tmp_path)), load(checkpoints[kind])
    assert model.device.type == "cpu"
    logits, cache = model.run_with_cache(asked(model))
    expected, expected_cache = plain.run_with_cache(asked(plain))
    # Only weights in memory can be taken to the queries of an answer decoder's cross-attention.
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(logits, expected)
    assert cache.keys() == expected_cache.keys()
    for name in expected_cache:
        torch.testing.assert_close(cache[name], expected_cache[name])
    zeroed = [(next(name for name in model.hook_dict if name.endswith("1.attn.hook_z")), lambda z, hook: z * 0)]
    edited = model.run_with_hooks(asked(model), fwd_hooks=zeroed)
    close(edited, plain.run_with_hooks(asked(plain), fwd_hooks=zeroed))
    assert (edited - logits).abs().max() > 1e-3
    if kind != "retrieval":
        assert model.generate(asked(model), 4) == plain.generate(asked(plain), 4)


def test_a_weight_that_is_offloaded_says_so(checkpoints: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = load(checkpoints["vqa"], device_map={"": "disk"}, offload_folder=str(tmp_path))
    encoder = model.stacks["text_encoder"]
    for read in (
        lambda: encoder.blocks[0].attn.W_Q,
        lambda: encoder.blocks[0].cross_attn.b_K,
        lambda: encoder.blocks[1].mlp.W_in,
        lambda: encoder.W_E,
        lambda: model.unembed.W_U,
    ):
        with pytest.raises(DenseWeightError, match=r"of this (Linear|Embedding) is offloaded.*no device_map"):
            read()


# --- names and architectures ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/nowhere/at/all", "someone/nothing", "not a name", "./absent"])
def test_a_checkpoint_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}' is neither a directory with a config\.json nor a model"):
        load(name)


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with unchecked(), pytest.raises(CheckpointError, match="expected a hub name, a directory or 'zoo:"):
        load(name)


def test_the_wrong_family_names_the_right_one(checkpoints: dict[str, str]) -> None:
    message = "LlavaForConditionalGeneration is read by HookedLLaVA, not by HookedBLIP: use HookedLLaVA or HookedVLM"
    with pytest.raises(UnsupportedArchitectureError, match=message):
        HookedBLIP.from_pretrained(checkpoints["llava"])
    with pytest.raises(UnsupportedArchitectureError, match=message):
        HookedBLIP.from_hf(*llava())
    with pytest.raises(
        UnsupportedArchitectureError, match="read by HookedBLIPForQuestionAnswering, not by HookedLLaVA"
    ):
        HookedLLaVA.from_pretrained(checkpoints["vqa"])


def test_a_class_of_no_family_is_refused_with_those_there_are(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    bert = BertModel(config)
    supported = r"no family reads 'BertModel'; supported are .*BlipForQuestionAnswering.*Llava.*CONTRIBUTING\.md"
    with pytest.raises(UnsupportedArchitectureError, match=supported):
        HookedVLM.from_hf(bert)
    with pytest.raises(UnsupportedArchitectureError, match=supported):
        load(save(tmp_path / "bert", bert))


@pytest.mark.parametrize(
    "given", [None, "a name", torch.nn.Linear(2, 3), BertModel], ids=["nothing", "a name", "a module", "a class"]
)
def test_what_has_no_config_is_of_no_family(given: Any) -> None:
    with unchecked(), pytest.raises(UnsupportedArchitectureError, match=f"no family reads '{type(given).__name__}'"):
        HookedVLM.from_hf(given)


def change_config(directory: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_a_config_without_an_architecture_says_where_to_write_it(vqa: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"names no architecture \(model_type 'blip'\): write"):
        load(change_config(vqa, lambda config: config.pop("architectures")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="nonsense"), r"config\.json of .*spoilt' cannot be read: .*`nonsense`"),
        (lambda c: c["text_config"].update(hidden_size="wide"), r"cannot be read: .*'hidden_size'.*expected int"),
        (lambda c: c["text_config"].update(num_attention_heads=3), r"spoilt' cannot be built .*attention heads \(3\)"),
        (lambda c: c["text_config"].update(hidden_act="zap"), r"spoilt' cannot be built .*'zap'.*check both"),
    ],
)
def test_a_config_that_describes_no_model_says_what_is_wrong(
    vqa: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(change_config(vqa, change))


@pytest.mark.parametrize("content", ["{not json", "", "[]"])
def test_a_damaged_config_is_named(vqa: Path, content: str) -> None:
    (vqa / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json of .*spoilt' cannot be read: .*Get the file again"):
        load(str(vqa))


# --- weights ----------------------------------------------------------------------------------------


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


DIFFERENCES = {
    "missing": (lambda w: w.pop(QUERY), rf"1 missing \({QUERY}\)"),
    "extra": (lambda w: w.update(surplus=torch.zeros(2)), r"1 unexpected \(surplus\)"),
    "mismatched": (
        lambda w: w.update({QUERY: torch.zeros(3, 16)}),
        rf"1 mismatched \({QUERY} is \(3, 16\) and not \(16, 16",
    ),
    "renamed": (lambda w: w.update(other=w.pop(QUERY)), rf"1 missing \({QUERY}\); 1 unexpected \(other\)"),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_weights_that_differ_are_named_and_load_only_when_asked(vqa: Path, kind: str) -> None:
    change, message = DIFFERENCES[kind]
    directory = change_weights(vqa, change)
    with pytest.raises(CheckpointError, match=rf"spoilt' are not this architecture's: {message}.*strict=False"):
        load(directory)
    loaded, saved = load(directory, strict=False), HookedVLM.from_hf(*blip_vqa())
    assert loaded(asked(loaded)).isfinite().all()
    assert torch.equal(loaded.unembed.W_U, saved.unembed.W_U)
    same_query = torch.equal(loaded.hf_model.get_parameter(QUERY), saved.hf_model.get_parameter(QUERY))
    assert same_query == (kind == "extra")


def test_buffers_that_older_checkpoints_saved_are_no_difference(vqa: Path) -> None:
    ids = {
        f"{stack}.embeddings.position_ids": torch.arange(40)[None] for stack in ("text_encoder", "text_decoder.bert")
    }
    model = load(change_weights(vqa, lambda weights: weights.update(ids)))
    saved = HookedVLM.from_hf(*blip_vqa())
    assert torch.equal(model(asked(model)), saved(asked(saved)))


def test_many_differences_are_counted_and_not_all_listed(vqa: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "crossattention.self" in name]:
            del weights[name]

    with pytest.raises(CheckpointError, match=r"24 missing \(\S+, \S+, \S+, \.\.\.\)\. Check that config\.json"):
        load(change_weights(vqa, drop))


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"garbage" * 100])
def test_damaged_weights_are_named(vqa: Path, spoil: Callable[[bytes], bytes]) -> None:
    weights = vqa / "model.safetensors"
    weights.write_bytes(spoil(weights.read_bytes()))
    with pytest.raises(CheckpointError, match=r"weights of .*spoilt' cannot be loaded: .*damaged file fetched again"):
        load(str(vqa))


def test_pickled_weights_are_never_read(vqa: Path) -> None:
    (vqa / "model.safetensors").unlink()
    torch.save(blip_vqa()[0].state_dict(), vqa / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pickled weights alone \(pytorch_model\.bin\).*hooked-vlm convert .* OUT`"
    ):
        load(str(vqa))


# --- processors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["processor_config.json", "tokenizer.json", "tokenizer_config.json"], "processor of .* cannot be loaded"),
        (["processor_config.json"], "processor of .* cannot be loaded"),
        (["tokenizer.json", "tokenizer_config.json"], r"knows no words: its tokenizer\.json"),
        (["tokenizer.json"], r"knows no words: its tokenizer\.json"),
    ],
)
def test_a_missing_processor_or_vocabulary_says_how_to_save_one(vqa: Path, names: list[str], message: str) -> None:
    for name in names:
        (vqa / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{message}.*save_pretrained, or pass processor="):
        load(str(vqa))


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json"])
def test_a_damaged_processor_is_named(vqa: Path, name: str) -> None:
    (vqa / name).write_text("{{")
    with pytest.raises(CheckpointError, match=r"processor of .*spoilt' cannot be loaded \(.*pass processor="):
        load(str(vqa))


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["flot16", "int8", torch.int64, 3, "Tensor", "nn"])
def test_a_dtype_that_is_none_is_refused(checkpoints: dict[str, str], dtype: Any) -> None:
    with unchecked(), pytest.raises(InputsError, match=rf"dtype is {dtype!r}; expected a floating-point one such as"):
        load(checkpoints["vqa"], dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", -1, 3.5])
def test_a_device_that_is_not_here_is_refused(checkpoints: dict[str, str], device: Any) -> None:
    with unchecked(), pytest.raises(InputsError, match=rf"device is {device!r}, which is not here .*try 'cpu'"):
        load(checkpoints["vqa"], device=device)


def test_a_device_that_holds_no_numbers_is_refused(checkpoints: dict[str, str]) -> None:
    with pytest.raises(InputsError, match=r"device is 'meta', which holds no numbers.*try 'cpu'"):
        load(checkpoints["vqa"], device="meta")


def test_a_device_and_a_device_map_are_one_too_many(checkpoints: dict[str, str]) -> None:
    with pytest.raises(InputsError, match="device and device_map were both given: give one"):
        load(checkpoints["vqa"], device="cpu", device_map="auto")


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("trust_remote_code", "no code of a checkpoint is ever run"),
        ("use_safetensors", "only safetensors are read"),
        ("attn_implementation", "attention is computed by hooked_vlm"),
        ("torch_dtype", "it is called dtype"),
        ("output_loading_info", "checked already"),
        ("ignore_mismatched_sizes", "strict=False does that"),
    ],
)
def test_options_that_are_ours_are_refused_with_the_reason(
    checkpoints: dict[str, str], option: str, reason: str
) -> None:
    with pytest.raises(InputsError, match=f"{option} is not yours to set here: .*{reason}"):
        load(checkpoints["vqa"], **{option: True})


def test_a_misspelt_option_is_named(checkpoints: dict[str, str]) -> None:
    with pytest.raises(InputsError, match=r"cannot be loaded with the options devicemap: .*'devicemap'"):
        load(checkpoints["vqa"], devicemap="auto")


def test_a_device_map_that_is_none_is_named(checkpoints: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be built as .*device_map.*but found nonsense"):
        load(checkpoints["vqa"], device_map="nonsense")
