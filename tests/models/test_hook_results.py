"""What a hook gives back is what it was given in all but its numbers, whichever way the hook came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hooked_vlm import HookedVLM
from hooked_vlm.errors import HookFunctionError
from tests.models import checkpoints
from tests.models.test_hooks_live import VARIANTS, variant

Z = "text_encoder.blocks.0.cross_attn.hook_z"


def in_silence(edit: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """An edit in place that returns nothing."""

    def quiet(x: Tensor) -> None:
        edit(x)

    return quiet


OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "fewer rows": lambda x: x[:1],
    "one axis more": lambda x: x[None],
    "transposed": lambda x: x.transpose(-1, -2),
    "half of it": lambda x: x[..., : x.shape[-1] // 2],
    "one position less": lambda x: x[:, 1:],
    "a scalar": lambda x: x.sum(),
    "a number": lambda x: 0.0,
    "an array": lambda x: x.numpy(),
    "a tuple": lambda x: (x,),
    "False": lambda x: False,
    "half precision": lambda x: x.half(),
    "double precision": lambda x: x.double(),
    "integers": lambda x: x.long(),
    "another device": lambda x: x.to("meta"),
    "resized in place": in_silence(lambda x: x.resize_(1, *x.shape[1:])),
    "squeezed in place": in_silence(lambda x: x.unsqueeze_(0)),
    "transposed in place": in_silence(lambda x: x.transpose_(-1, -2)),
}
LAWFUL: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda x: None,
    "itself": lambda x: x,
    "a copy": lambda x: x.clone(),
    "a view": lambda x: x[:],
    "an expanded row": lambda x: x[:1].expand_as(x),
    "an edit in place": lambda x: x.mul_(2.0),
    "an edit in place without a word": in_silence(lambda x: x.mul_(2.0)),
    "a parameter": lambda x: torch.nn.Parameter(x.detach().clone()),
}


def ways(model: HookedVLM, inputs: Any) -> dict[str, Callable[[str, Any], Any]]:
    """Every way to put a hook on a model and run it."""

    def added(name: str, fn: Any, **options: Any) -> Any:
        model.add_hook(name, fn, **options)
        return model(inputs)

    def in_context(name: str, fn: Any, run: Callable[[], Any]) -> Any:
        with model.hooks([(name, fn)]):
            return run()

    def resumed(name: str, fn: Any) -> Any:
        _, state = model.run_with_state(inputs)
        stack = model.prompt_stack
        rows = state.resid_pre(stack, 0)
        return in_context(name, fn, lambda: model.resume(state, stack, {0: rows}))

    def at_the_point(name: str, fn: Any, register: str) -> Any:
        point = model.hook_dict[name]
        if register == "add_hook":
            point.add_hook(fn)
        else:
            point.register_forward_hook(lambda module, args, output: fn(output, hook=module))
        return model(inputs)

    return {
        "run_with_hooks": lambda n, fn: model.run_with_hooks(inputs, fwd_hooks=[(n, fn)]),
        "a filter": lambda n, fn: model.run_with_hooks(inputs, fwd_hooks=[(lambda m: m == n, fn)]),
        "hooks": lambda n, fn: in_context(n, fn, lambda: model(inputs)),
        "add_hook": added,
        "a permanent hook": lambda n, fn: added(n, fn, is_permanent=True),
        "the hook point's add_hook": lambda n, fn: at_the_point(n, fn, "add_hook"),
        "PyTorch's own": lambda n, fn: at_the_point(n, fn, "register_forward_hook"),
        "generate": lambda n, fn: in_context(n, fn, lambda: model.generate(inputs, 2, return_type="tokens")),
        "resume": resumed,
        "run_with_state": lambda n, fn: in_context(n, fn, lambda: model.run_with_state(inputs)),
    }


@pytest.mark.parametrize("other", OTHERS)
def test_a_hook_that_gives_back_something_else_raises_and_names_both(other: str) -> None:
    model, inputs = variant("blip-vqa")
    with torch.no_grad(), pytest.raises(HookFunctionError, match=rf"{Z} was given \[2, 5, 2, 8\] torch.float32 on cpu"):
        model.run_with_hooks(inputs, fwd_hooks=[(Z, lambda z, hook: OTHERS[other](z))])
    assert not model.list_hooks()


@pytest.mark.parametrize("way", ways(*variant("blip-vqa")))
def test_it_raises_whichever_way_the_hook_came(way: str) -> None:
    model, inputs = variant("blip-vqa")
    with torch.no_grad(), pytest.raises(HookFunctionError, match=rf"{Z} .* gave back \[1, .*same shape"):
        ways(model, inputs)[way](Z, lambda z, hook: z[:1])


@pytest.mark.parametrize("lawful", LAWFUL)
def test_what_keeps_its_form_runs_on(lawful: str) -> None:
    model, inputs = variant("blip-vqa")
    with torch.no_grad():
        plain = model(inputs)
        edited = model.run_with_hooks(inputs, fwd_hooks=[(Z, lambda z, hook: LAWFUL[lawful](z))])
    changes = lawful == "an expanded row" or "edit" in lawful
    assert torch.equal(edited, plain) != changes


@pytest.mark.parametrize("name", VARIANTS)
def test_every_hook_point_refuses_fewer_rows(name: str) -> None:
    """Broadcasting would hide a lost row at most of them: one row's numbers would stand for all."""
    model, _ = variant(name)
    for hook, point in model.hook_dict.items():
        point.add_hook(lambda x, hook: x[:1])
        with pytest.raises(HookFunctionError, match=f"a hook at {hook} was given"):
            point(torch.zeros(2, *(3,) * (len(point.axes) - 1)))


