"""The reference's numbers, and wrong models that must not pass for it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mem0_jax.backbones.qwen3_vl import model, positions, text, vision
from mem0_jax.commands.golden import main
from mem0_jax.errors import UserError
from mem0_jax.golden import Golden, Report, replay_forward
from mem0_jax.heads import flow
from mem0_jax.memory.bank import MemoryBank
from mem0_jax.nn import rope
from mem0_jax.nn.layers import gelu_tanh

FOLDER = Path(__file__).parent / "assets" / "tiny_a"


def test_the_reference_is_reproduced(tmp_path, capsys):
    assert main([str(FOLDER), "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["passed"]
    names = {check["quantity"] for check in report["checks"]}
    for part in ("last_hidden", "fused_window", "action_loss", "gradient norms", "after training", "action chunk"):
        assert any(part in name for name in names), part
    assert "within their gates" in capsys.readouterr().out


def one_dimensional_positions(patch):
    def flat(ids, mask, grids, config):
        return np.broadcast_to((np.cumsum(mask, 1) - 1)[:, None], (len(ids), 3, ids.shape[1])).astype(np.int32)

    patch.setattr(positions, "token_positions", flat)


def chunked_mrope(patch):
    patch.setattr(rope, "axis_of_frequency", lambda sections: np.repeat([0, 1, 2], sections))


def no_deepstack(patch):
    original = text.TextStack.__call__
    patch.setattr(text.TextStack, "__call__", lambda self, tokens, _, *a, **k: original(self, tokens, None, *a, **k))


def tanh_gelu_in_the_mergers(patch):
    patch.setattr(vision, "gelu_exact", gelu_tanh)


def post_norm_features(patch):
    original = model.Qwen3VL.encode

    def encode(self, *args, **options):
        normed = original(self, *args, **options).normed
        return model.Features(normed, normed)

    patch.setattr(model.Qwen3VL, "encode", encode)


def chained_memory_attention(patch):
    read_window, read_anchor, kept = MemoryBank._read_window, MemoryBank._read_anchor, []

    def window(self, *args):
        kept.append(read_window(self, *args))
        return kept[-1]

    patch.setattr(MemoryBank, "_read_window", window)
    patch.setattr(MemoryBank, "_read_anchor", lambda self, x, *args: read_anchor(self, kept.pop()[0], *args))


def reversed_ranks(patch):
    original = MemoryBank._rank_embedding
    patch.setattr(MemoryBank, "_rank_embedding", lambda self: original(self)[::-1])


def rounded_timesteps(patch):
    patch.setattr(flow, "bucket", lambda time, config: jnp.round(time * config.buckets).astype(jnp.int32))


MUTANTS = [
    one_dimensional_positions,
    chunked_mrope,
    no_deepstack,
    tanh_gelu_in_the_mergers,
    post_norm_features,
    chained_memory_attention,
    reversed_ranks,
    rounded_timesteps,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_wrong_model_fails_a_gate(monkeypatch, mutate):
    mutate(monkeypatch)
    assert not forward(Golden(FOLDER)).passed


@pytest.mark.parametrize("place", ["blocks", "output"])
def test_swapped_scale_and_shift_fail_a_gate(place):
    golden = Golden(FOLDER)
    action = golden.params["action"]
    layers = [action["blocks"][kind]["norm1"] for kind in ("cross", "self")] if place == "blocks" else [action["proj_out_1"]]
    for layer in layers:
        for name, value in layer.items():
            layer[name] = jnp.concatenate(jnp.split(value, 2, -1)[::-1], -1)
    assert not forward(golden).passed


def test_the_right_model_passes_the_same_forward_check():
    assert forward(Golden(FOLDER)).passed


def forward(golden: Golden) -> Report:
    report = Report()
    replay_forward(golden, report)
    return report


def test_nan_never_passes():
    golden = Golden(FOLDER)
    golden.params["memory"]["norm2"]["bias"] = jnp.full_like(golden.params["memory"]["norm2"]["bias"], jnp.nan)
    report = forward(golden)
    assert not report.passed
    assert report.checks["features: last_hidden"].passed
    assert not report.checks["memory: fused_anchor"].passed


def test_a_folder_without_goldens_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Golden(tmp_path)


def test_parameters_outside_the_outputs_are_declared():
    """Only the final norm has no gradient, and the policy says so."""
    golden = Golden(FOLDER)

    def loss(params):
        return golden.policy.loss(params, golden.policy.init_state(1), golden.batch(0), jax.random.key(0), False)[0]

    gradients = jax.grad(loss)(golden.params)
    assert not np.any(gradients["backbone"]["language_model"].pop("norm")["scale"])
    assert golden.policy.no_gradient == ("backbone/language_model/norm/.*",)
