"""A sweep equals one `run_with_hooks` a site, for every kind of site in every stack of every model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from hooked_vlm import HookedVLM, VLMInputs
from hooked_vlm.errors import (
    DoesNotFitError,
    GatedHookError,
    HookNameError,
    InputsError,
    PositionError,
    SilentHookError,
    StackError,
)
from hooked_vlm.patching import Sites, attribution, metrics, path_patching, sweep
from tests.models import drawn
from tests.models.reference import scale
from tests.models.test_hooks_live import VARIANTS, variant
from tests.models.unchecked import unchecked

ACTIVATIONS = ["z", "q", "k", "v", "pattern", "attn_scores", "result"]


def other(inputs: VLMInputs, image: bool) -> VLMInputs:
    """Inputs of the same shape with another image, or with other words."""
    if image:
        return inputs.replace(pixel_values=inputs.pixel_values.flip(-1) * 1.5 + 0.3)
    ids = inputs.input_ids
    changed = torch.where(ids > drawn.FIRST_WORD + 1, ids - 1, ids)
    return inputs.replace(input_ids=changed)


def at_last(model: HookedVLM, inputs: VLMInputs, logits: Tensor) -> Tensor:
    """Logits at each row's last real position, [batch 1 d_vocab]."""
    if model.answer_stack != model.prompt_stack or logits.shape[1] == 1:
        return logits[:, -1:]
    return logits[torch.arange(len(inputs)), inputs.last_each][:, None]


def entries(sites: Sites, cell: Any, n_rows: int) -> list[tuple[Any, ...]]:
    """What a site, a row of the table of closed sites, holds of each row of an activation: an index for each."""
    found = []
    for row in range(n_rows):
        at: list[Any] = [row, *[slice(None)] * (len(sites.axes) - 1)]
        if "position" in cell:
            at[sites.position_axis] = cell["position"]
        if "place" in cell:
            at[sites.position_axis] = sites.positions.rows[row][cell["place"]]
        if "head" in cell or "neuron" in cell:
            at[sites.axes.index(sites.unit)] = cell.get("head", cell.get("neuron"))
        found.append(tuple(at))
    return found


def by_hand(model: HookedVLM, clean: VLMInputs, corrupt: VLMInputs, sites: Sites, measure: Any) -> Tensor:
    """One whole run a site, written down plainly; [site example]."""
    _, cache = model.run_with_cache(clean, names_filter=sites.hooks)
    axis = sites.position_axis
    sites = sites.at(1 if axis is None else cache[sites.hooks[0]].shape[axis], len(clean))
    found = []
    for _, cell in sites.table.iterrows():
        name = sites.hook.format(cell.get("layer"))

        def fn(x: Tensor, hook: Any, cell: Any = cell) -> Tensor:
            for at in entries(sites, cell, len(x)):
                x[at] = cache[hook.name][at]
            return x

        found.append(measure(at_last(model, corrupt, model.run_with_hooks(corrupt, fwd_hooks=[(name, fn)]))))
    return torch.stack(found)


@st.composite
def each_row(draw: st.DrawFn, model: HookedVLM, inputs: VLMInputs, at: dict[str, Any]) -> Any:
    """Two positions of each row's own, in one of their spellings; real ones where they are the prompt's."""
    keys = at.get("attention") == "cross_attn" and at.get("activation") in ("k", "v")  # another stack's positions
    prompt = at["stack"] == model.prompt_stack and not keys
    real = [row.nonzero()[:, 0].tolist() if prompt else [0, -1] for row in inputs.is_real]
    rows = [[draw(st.sampled_from(row)) for _ in range(2)] for row in real]
    slices = [slice(place, place + 1 or None) for place, _ in rows]
    return draw(st.sampled_from([torch.tensor(rows), rows, slices]))


