"""A block does what its description says: every capability, in every combination, equals the formulas written out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from einops import einsum
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hooked_vlm.components.attention import AttentionLeaves, AttentionPass, HookedAttention
from hooked_vlm.components.block import Block, Branch
from hooked_vlm.components.hook_point import HookPoint
from hooked_vlm.components.masks import AttentionMask
from hooked_vlm.components.mlp import HookedMLP
from hooked_vlm.components.norm import HookedNorm
from hooked_vlm.components.stack import Stack, StackPass
from hooked_vlm.components.weights import Projection
from hooked_vlm.errors import StackError
from hooked_vlm.models.config import stack_config

D_MODEL, D_HEAD, D_SOURCE, D_MLP = 6, 4, 5, 7
RESIDS = {"attn": "mid", "cross_attn": "mid_cross", "mlp": "post"}


@dataclass(frozen=True)
class Kind:
    """What one branch has."""

    norm: bool
    norm_of_output: bool
    norm_of_sum: bool
    gated: bool
    qk_norms: bool = False
    softcap: float | None = None
    scale: float | None = None


@dataclass
class Case:
    """A stack, and what its pass is given."""

    stack: Stack
    kinds: list[dict[str, Kind]]
    gates: list[dict[str, Tensor]]
    x: Tensor
    source: Tensor
    mask: AttentionMask

    def given(self, **options: Any) -> StackPass:
        return StackPass(self.mask, source=self.source, **options)


def linear(d_in: int, d_out: int) -> nn.Linear:
    return nn.Linear(d_in, d_out, dtype=torch.float64)


def norm(d: int) -> HookedNorm:
    leaf = nn.LayerNorm(d, dtype=torch.float64)
    nn.init.normal_(leaf.weight)
    nn.init.normal_(leaf.bias)
    return HookedNorm(leaf)


def branch(draw: Any, name: str, cfg: Any) -> tuple[Branch, Kind, Tensor]:
    switch = st.booleans()
    of_attention: dict[str, Any] = {}
    if name == "mlp":
        module: Any = HookedMLP(linear(D_MODEL, D_MLP), linear(D_MLP, D_MODEL), nn.GELU())
    else:
        kv = D_HEAD * (cfg.n_key_value_heads or cfg.n_heads)
        d_source = D_SOURCE if name == "cross_attn" else D_MODEL
        shapes = [(D_MODEL, D_HEAD * cfg.n_heads), (d_source, kv), (d_source, kv), (D_HEAD * cfg.n_heads, D_MODEL)]
        of_attention = {
            "qk_norms": draw(switch),
            "softcap": draw(st.sampled_from([None, 0.5])),
            "scale": draw(st.sampled_from([None, 0.3])),
        }
        options = {key: value for key, value in of_attention.items() if key != "qk_norms"}
        if of_attention["qk_norms"]:
            options |= {"q_norm": norm(D_HEAD), "k_norm": norm(D_HEAD)}
        leaves = AttentionLeaves(*(Projection(linear(*shape)) for shape in shapes))
        module = HookedAttention(leaves, cfg, cross=name == "cross_attn", **options)
    kind = Kind(*(draw(switch) for _ in range(4)), **of_attention)
    kind = Kind(kind.norm and not kind.norm_of_sum, *list(vars(kind).values())[1:])  # one norm a branch has that name
    gate = torch.randn(1, dtype=torch.float64)
    norms = {key: norm(D_MODEL) for key in ("norm", "norm_of_output", "norm_of_sum") if getattr(kind, key)}
    return Branch(module, **norms, gate=(lambda: gate) if kind.gated else None), kind, gate


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A stack of blocks of drawn kinds, each layer its own, and a pass with drawn masks."""
    torch.manual_seed(draw(st.integers(0, 999)))
    kv_heads = draw(st.integers(1, 2))
    n_layers, n_heads = draw(st.integers(1, 3)), kv_heads * draw(st.integers(1, 2))
    sizes = {"d_model": D_MODEL, "d_head": D_HEAD, "n_heads": n_heads, "n_key_value_heads": kv_heads}
    cfg = stack_config(**sizes, n_layers=n_layers, n_ctx=9, d_mlp=D_MLP, act_fn="gelu", eps=1e-5)
    blocks, kinds, gates = [], [], []
    for _ in range(n_layers):
        names = draw(st.lists(st.sampled_from(list(RESIDS)), min_size=1, max_size=3, unique=True))
        made = {name: branch(draw, name, cfg) for name in names}
        blocks.append(Block(**{name: part for name, (part, _, _) in made.items()}, order=tuple(names)))
        kinds.append({name: kind for name, (_, kind, _) in made.items()})
        gates.append({name: gate for name, (_, _, gate) in made.items()})
    causal, batch, n = draw(st.booleans()), draw(st.integers(1, 2)), draw(st.integers(2, 6))
    groups = None
    if causal and draw(st.booleans()):
        groups = torch.full((batch, n), -1)
        for row in groups:
            begin = draw(st.integers(0, n - 1))
            row[begin : begin + draw(st.integers(1, n))] = draw(st.integers(0, 1))
    real = None if draw(st.booleans()) else torch.arange(n) >= torch.tensor([[draw(st.integers(0, 1))]] * batch)
    stack = Stack("main", "main.", cfg, blocks, causal=causal)
    mask = AttentionMask(real, causal=causal, groups=groups)
    x, source = (torch.randn(batch, k, d, dtype=torch.float64) for k, d in ((n, D_MODEL), (3, D_SOURCE)))
    for name, module in stack.named_modules():
        module.name = f"main.{name}"
    return Case(stack, kinds, gates, x, source, mask)


