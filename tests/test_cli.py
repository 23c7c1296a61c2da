"""The command line: what it prints, what it refuses, and that an error is one clear line."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from hooked_vlm import HookedVLM, __version__, demo
from hooked_vlm.cli import main
from hooked_vlm.models import placement, skeleton, table
from tests.models import checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small BLIP saved with its processor."""
    directory = tmp_path_factory.mktemp("checkpoint")
    return checkpoints.save(directory, *checkpoints.blip_vqa())


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line; gives its exit code and what it wrote to the two streams."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hooked-vlm", *words])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def rows_of(printed: str) -> dict[str, str]:
    """The rows of a printed table by their first word."""
    return {line.split()[0]: line for line in printed.splitlines() if "hook_" in line}


def test_version_is_the_packages(command):
    assert command("--version") == (0, f"hooked-vlm {__version__}\n", "")


def test_help_lists_the_commands(command):
    code, out, _ = command("--help")
    assert code == 0
    assert {"hooks", "demo"} <= set(out.split())


# --- hooks ----------------------------------------------------------------------------------------------


def test_every_hook_point_is_listed_once_with_layers_collapsed(command, checkpoint):
    code, out, _ = command("hooks", checkpoint)
    model = HookedVLM.from_pretrained(checkpoint)
    assert code == 0
    assert set(rows_of(out)) == {table.collapsed(name) for name in model.hook_dict}
    assert len(rows_of(out)) == len([line for line in out.splitlines() if "hook_" in line])
    assert "blocks.0" not in out and "blocks.{l}" in out


def test_a_row_tells_the_axes_and_the_gate(command, checkpoint):
    _, out, _ = command("hooks", checkpoint, "--filter", "text_encoder.blocks.{l}.cross_attn")
    rows = rows_of(out)
    name = "text_encoder.blocks.{l}.cross_attn"
    assert len(rows) == 10
    assert "[batch head query_pos key_pos]" in rows[f"{name}.hook_pattern"] and "always" in rows[f"{name}.hook_pattern"]
    assert "cfg.use_attn_result" in rows[f"{name}.hook_result"]
    assert "cfg.use_split_qkv_input" in rows[f"{name}.hook_k_input"]


def test_axes_of_the_table_are_those_of_the_activations():
    model = HookedVLM.from_hf(*checkpoints.blip_vqa())
    inputs = model.to_inputs(checkpoints.picture(), "is the circle red or blue?")
    rows = {row.name: row for row in table.hook_table(model)}
    _, always = model.run_with_cache(inputs)
    model.cfg.use_attn_result = model.cfg.use_split_qkv_input = True
    _, all_on = model.run_with_cache(inputs)
    gated = {name: all_on[name] for name in all_on.cache_dict if name not in always.cache_dict}
    assert {table.collapsed(name) for name in gated} == {row.name for row in rows.values() if row.gate}
    assert {table.collapsed(name) for name in always.cache_dict} == {row.name for row in rows.values() if not row.gate}
    for name, activation in [*always.cache_dict.items(), *gated.items()]:
        assert len(rows[table.collapsed(name)].axes) == activation.ndim, name


def test_embeddings_stand_before_the_blocks_they_feed():
    names = [row.name for row in table.hook_table(HookedVLM.from_hf(*checkpoints.blip_vqa()))]
    for stack in ("vision_encoder", "text_encoder", "text_decoder"):
        assert names.index(f"{stack}.hook_pos_embed") < names.index(f"{stack}.blocks.{{l}}.hook_resid_pre")
    assert names[0] == "hook_pixel_values" and names[-1] == "hook_logits"


def test_markdown_is_the_table_of_the_model(command, checkpoint):
    code, out, _ = command("hooks", checkpoint, "--markdown")
    model = HookedVLM.from_pretrained(checkpoint)
    assert code == 0
    assert out.strip() == table.hook_table_markdown(model)
    lines = out.strip().splitlines()
    assert len(lines) == 2 + len(table.hook_table(model))
    assert {line.count("|") for line in lines} == {4}