@st.composite
def kinds_of_sites(draw: st.DrawFn, model: HookedVLM, inputs: VLMInputs) -> tuple[str, dict[str, Any]]:
    """Any kind of site in any stack, with any choice of layers, positions and heads: a maker and its arguments."""
    stack = draw(st.sampled_from(list(model.stacks)))
    crossed = getattr(model.stacks[stack].blocks[0], "has_cross_attn", False)
    at: dict[str, Any] = {
        "stack": stack,
        "layers": draw(st.sampled_from([None, -1, [0]])),
    }
    kind = draw(st.sampled_from(["heads", "heads", "residual", "module", "neurons"]))
    if kind == "heads":
        at["attention"] = draw(st.sampled_from(["attn", "cross_attn"] if crossed else ["attn"]))
        at["activation"] = draw(st.sampled_from(ACTIVATIONS))
        at["heads"] = draw(st.sampled_from([None, 0, [-1], "all_at_once"]))
    elif kind == "residual":
        at["hook"] = draw(st.sampled_from(["resid_pre", "resid_mid", "resid_post"]))
    elif kind == "neurons":
        at["neurons"] = [0, 3]
    else:
        hooks = ["attn_out", "mlp_out", "mlp_in", "mlp.hook_pre", "ln1.hook_scale", "ln2.hook_normalized"]
        at["hook"] = draw(st.sampled_from(hooks + (["cross_attn_out", "normalized_resid_post"] if crossed else [])))
    alike = st.sampled_from([None, 0, -1, slice(0, 2), [-1, 0], "all_at_once"])
    at["positions"] = draw(alike | each_row(model, inputs, at))
    return kind, at


@pytest.mark.parametrize("lacking", [{0}, {1}, {0, 2}])
def test_layers_are_asked_what_they_have(lacking: set[int]) -> None:
    hf = drawn.blip(n_layers=3)
    for layer in lacking:
        del hf.text_encoder.encoder.layer[layer].crossattention
    model = HookedVLM.from_hf(hf)
    clean = drawn.inputs_for(hf, "vqa", [5, 5])
    having = tuple(sorted({0, 1, 2} - lacking))
    for kind, layers in (("cross_attn", having), ("attn", (0, 1, 2))):
        sites = Sites.heads(model, "text_encoder", kind)
        assert sites.layers == layers
        for corrupt in (other(clean, True), other(clean, False)):
            found = sweep(model, clean, corrupt, sites, metrics.logit_diff(1, 0), progress=False)
            expected = by_hand(model, clean, corrupt, sites, metrics.logit_diff(1, 0))
            assert torch.allclose(found.values.reshape(expected.shape), expected, atol=1e-4 * scale(expected))
    first = min(lacking)
    with pytest.raises(
        HookNameError, match=f"layers {first} of text_encoder have no 'cross_attn.hook_z'; layers .* it"
    ):
        Sites.heads(model, "text_encoder", "cross_attn", layers=[first])
    with pytest.raises(StackError, match=rf"the blocks \[{first}.*\] of text_encoder have no cross_attn.W_Q"):
        model.stacks["text_encoder"].stacked("W_Q", "cross_attn")
    assert f"cross_attn of layers {list(having)}" in repr(model)


@st.composite
def sites_of_one_activation(draw: st.DrawFn, model: HookedVLM, inputs: VLMInputs) -> Sites:
    """Any sites of a model at real positions, whose hook points fire once in a run; sets the flags that they need."""
    kind, at = draw(kinds_of_sites(model, inputs))
    model.cfg.use_attn_result = at.get("activation") == "result"
    model.cfg.use_split_qkv_input &= not at.get("hook", "").startswith("ln1.")  # fires once for each of q, k, v
    sites = getattr(Sites, kind)(model, **at)
    assume(not on_padding(model, inputs, sites))
    return sites


def on_padding(model: HookedVLM, inputs: VLMInputs, sites: Sites) -> bool:
    """True if a named position of the prompt is padding in some row."""
    hook, n = sites.hooks[0], inputs.input_ids.shape[1]
    if model.stack_of(hook) != model.prompt_stack or sites.positions in (None, "all_at_once"):
        return False
    if sites.position_axis is None or sites.axes[sites.position_axis] not in ("pos", "query_pos"):
        return False
    closed = sites.at(n, len(inputs))
    if not closed.by_row and len(closed.positions.rows[0]) == n:  # all there are
        return False
    places = closed.positions_of(closed.table, len(inputs)).T
    return any(not inputs.is_real[row, place] for row, of_row in enumerate(places.tolist()) for place in of_row)


