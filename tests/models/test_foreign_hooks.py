"""Hooks on Hugging Face's own modules: those that our order of computation passes by are not silent."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from hooked_vlm import HookedVLM
from hooked_vlm.errors import TrainingModeError
from tests.models import drawn
from tests.models.test_hooks_live import VARIANTS, variant


@contextmanager
def silence() -> Iterator[None]:
    """No warning may come."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def called(model: HookedVLM, inputs: Any) -> set[str]:
    """The Hugging Face modules that a run calls."""
    found: set[str] = set()

    def note(name: str) -> Any:
        return lambda module, args: found.add(name)

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.hf_model.named_modules()]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["blip-captioning", "llava-llama-clip"])
def test_a_hook_warns_where_the_run_does_not_call_its_module_and_nowhere_else(name: str) -> None:
    model, inputs = variant(name)
    fires = called(model, inputs)
    modules = dict(model.hf_model.named_modules())
    assert "" not in fires and any(isinstance(modules[n], nn.Linear) for n in fires)
    by_kind = {(type(module), n in fires): n for n, module in modules.items()}  # one of each kind
    for (_, is_called), path in by_kind.items():
        seen: list[int] = []
        handle = modules[path].register_forward_hook(lambda module, args, out, seen=seen: seen.append(1))
        with torch.no_grad():
            if is_called:
                with silence():
                    model(inputs)
            else:
                with pytest.warns(UserWarning, match=rf"never called {f'hf_model.{path}'.rstrip('.')}[ ,]"):
                    model(inputs)
                with silence():  # once a hook
                    model(inputs)
        handle.remove()
        assert bool(seen) == is_called


@pytest.mark.parametrize(
    "name, path, ours",
    [
        ("llava-llama-clip", "model.language_model.layers.1.self_attn", "blocks.1.attn"),
        ("llava-llama-clip", "model.vision_tower.encoder.layers.0.mlp", "vision_encoder.blocks.0.mlp"),
        ("llava-llama-clip", "model.multi_modal_projector", "projector"),
        ("blip-vqa", "text_encoder.encoder.layer.1.crossattention", "text_encoder.blocks.1"),
        ("blip-vqa", "vision_model", "vision_encoder"),
    ],
)
def test_the_warning_names_the_module_of_ours_that_does_the_work(name: str, path: str, ours: str) -> None:
    model, inputs = variant(name)
    model.hf_model.get_submodule(path).register_forward_hook(lambda module, args, out: None)
    with pytest.warns(UserWarning, match=rf"hf_model\.{path} \({ours} does its work\)"):
        model(inputs)


@pytest.mark.parametrize(
    "register", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_every_kind_of_hook_warns_in_every_way_to_run(register: str) -> None:
    runs = [
        lambda m, i: m(i),
        lambda m, i: m.run_with_cache(i),
        lambda m, i: m.run_with_hooks(i),
        lambda m, i: m.run_with_state(i),
        lambda m, i: m.generate(i, 2, return_type="tokens"),
    ]
    for run in runs:
        model, inputs = variant("llava-llama-clip")
        with silence():
            run(model, inputs)
        layer = model.hf_model.model.language_model.layers[0]
        getattr(layer, f"register_{register}")(lambda *given: None)
        with pytest.warns(UserWarning, match="did nothing"):
            run(model, inputs)


def test_many_hooks_make_one_warning_and_a_removed_one_none() -> None:
    model, inputs = variant("blip-vqa")
    handles = [m.register_forward_hook(lambda *given: None) for m in model.hf_model.modules()]
    with pytest.warns(UserWarning) as told:
        model(inputs)
    assert len(told) == 1 and ", and " in str(told[0].message)
    model, inputs = variant("blip-vqa")
    handles = [m.register_forward_hook(lambda *given: None) for m in model.hf_model.modules()]
    for handle in handles:
        handle.remove()
    with silence():
        model(inputs)


def test_a_leaf_that_is_passed_by_in_one_run_alone_warns_in_that_run() -> None:
    """Its norm is computed step by step while its scale is looked at, and heads' results by the weights."""
    model, inputs = variant("blip-vqa")
    layer = model.hf_model.text_encoder.encoder.layer[0]
    for leaf, look in (
        (
            layer.output.LayerNorm,
            lambda: model.run_with_cache(inputs, names_filter="text_encoder.blocks.0.ln3.hook_scale"),
        ),
        (layer.attention.output.dense, lambda: [model.set_use_attn_result(True), model(inputs)]),
    ):
        leaf.register_forward_hook(lambda *given: None)
        with silence():
            model(inputs)
        with pytest.warns(UserWarning, match="never called hf_model.text_encoder.encoder.layer.0"):
            look()


def test_hugging_faces_own_hooks_do_not_count() -> None:
    """Its forward puts hooks on its modules to collect hidden states, and leaves them there."""
    hf = drawn.llava()
    model, inputs = HookedVLM.from_hf(hf), drawn.inputs_for(hf, "llava", [5, 3])
    with torch.no_grad():
        hf(
            input_ids=inputs.input_ids,
            pixel_values=inputs.pixel_values,
            output_hidden_states=True,
            output_attentions=True,
        )
        assert any(module._forward_hooks for module in hf.modules())
        with silence():
            model(inputs)


def test_a_copy_watches_its_own_modules() -> None:
    model, inputs = variant("blip-vqa")
    twin = copy.deepcopy(model)
    twin.hf_model.vision_model.register_forward_hook(lambda *given: None)
    with silence():
        model(inputs)
    with pytest.warns(UserWarning, match="hf_model.vision_model"):
        twin(inputs)


# --- training mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_training_mode_raises_or_changes_nothing(name: str) -> None:
    kind, options = VARIANTS[name]
    hf = drawn.llava(**options) if kind == "llava" else drawn.blip(kind, **options)
    dropped = [module for module in hf.modules() if isinstance(module, nn.Dropout)]
    for module in dropped:
        module.p = 0.5
    model, inputs = HookedVLM.from_hf(hf), drawn.inputs_for(hf, kind, [5, 3], n_answer=2)
    with torch.no_grad():
        plain = model(inputs)
        for ask in (model.train, lambda: model.train(True)):
            with pytest.raises(TrainingModeError, match=r"leave train\(\) out.*model\.hf_model"):
                ask()
        assert not any(module.training for module in model.modules())
        assert model.train(False) is model and model.eval() is model
        hf.train()
        assert torch.equal(model(inputs), plain)
        assert not model.training and hf.training
    if kind != "itm":
        model(inputs, return_type="loss").backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
