"""Mem-0 equals the reference it was ported from, and the gates that say so notice deliberate mistakes."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_memory import PlainMemory

import mem0_jax.golden.stream as gates
from mem0_jax.backbones.qwen3_vl import model, positions, vision
from mem0_jax.cli import main
from mem0_jax.errors import UserError
from mem0_jax.golden.models.mem0 import observation
from mem0_jax.golden.stream import Golden
from mem0_jax.heads import dit, flow
from mem0_jax.memory import bank
from mem0_jax.nn import layers, rope
from mem0_jax.policies.mem0 import policy as mem0
from mem0_jax.reference import Report
from mem0_jax.train.optim import make_optimizer
from mem0_jax.tree import flatten, unflatten

TINY_A = Path(__file__).parent / "assets" / "tiny_a"


def test_golden_passes_on_the_command_line(tmp_path, capsys):
    assert main(["golden", str(TINY_A), "--json", str(tmp_path / "golden.json")]) == 0
    written = json.loads((tmp_path / "golden.json").read_text())
    assert written["passed"] is True
    checks = {check["quantity"]: check for check in written["checks"]}
    assert all(check["passed"] and check["error"] <= check["gate"] <= 1 for check in checks.values())
    for quantity in ("features: last_hidden", "memory: fused_window", "losses: loss", "inference: action chunk"):
        assert checks[quantity]["gate"] == 1e-5
        assert checks[quantity]["error"] > 0  # really computed, not copied
    assert [path.name for path in tmp_path.iterdir()] == ["golden.json"]
    out = capsys.readouterr().out
    assert all(quantity in out for quantity in checks)
    assert "FAIL" not in out


def look(golden: Golden) -> dict[str, bool]:
    """quantity -> passed, for all that the first batch shows without gradients. Op by op: nothing is compiled anew."""
    report = Report()
    with jax.disable_jit():
        gates.replay_forward(golden, report)
    return {check.name: check.passed for check in report.checks.values()}


def test_first_batch_passes_op_by_op(golden):
    passed = look(golden)
    assert len(passed) == 9
    assert all(passed.values())


def plain_positions(ids, mask, grids, config):
    return np.repeat(np.where(mask, np.cumsum(mask, 1) - 1, 1)[:, None], 3, 1).astype(np.int32)


def post_norm(encode):
    return lambda *args, **kw: model.Features(*[encode(*args, **kw).normed] * 2)


def swap_halves(path):
    """Parameters in which a projection gives (scale, shift) in the other order."""

    def mutate(monkeypatch, golden):
        leaves = flatten(golden.params)
        for name in ("kernel", "bias"):
            first, second = jnp.split(leaves[f"{path}/{name}"], 2, -1)
            leaves[f"{path}/{name}"] = jnp.concatenate([second, first], -1)
        monkeypatch.setattr(golden, "params", unflatten(leaves))

    return mutate


def plain_bank(**flags):
    """Replaces the bank by the frame-by-frame one, with a mistake."""

    def mutate(monkeypatch, golden):
        def sequence(self, state, x, episode, end, key=None):
            lane = PlainMemory(golden.params["memory"], golden.config.memory, **flags)
            outputs = lane.run(*(np.asarray(array)[0] for array in (x, episode, end)))
            return bank.Reading(*(jnp.asarray(y, x.dtype)[None] for y in outputs)), state

        monkeypatch.setattr(bank.MemoryBank, "sequence", sequence)

    return mutate


def attribute(owner, name, change):
    """Replaces `owner.name` by `change(owner.name)`."""
    return lambda monkeypatch, golden: monkeypatch.setattr(owner, name, change(getattr(owner, name)))


def sample_after_sample(batch):
    def mutated(golden, index):
        given, draws = batch(golden, index), golden.config.flow.draws
        for name in ("noise", "time"):
            rows = given[name]
            given[name] = rows.reshape(-1, draws, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)
        return given

    return mutated


def repeat_each(condition, times):
    (k, v), token = condition
    return (jnp.repeat(k, times, 1), jnp.repeat(v, times, 1)), jnp.repeat(token, times, 0)


FEATURES = ("features: last_hidden", "features: image_feature")
MUTANTS = {
    "1-D positions": (attribute(positions, "token_positions", lambda _: plain_positions), FEATURES),
    "chunked MRoPE": (
        attribute(rope, "axis_of_frequency", lambda _: lambda sections: np.repeat([0, 1, 2], sections)),
        FEATURES,
    ),
    "no deepstack": (
        attribute(vision.VisionTower, "__call__", lambda f: lambda *args, **kw: (f(*args, **kw)[0], None)),
        FEATURES,
    ),
    "deepstack in reverse": (
        attribute(
            vision.VisionTower,
            "__call__",
            lambda f: lambda *args, **kw: (lambda tokens, taps: (tokens, taps[::-1]))(*f(*args, **kw)),
        ),
        FEATURES,
    ),
    "tanh GELU in the mergers": (attribute(vision, "gelu_exact", lambda _: layers.gelu_tanh), FEATURES),
    "exact GELU in the vision blocks": (attribute(vision, "gelu_tanh", lambda _: layers.gelu_exact), FEATURES),
    "rows first instead of merged blocks": (
        attribute(positions, "merge_order", lambda _: lambda rows, columns, merge: np.arange(rows * columns)),
        FEATURES,
    ),
    "post-norm features": (attribute(model.Qwen3VL, "encode", post_norm), FEATURES),
    "image span one token longer": (
        attribute(mem0, "pooled_features", lambda f: lambda h, ids, t: f(h, jnp.roll(ids, 1, 1), t)),
        ("features: image_feature", "features: text_feature"),
    ),
    "chained memory": (plain_bank(chained=True), ("memory: fused_anchor",)),
    "ranks after the norm": (plain_bank(rank_after_norm=True), ("memory: fused_window",)),
    "fused features stored": (plain_bank(stores_fused=True), ("memory: fused_window",)),
    "newest frame as anchor": (plain_bank(anchors_newest=True), ("memory: fused_anchor",)),
    "ranks reversed": (
        attribute(bank, "sinusoid", lambda f: lambda rank, *args, **kw: f(rank[::-1], *args, **kw)),
        ("memory: fused_window",),
    ),
    "ranks from 0": (
        attribute(bank, "sinusoid", lambda f: lambda rank, *args, **kw: f(rank - 1, *args, **kw)),
        ("memory: fused_window",),
    ),
    "scale and shift swapped in adaLN": (swap_halves("action/blocks/cross/norm1"), ("losses: action_loss",)),
    "scale and shift swapped in the last adaLN": (swap_halves("action/blocks/self/norm1"), ("losses: action_loss",)),
    "scale and shift swapped in the output": (swap_halves("action/proj_out_1"), ("losses: action_loss",)),
    "timestep not truncated": (
        attribute(flow, "bucket", lambda _: lambda time, config: time * config.buckets),
        ("losses: action_loss",),
    ),
    "sine first everywhere in the head": (
        attribute(dit, "sinusoid", lambda f: lambda *args, **kw: f(*args, **kw | {"cos_first": False})),
        ("losses: action_loss",),
    ),
    "draws sample after sample": (attribute(Golden, "batch", sample_after_sample), ("losses: action_loss",)),
    "context sample after sample": (
        attribute(mem0, "repeat_condition", lambda _: repeat_each),
        ("losses: action_loss",),
    ),
    "no focal factor": (
        attribute(
            mem0, "focal_loss", lambda f: lambda x, y, config: f(x, y, dataclasses.replace(config, focal_gamma=0.0))
        ),
        ("losses: classifier_loss", "losses: loss"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, golden, monkeypatch):
    mutate, seen_by = MUTANTS[name]
    mutate(monkeypatch, golden)
    passed = look(golden)
    assert [quantity for quantity in seen_by if passed[quantity]] == []


def test_plain_memory_is_the_reference(golden, monkeypatch):
    plain_bank()(monkeypatch, golden)
    passed = look(golden)
    assert passed["memory: fused_window"]
    assert passed["memory: fused_anchor"]


def gradient_gates(golden: Golden) -> Report:
    report, policy = Report(), golden.policy
    with jax.disable_jit():
        differentiate = jax.value_and_grad(gates.deterministic_loss(policy), has_aux=True)
        _, gradients = differentiate(golden.params, policy.init_state(1), golden.batch(0))
    gates.check_gradients(golden, gradients, report)
    return report


def test_gradient_through_stored_features_is_noticed(golden, monkeypatch):
    assert gradient_gates(golden).passed
    monkeypatch.setattr(bank.jax.lax, "stop_gradient", lambda x: x)
    assert not gradient_gates(golden).checks["gradient norms by parameter"].passed


def still_gates(golden: Golden) -> Report:
    """The first step under gradients that are zero everywhere: then only weight decay moves a parameter."""
    report, policy, params = Report(), golden.policy, golden.params
    optimizer = make_optimizer(golden.optimizer, policy.learning_rate_groups, policy.no_gradient, (), params)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    gates.check_updates(golden, updates, 0, report)
    return report


def test_weight_decay_of_the_final_norm_is_noticed(golden, monkeypatch):
    assert still_gates(golden).passed
    monkeypatch.setattr(golden.policy, "no_gradient", ())
    assert not still_gates(golden).passed


def test_warmup_from_zero_is_noticed(golden, monkeypatch):
    def schedule(report):
        gates.check_schedule(golden, report)
        return report.checks["learning rates"]

    assert schedule(Report()).passed
    rates = gates.learning_rates

    def from_zero(config, step):
        factor = min(1.0, step / config.warmup_steps)
        return {k: v if factor == 1.0 else factor * config.learning_rates[k] for k, v in rates(config, step).items()}

    monkeypatch.setattr(gates, "learning_rates", from_zero)
    assert not schedule(Report()).passed


def test_report_counts_nan_as_failure():
    report = Report()
    assert not report.passed  # nothing was compared
    report.add("fine", 1e-5, 1e-6, "here")
    assert report.passed
    report.compare("broken", 1e-5, [np.nan], [1.0], "there")
    assert not report.passed
    assert (report.checks["broken"].error, report.checks["broken"].where) == (float("inf"), "there")
    with pytest.raises(UserError, match="broken"):
        report.compare("broken", 1e-5, [1.0, 2.0], [1.0], "there")


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "golden"
    copy.mkdir()
    for path in TINY_A.iterdir():
        shutil.copyfile(path, copy / path.name)
    return copy


def drop(*keys):
    def change(config):
        node = config
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("action_model"), "heads: the shapes do not tell action.num_heads, action.horizon"),
        (drop("backbone", "text", "rope_theta"), "backbone: the shapes do not tell text.rope_theta"),
        (drop("training", "min_lr", "base"), "config.json: training.min_lr.base is missing"),
        (lambda c: c["memory_bank"].update(num_heads=5), "memory.num_heads 5 must divide"),
        (lambda c: c["memory_bank"].update(initial_anchor_size=2), "initial_anchor_size: only 1"),
        (lambda c: c.update(memory_bank=[3]), "config.json"),
        (
            lambda c: c["classifier"].update(hidden_sizes=[192, 60, 24]),
            "[192, 64, 24] by the tensors' shapes, but [192, 60",
        ),
    ],
)
def test_wrong_config_is_named(folder, capsys, change, message):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["golden", str(folder)]) == 1
    assert message in capsys.readouterr().err


def rewrite(folder, change):
    arrays = dict(np.load(folder / "golden.npz"))
    change(arrays)
    np.savez(folder / "golden.npz", **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("lr_schedule"), "golden.npz: lr_schedule is missing"),
        (lambda a: a.pop("train0/time"), "golden.npz: train0/time is missing"),
        (lambda a: a.update({"train0/pixel_uint8": a["train0/pixel_uint8"][:-8]}), "images and prompts of train0"),
        (lambda a: a.update(lr_group_names=np.array(["qwen", "base"])), "lr_group_names"),
    ],
)
def test_wrong_arrays_are_named(folder, capsys, change, message):
    rewrite(folder, change)
    assert main(["golden", str(folder)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "initial.pt", "golden.npz"])
def test_missing_or_damaged_file_is_named(folder, capsys, name):
    (folder / name).write_bytes(b"neither")
    assert main(["golden", str(folder)]) == 1
    assert name in capsys.readouterr().err
    (folder / name).unlink()
    assert main(["golden", str(folder)]) == 1
    assert f"{name} is missing" in capsys.readouterr().err


def test_grids_of_inference_count_where_they_are_given(folder):
    """A 4 x 16 image has as many tokens as the 8 x 8 one: only the stored grid can tell them apart."""
    implied = observation(Golden(folder), "infer", slice(3, 4))
    rows = len(np.load(folder / "golden.npz")["infer/input_ids"])
    rewrite(folder, lambda a: a.update({"infer/image_grid_thw": np.array([[1, 4, 16]] * rows)}))
    given = observation(Golden(folder), "infer", slice(3, 4))
    assert np.array_equal(implied["patches"], given["patches"])
    assert implied["row_column"].max(1).tolist() == [[7, 7]]
    assert given["row_column"].max(1).tolist() == [[3, 15]]