@pytest.mark.parametrize("name", VARIANTS)
def test_hook_points_outside_of_blocks_are_swept_too(name: str) -> None:
    model, clean = variant(name)
    corrupt = other(clean, image=True)
    for hook in [n for n in model.hook_dict if "blocks." not in n and n not in ("hook_image_embed", "hook_text_embed")]:
        if hook in ("hook_pixel_values", "hook_logits"):
            continue
        positions: Any = [0, -1] if "1" not in model.hook_dict[hook].axes else None
        if positions and model.stack_of(hook) == model.prompt_stack and "pos" in model.hook_dict[hook].axes:
            positions = clean.last_each[:, None] - torch.tensor([1, 0])
        sites = Sites.point(model, hook, positions=positions)
        measure = metrics.logit_diff(1, 0)
        found = sweep(model, clean, corrupt, sites, measure, progress=False)
        expected = by_hand(model, clean, corrupt, sites, measure)
        assert torch.allclose(found.values.reshape(expected.shape), expected, atol=1e-5 * scale(expected)), hook


def test_several_metrics_and_examples_come_with_their_statistics() -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, image=True)
    sites = Sites.heads(model, "text_encoder", "cross_attn", positions=[1, 2])
    asked = {
        "difference": metrics.logit_diff([7, 9], [8, 10]),
        "p": metrics.probability(7),
        "own": lambda x: x[:, -1, 5],
    }
    found = sweep(model, clean, corrupt, sites, asked, progress=False)
    assert found.values.shape == (3, 2, 2, 2, 2)
    assert found.axis_names == ["layer", "position", "head"] and found.metric_names == ["difference", "p", "own"]
    low, high = found.bootstrap_ci()
    assert (low <= found.mean()).all() and (found.mean() <= high).all()
    assert found.permutation_pvalue().shape == (3, 2, 2, 2)
    frame = found["difference"].to_dataframe()
    cell = frame[(frame.layer == 1) & (frame.position == 2) & (frame["head"] == 0) & (frame.example == 1)]
    assert float(cell.value.iloc[0]) == pytest.approx(float(found.values[0, 1, 1, 0, 1]))
    averaged = sweep(model, clean, corrupt, sites, asked, reduce="mean", progress=False)
    assert torch.allclose(averaged.values, found.values.mean(-1))
    for i in range(2):
        alone = sweep(
            model, clean[i], corrupt[i], sites, {"d": metrics.logit_diff([7, 9][i], [8, 10][i])}, progress=False
        )
        assert torch.allclose(alone.values[0, ..., 0], found.values[0, ..., i], atol=1e-5)


@pytest.mark.parametrize("activation", ["k", "v"])
def test_a_key_of_another_stack_changes_every_position(activation: str) -> None:
    model, clean = variant("blip-captioning")
    corrupt = other(clean, image=True)
    sites = Sites.heads(model, "text_decoder", "cross_attn", positions=[5], activation=activation)
    measure = metrics.logit_diff(7, 8)
    found = sweep(model, clean, corrupt, sites, measure, progress=False)
    expected = by_hand(model, clean, corrupt, sites, measure)
    assert torch.allclose(found.values.reshape(expected.shape), expected, atol=1e-5 * scale(expected))


def test_a_metric_of_ones_own_sees_every_position() -> None:
    model, clean = variant("llava-llama-clip")
    corrupt = other(clean, image=False)
    sites = Sites.residual(model, "language_model", positions=clean.last_each[:, None] - torch.tensor([1, 0]))
    shapes = []

    def own(logits: Tensor) -> Tensor:
        shapes.append(logits.shape)
        return logits[:, 3, 7] + logits[:, -1, 8]

    found = sweep(model, clean, corrupt, sites, own, progress=False)
    assert set(shapes) == {(2, clean.input_ids.shape[1], drawn.D_VOCAB)}
    assert torch.isfinite(found.values).all() and found.values.shape == (2, 2, 2)