def test_a_view_refuses_it_too() -> None:
    view = HookedVLM.from_hf(*checkpoints.blip_vqa()).focus("text_encoder", images=checkpoints.picture())
    with pytest.raises(HookFunctionError, match=r"text_encoder\.blocks\.0\.attn\.hook_z"):
        view.run_with_hooks("is it red?", fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z[:, :1])])


@pytest.mark.parametrize("other", ["fewer rows", "transposed", "double precision", "a number"])
def test_a_backward_hook_gives_back_a_gradient_of_the_same_form(other: str) -> None:
    model, inputs = variant("llava-llama-clip")
    point = "blocks.1.hook_attn_out"
    with (
        model.hooks(bwd_hooks=[(point, lambda grad, hook: OTHERS[other](grad))]),
        pytest.raises(HookFunctionError, match=rf"{point} was given a gradient of \[2, "),
    ):
        model(inputs, return_type="loss").backward()


@pytest.mark.parametrize("returned", [lambda g: None, lambda g: 2.0 * g, lambda g: (2.0 * g,)])
def test_a_backward_hook_that_keeps_the_form_acts(returned: Callable[[Tensor], Any]) -> None:
    model, inputs = variant("llava-llama-clip")
    seen: dict[str, Tensor] = {}

    def keep(grad: Tensor, hook: Any) -> None:
        seen[hook.name] = grad.clone()

    edit = ("blocks.1.hook_mlp_out", lambda grad, hook: returned(grad))
    hooks = [edit, ("blocks.1.mlp.hook_post", keep)]
    with model.hooks(bwd_hooks=hooks[1:]):
        model(inputs, return_type="loss").backward()
    plain = seen.copy()
    with model.hooks(bwd_hooks=hooks):
        model(inputs, return_type="loss").backward()
    factor = 1.0 if returned(torch.ones(1)) is None else 2.0
    assert torch.allclose(seen["blocks.1.mlp.hook_post"], factor * plain["blocks.1.mlp.hook_post"], atol=1e-6)


def test_a_hook_point_takes_no_pre_hook() -> None:
    model, _ = variant("blip-vqa")
    for register in ("register_forward_pre_hook", "register_full_backward_pre_hook"):
        with pytest.raises(HookFunctionError, match=f"{Z} takes no pre-hook"):
            getattr(model.hook_dict[Z], register)(lambda *given: None)