def sees(mask: AttentionMask, n: int) -> Tensor:
    """[batch query_pos key_pos], cell by cell."""
    rows = 1 if mask.real is None and mask.groups is None else len(mask.real if mask.real is not None else mask.groups)
    found = torch.zeros(rows, n, n, dtype=torch.bool)
    for row, query, key in product(range(rows), range(n), range(n)):
        together = mask.groups is not None and mask.groups[row, query] == mask.groups[row, key] >= 0
        real = mask.real is None or bool(mask.real[row, key])
        allowed = (not mask.causal or key <= query or bool(together)) and real
        found[row, query, key] = allowed or (mask.causal and key == query)
    return found


def layer_norm(x: Tensor, leaf: HookedNorm) -> Tensor:
    scale = (x.var(-1, keepdim=True, unbiased=False) + leaf.eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / scale * leaf.w + leaf.b


def attended(module: HookedAttention, kind: Kind, x: Tensor, source: Tensor, allowed: Tensor | None) -> Tensor:
    def heads(w: Tensor, b: Tensor, of: Tensor) -> Tensor:
        made = einsum(of, w, "b p m, h m d -> b p h d") + b
        return made.repeat_interleave(module.cfg.n_heads // w.shape[0], 2)

    q, k, v = heads(module.W_Q, module.b_Q, x), heads(module.W_K, module.b_K, source), None
    v = heads(module.W_V, module.b_V, source)
    if kind.qk_norms:
        q, k = layer_norm(q, module.q_norm), layer_norm(k, module.k_norm)
    scores = einsum(q, k, "b q h d, b k h d -> b h q k") * (kind.scale or D_HEAD**-0.5)
    scores = scores if kind.softcap is None else kind.softcap * (scores / kind.softcap).tanh()
    scores = scores if allowed is None else scores.masked_fill(~allowed[:, None], -torch.inf)
    z = einsum(scores.softmax(-1), v, "b h q k, b k h d -> b q h d")
    return einsum(z, module.W_O, "b q h d, h d m -> b q m") + module.b_O


def written_out(case: Case) -> Tensor:
    x = case.x
    for block, kinds, gates in zip(case.stack.blocks, case.kinds, case.gates, strict=True):
        for n, (name, kind) in enumerate(kinds.items(), 1):
            read = layer_norm(x, getattr(block, f"ln{n}")) if kind.norm else x
            if name == "mlp":
                mlp = block.mlp
                out = nn.functional.gelu(read @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out
            elif name == "attn":
                out = attended(block.attn, kind, read, read, sees(case.mask, x.shape[1]))
            else:
                out = attended(block.cross_attn, kind, read, case.source, None)
            out = layer_norm(out, getattr(block, f"ln{n}_post")) if kind.norm_of_output else out
            x = x + (gates[name] * out if kind.gated else out)
            x = layer_norm(x, getattr(block, f"ln{n}")) if kind.norm_of_sum else x
    return x


def points(case: Case) -> dict[str, HookPoint]:
    gated = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input")
    found = {name: m for name, m in case.stack.named_modules() if isinstance(m, HookPoint)}
    return {name: point for name, point in found.items() if not name.endswith(gated)}


@settings(max_examples=60)
@given(case=cases())
def test_a_stack_of_any_blocks_is_its_formulas(case: Case) -> None:
    expected = written_out(case)
    found, _ = case.stack(case.x, case.given())
    real = torch.ones_like(case.x[..., 0], dtype=torch.bool) if case.mask.real is None else case.mask.real
    torch.testing.assert_close(found[real], expected[real])
    fired = []
    for name, point in points(case).items():  # with every hook point looked at, the same numbers
        point.add_hook(lambda x, hook, name=name: fired.append(name))
    watched, _ = case.stack(case.x, case.given())
    assert sorted(set(fired)) == sorted(points(case))
    torch.testing.assert_close(watched[real], expected[real])


@settings(max_examples=40)
@given(case=cases(), data=st.data())
def test_rows_that_join_any_blocks_equal_whole_runs(case: Case, data: st.DataObject) -> None:
    stack, n = case.stack, case.x.shape[1]
    given = case.given(kv_cache=stack.new_kv_cache(), keep=True)
    stack(case.x, given)
    layer = data.draw(st.integers(0, len(stack.blocks) - 1), label="layer")
    at = data.draw(st.integers(0, n - 1), label="position")
    first = data.draw(st.integers(0, case.mask.first_to_see(at)), label="first") if stack.causal else 0
    resid = given.kv_cache[layer].resid_pre
    altered = resid.repeat_interleave(2, 0)
    altered[:, at] += torch.randn(len(altered), D_MODEL, dtype=torch.float64)
    again = StackPass(case.mask, source=case.source, kv_cache=given.kv_cache, first_position=first)
    found, _ = stack(None, again, injected={layer: altered[:, first:]})
    for row in range(2):
        point = stack.blocks[layer].hook_resid_pre
        point.add_hook(lambda x, hook, row=row: altered[row::2])
        whole, _ = stack(case.x, case.given())
        point.remove_hooks()
        real = slice(None) if case.mask.real is None else case.mask.real[:, first:]
        torch.testing.assert_close(found[row::2][real], whole[:, first:][real])


@settings(max_examples=40)
@given(case=cases(), data=st.data())
def test_an_edit_that_is_local_changes_one_position_after_its_block_and_is_run_there_alone(
    case: Case, data: st.DataObject
) -> None:
    stack, n = case.stack, case.x.shape[1]
    given = case.given(kv_cache=stack.new_kv_cache(), keep=True)
    stack(case.x, given)
    layer = data.draw(st.integers(0, len(stack.blocks) - 1), label="layer")
    block = stack.blocks[layer]
    inside = [name for name, m in block.named_modules() if isinstance(m, HookPoint) and "pos" in m.axes]
    hook = data.draw(st.sampled_from([name for name in inside if f"blocks.{layer}.{name}" in points(case)]))
    at = data.draw(st.integers(0 if case.mask.real is None else 1, n - 1), label="position")
    point, position = block.get_submodule(hook), block.get_submodule(hook).axes.index("pos")

    def edit(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        (x if x.shape[position] == 1 else x.select(position, at)).mul_(-3).add_(1)
        return x

    point.add_hook(edit)
    after, _ = stack(case.x, case.given(), stop_at_layer=layer + 1)
    base = given.kv_cache[layer + 1].resid_pre
    moved = (after - base).abs().amax((0, 2)) > 1e-9
    if not block.is_position_local(hook):
        assert hook not in ("hook_attn_out", "hook_resid_mid", "attn.hook_z", "attn.hook_q", "attn.hook_pattern")
        return
    assert moved.nonzero()[:, 0].tolist() in ([], [at])
    rows = stack.one_block(layer, torch.full((len(case.x), 1), at), given)
    torch.testing.assert_close(rows[:, 0], after[:, at])


def test_rows_of_queries_read_as_many_sources_as_was_said() -> None:
    cfg = stack_config(d_model=4, n_heads=1, n_layers=1, n_ctx=9, d_mlp=1, act_fn="gelu", eps=1e-5)
    attention = HookedAttention(AttentionLeaves(*(Projection(nn.Linear(4, 4)) for _ in range(4))), cfg, cross=True)
    x, source = torch.randn(4, 3, 4), torch.randn(2, 5, 4)
    assert attention(x, AttentionPass(rows_per_source=2), source=source).shape == x.shape
    for rows in (1, 3):
        with pytest.raises(StackError, match=f"4 rows of queries and a source of 2 rows, {rows} rows of queries for"):
            attention(x, AttentionPass(rows_per_source=rows), source=source)


@pytest.mark.parametrize("hook", ["hook_k", "hook_v", "k_norm.hook_scale", "k_norm.hook_normalized"])
def test_rows_have_keys_of_their_own_where_somebody_sees_them(hook: str) -> None:
    cfg = stack_config(d_model=4, n_heads=1, n_layers=1, n_ctx=9, d_mlp=1, act_fn="gelu", eps=1e-5)
    leaves = AttentionLeaves(*(Projection(linear(4, 4)) for _ in range(4)))
    attention = HookedAttention(leaves, cfg, cross=True, q_norm=norm(4), k_norm=norm(4))
    stack = Stack("main", "main.", cfg, [Block(cross_attn=Branch(attention))], causal=False)
    x, source = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(1, 5, 4, dtype=torch.float64)
    given = StackPass(source=source, kv_cache=stack.new_kv_cache(), keep=True)
    stack(x, given)
    again = StackPass(source=source, kv_cache=given.kv_cache)
    edit = {"x": torch.linspace(1, 2, 2, dtype=torch.float64)[:, None, None, None]}
    attention.get_submodule(hook).add_hook(lambda k, hook: k * edit["x"][: len(k)])
    rows, _ = stack(None, again, injected={0: x.repeat(2, 1, 1)})
    for row, factor in enumerate((1.0, 2.0)):
        edit["x"] = torch.full((1, 1, 1, 1), factor, dtype=torch.float64)
        torch.testing.assert_close(rows[row : row + 1], stack(x, StackPass(source=source))[0])


@pytest.mark.parametrize("fused", [True, False])
def test_a_bias_is_added_to_the_scores(fused: bool) -> None:
    cfg = stack_config(d_model=4, n_heads=2, n_layers=1, n_ctx=9, d_mlp=1, act_fn="gelu", eps=1e-5)
    leaves = AttentionLeaves(*(Projection(nn.Linear(4, 4)) for _ in range(4)))
    attention = HookedAttention(leaves, cfg)
    x, bias = torch.randn(3, 5, 4), torch.randn(1, 2, 5, 5)
    seen = {}
    if not fused:
        attention.hook_attn_scores.add_hook(lambda scores, hook: seen.update(scores=scores))
    found = attention(x, AttentionPass(causal=True, bias=bias))
    plain = HookedAttention(leaves, cfg)
    plain.hook_attn_scores.add_hook(lambda scores, hook: scores + bias)
    torch.testing.assert_close(found, plain(x, AttentionPass(causal=True)))
    assert fused or seen["scores"].shape == (3, 2, 5, 5)


@pytest.mark.parametrize("adds_one", [False, True])
def test_a_norm_that_is_looked_at_is_its_leaf(adds_one: bool) -> None:
    leaf = Gemma3RMSNorm(5, eps=0.1) if adds_one else LlamaRMSNorm(5, eps=0.1)
    nn.init.normal_(leaf.weight)
    watched, x = HookedNorm(leaf, adds_one=adds_one), torch.randn(2, 3, 5)
    seen = {}
    watched.hook_normalized.add_hook(lambda y, hook: seen.update(y=y))
    torch.testing.assert_close(watched(x), leaf(x))
    torch.testing.assert_close(seen["y"] * watched.w, leaf(x))


def test_the_first_to_see_a_change_is_where_its_group_begins() -> None:
    groups = torch.tensor([[-1, 0, 0, 0, -1, 1, 1], [-1, -1, 0, 0, -1, 1, 1]])
    mask = AttentionMask(None, causal=True, groups=groups)
    assert [mask.first_to_see(at) for at in range(9)] == [0, 1, 1, 1, 4, 5, 5, 7, 8]
    assert AttentionMask(None).first_to_see(3) == 0