def test_running_out_of_memory_halves_the_chunks_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, image=True)
    sites = Sites.heads(model, "text_encoder", "cross_attn")
    expected = sweep(model, clean, corrupt, sites, metrics.logit_diff(7, 8), progress=False)
    whole, sizes = model.resume, []

    def scarce(state: Any, stack: str, injected: Any, **options: Any) -> Tensor:
        sizes.append(sum(len(rows) for rows in injected.values()) // len(clean))
        if sizes[-1] > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(state, stack, injected, **options)

    monkeypatch.setattr(model, "resume", scarce)
    found = sweep(model, clean, corrupt, sites, metrics.logit_diff(7, 8), progress=False)
    assert torch.allclose(found.values, expected.values, atol=1e-5)
    assert sizes[:4] == [20, 10, 5, 2]

    monkeypatch.setattr(model, "resume", lambda *args, **kwargs: torch.empty(2**62, dtype=torch.uint8))
    with pytest.raises(DoesNotFitError, match=r"one site alone of .*, in 2 examples in float32 ran out .*clean\[:1\]"):
        sweep(model, clean, corrupt, sites, metrics.logit_diff(7, 8), progress=False)

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(model, "resume", broken)
    with pytest.raises(RuntimeError, match="something else"):
        sweep(model, clean, corrupt, sites, metrics.logit_diff(7, 8), progress=False)


@pytest.mark.parametrize("kind", ["heads", "residual", "neurons"])
def test_hooks_of_the_users_own_are_kept_and_said(kind: str) -> None:
    model, clean = variant("blip-vqa")
    corrupt = other(clean, image=True)
    only = {"neurons": [0, 3]} if kind == "neurons" else {}
    sites = getattr(Sites, kind)(model, "text_encoder", positions=[1, 2], **only)
    steer = ("text_encoder.blocks.1.attn.hook_v", lambda v, hook: v * 0.5)
    measure = metrics.logit_diff(7, 8)
    with model.hooks([steer]), pytest.warns(UserWarning, match="hooks of its own"):
        found = sweep(model, clean, corrupt, sites, measure, progress=False)
    with model.hooks([steer]):
        expected = by_hand(model, clean, corrupt, sites, measure)
    assert torch.allclose(found.values.reshape(expected.shape), expected, atol=1e-5)
    assert expected.std() > 0 and not model.list_hooks()


def test_clean_and_corrupt_of_different_length_raise() -> None:
    model, clean = variant("blip-vqa")
    sites = Sites.heads(model, "text_encoder", "cross_attn")
    longer = drawn.inputs_for(model.hf_model, "vqa", [6, 6], n_answer=2)
    with pytest.raises(InputsError, match=r"differ in input_ids: \(2, 5\) and \(2, 6\)"):
        sweep(model, clean, longer, sites, metrics.logit_diff(7, 8))
    with unchecked(), pytest.raises(InputsError, match="metric 'metric' is 'logit_diff', a str; expected a function"):
        sweep(model, clean, clean, sites, "logit_diff")
    with pytest.raises(InputsError, match="for 3 examples was given logits with 2 rows"):
        sweep(model, clean, clean, sites, metrics.logit_diff([7, 8, 9], 8), progress=False)
    with pytest.raises(InputsError, match="expected one number for each of 2 examples"):
        sweep(model, clean, clean, sites, lambda logits: logits[:, -1], progress=False)
    with pytest.raises(PositionError, match=r"positions of .* are 0 to 4; \[9\]"):
        sweep(model, clean, clean, Sites.residual(model, "text_encoder", positions=9), metrics.logit_diff(7, 8))


@pytest.mark.parametrize("run", [sweep, attribution, path_patching])
@pytest.mark.parametrize("what", ["real tokens", "image tokens"])
def test_prompts_that_stand_elsewhere_in_their_rows_raise(run: Any, what: str) -> None:
    model, _ = variant("llava-llama-clip")
    clean = drawn.inputs_for(model.hf_model, "llava", [3, 6])
    if what == "real tokens":
        corrupt, message = clean[[1, 0]], r"their tokens in other places: in row 0 positions 0-\d+ and 0-\d+\."
    else:
        clean = clean[1]
        corrupt, message = clean.replace(input_ids=clean.input_ids.roll(1, 1)), "their image tokens in other places"
    assert clean.input_ids.shape == corrupt.input_ids.shape
    sites = Sites.heads(model, "language_model")
    more = (sites,) if run is path_patching else ()
    with pytest.raises(InputsError, match=message):
        run(model, clean, corrupt, sites, *more, metrics.logit_diff(7, 8))


def test_named_positions_of_ragged_prompts_equal_the_single_runs() -> None:
    for name, stack in (("llava-llama-clip", "language_model"), ("blip-captioning", "text_decoder")):
        model, clean = variant(name)
        corrupt = other(clean, image=True)
        assert len(set(clean.last_each.tolist())) > 1
        for run in (sweep, attribution):
            sites = Sites.heads(model, stack, positions=clean.last_each[:, None])
            found = run(model, clean, corrupt, sites, metrics.logit_diff(7, 8))
            assert found.axis_names == ["layer", "place", "head"] and found.values.shape[-3] == 1
            for i in range(len(clean)):
                alone = Sites.heads(model, stack, positions=int(clean.last_each[i]))
                expected = run(model, clean[i], corrupt[i], alone, metrics.logit_diff(7, 8))
                assert torch.allclose(found.values[..., i], expected.values[..., 0], atol=1e-4)
            assert found.effect().abs().max() > 0


def test_a_stage_that_the_run_does_not_pass_raises() -> None:
    model, clean = variant("blip-retrieval")
    for patched in (sweep, attribution):
        with pytest.raises(SilentHookError, match="never reached hook_image_embed"):
            patched(
                model, clean, other(clean, image=True), Sites.point(model, "hook_image_embed"), metrics.logit_diff(1, 0)
            )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: Sites.heads(m, "encoder"), StackError, "no stack 'encoder'; this model has vision_encoder"),
        (lambda m: Sites.heads(m, "vision_encoder", "cross_attn"), HookNameError, "have no 'cross_attn.hook_z'"),
        (lambda m: Sites.module(m, "text_encoder", "mlp_outt"), HookNameError, "closest are hook_mlp_out"),
        (lambda m: Sites.heads(m, "text_encoder", layers=7), PositionError, "layers of text_encoder are 0 to 1"),
        (lambda m: Sites.heads(m, "text_encoder", heads=[0, 9]), PositionError, "heads of text_encoder are 0 to 1"),
        (lambda m: Sites.heads(m, "text_encoder", activation="result"), GatedHookError, "use_attn_result"),
        (lambda m: Sites.heads(m, "text_encoder", heads="all"), PositionError, "'all' was asked for"),
        (lambda m: Sites.neurons(m, "text_encoder", neurons=999), PositionError, "neurons of text_encoder"),
        (lambda m: Sites.point(m, "hook_image"), HookNameError, "closest are hook_image_features"),
        (lambda m: Sites.point(m, "text_encoder.blocks.0.hook_resid_pre"), HookNameError, "use Sites.module"),
    ],
    ids=range(10),
)
def test_sites_that_do_not_exist_raise(make: Any, error: type[Exception], message: str) -> None:
    model, _ = variant("blip-vqa")
    with pytest.raises(error, match=message), unchecked():
        make(model)


def test_sites_say_what_they_are() -> None:
    model, _ = variant("blip-vqa")
    sites = Sites.heads(model, "text_encoder", "cross_attn", positions=[1, 3])
    assert repr(sites) == "Sites(text_encoder.blocks.{l}.cross_attn.hook_z: layers 0,1, positions 1,3, heads 0,1)"
    assert len(sites.at(5)) == 8 and list(sites.at(5).table.columns) == ["layer", "position", "head"]
    with pytest.raises(PositionError, match=r"sites\.at"):
        _ = Sites.heads(model, "text_encoder").table