def test_hooks_are_listed_without_reading_weights(command, checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((Path(checkpoint) / "config.json").read_bytes())
    assert command("hooks", str(tmp_path)) == command("hooks", checkpoint)
    assert all(p.is_meta for p in skeleton.skeleton(str(tmp_path)).hf_model.parameters())


def test_the_list_ends_with_where_the_model_would_run(command, checkpoint, monkeypatch):
    monkeypatch.setattr(placement, "accelerator", lambda: None)
    assert command("hooks", checkpoint)[1].splitlines()[-1] == "Loaded on this machine it runs on cpu in float32."
    monkeypatch.setattr(placement, "accelerator", lambda: torch.device("mps"))
    assert "it runs on mps in float32." in command("hooks", checkpoint)[1]


# --- errors ---------------------------------------------------------------------------------------------


def test_a_missing_checkpoint_is_one_line_that_names_it(command, tmp_path):
    missing = str(tmp_path / "not_there")
    code, out, err = command("hooks", missing)
    assert (code, out) == (1, "")
    assert missing in err and "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_an_architecture_that_no_family_reads_is_named(command, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    code, out, err = command("hooks", str(tmp_path))
    assert (code, out) == (1, "")
    assert "BertModel" in err and "BlipForQuestionAnswering" in err
    assert len(err.splitlines()) == 1


def test_a_filter_that_matches_nothing_is_an_error(command, checkpoint):
    code, out, err = command("hooks", checkpoint, "--filter", "blocks.{l}.atn")
    assert (code, out) == (1, "")
    assert "blocks.{l}.atn" in err


def test_an_error_that_is_our_own_keeps_its_traceback(command, checkpoint, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(skeleton, "skeleton", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        command("hooks", checkpoint)


# --- demo -----------------------------------------------------------------------------------------------


def numbers_of(printed: str) -> list[list[list[float]]]:
    """The tables of heads in the demo, each [layer head]."""
    rows = [line.split()[1:] for line in printed.splitlines() if line.strip().startswith("layer ")]
    cells = [[float(cell) for cell in row[1:]] for row in rows]
    return [cells[: len(cells) // 2], cells[len(cells) // 2 :]]


def test_the_numbers_of_the_demo_are_those_of_the_model(command):
    code, out, err = command("demo")
    assert (code, err) == (0, "")
    assert "text_encoder.blocks.0.cross_attn.hook_pattern" in out and "1 x 4 x 9 x 65" in out
    assert "def zero_head" in out and "def patch_head" in out

    model = HookedVLM.from_pretrained(demo.CHECKPOINT)
    assert f"weights, float32 on {model.device}" in out
    pair = demo.first_pair(model)
    clean, corrupt = pair.clean, pair.corrupt
    assert model.generate(clean) == [pair.right] and model.generate(corrupt) == [pair.wrong]
    _, cache = model.run_with_cache(clean)
    high, low = (demo.logit_difference(model, pair, model(inputs)) for inputs in (clean, corrupt))
    n_heads = model.stacks["text_encoder"].cfg.n_heads
    zeroed, restored = numbers_of(out)
    assert len(zeroed) == len(restored) == model.stacks["text_encoder"].cfg.n_layers
    for layer, head in ((0, 0), (2, n_heads - 1)):
        name = f"text_encoder.blocks.{layer}.cross_attn.hook_z"

        def keep(z, hook, source, head=head):
            z = z.clone()
            z[:, :, head] = source[:, :, head]
            return z

        def run(inputs, source, name=name, keep=keep):
            logits = model.run_with_hooks(inputs, fwd_hooks=[(name, partial(keep, source=source))])
            return demo.logit_difference(model, pair, logits)

        without = run(clean, torch.zeros_like(cache[name]))
        assert zeroed[layer][head] == pytest.approx(without - high, abs=6e-4)
        back = (run(corrupt, cache[name]) - low) / (high - low)
        assert restored[layer][head] == pytest.approx(back, abs=6e-4)
