"""The optimizer against the reference's learning rates, a plain transcription of torch's update, and torch itself."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mem0_jax import tree
from mem0_jax.train.optim import OptimizerConfig, learning_rates, make_optimizer

CONFIG = OptimizerConfig(
    learning_rates={"body": 1e-2, "head": 1e-1}, floors={"body": 1e-3, "head": 5e-3}, total_steps=20, warmup_ratio=0.1
)
GROUPS = (("head", "head/.*"), ("body", ".*"))


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"body/kernel": (4, 3), "body/bias": (3,), "body/norm/scale": (3,), "head/kernel": (3, 2)}
    return tree.unflatten({p: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for p, s in shapes.items()})


def run(config, gradients, params, no_gradient=(), freeze=()):
    """All parameters after each gradient, and the last state."""
    optimizer = make_optimizer(config, GROUPS, no_gradient, freeze, params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state: Any = optimizer.init(params)
    history = []
    for gradient in gradients:
        params, state = step(params, state, gradient)
        history.append(params)
    return history, state


def torch_adamw(config, gradients, params, trained):
    """The documented updates of clip_grad_norm_ and AdamW in float64."""
    p = {k: np.asarray(v, np.float64) for k, v in tree.flatten(params).items()}
    m, v = {k: np.zeros_like(p[k]) for k in trained}, {k: np.zeros_like(p[k]) for k in trained}
    for t, gradient in enumerate(gradients, 1):
        g = {k: np.asarray(tree.flatten(gradient)[k], np.float64) for k in trained}
        norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        scale = min(1.0, config.clip_norm / (norm + 1e-6)) if config.clip_norm else 1.0
        rates = learning_rates(config, t - 1)
        for k in trained:
            lr = rates["head" if k.startswith("head/") else "body"]
            p[k] = p[k] * (1 - lr * config.weight_decay)
            m[k] = config.b1 * m[k] + (1 - config.b1) * g[k] * scale
            v[k] = config.b2 * v[k] + (1 - config.b2) * (g[k] * scale) ** 2
            denominator = np.sqrt(v[k]) / math.sqrt(1 - config.b2**t) + config.eps
            p[k] = p[k] - lr / (1 - config.b1**t) * m[k] / denominator
    return p


def test_learning_rates_are_the_reference_s():
    golden = np.load(Path(__file__).parent / "assets" / "lr_schedule.npz")
    names = [str(name) for name in golden["groups"]]
    peaks, floors = (1e-5, 1e-4, 1e-4, 1e-5), (1e-6, 5e-6, 5e-6, 1e-6)
    config = OptimizerConfig(dict(zip(names, peaks)), 40, dict(zip(names, floors)), warmup_ratio=0.05)
    host = [[learning_rates(config, step)[name] for name in names] for step in range(41)]
    np.testing.assert_allclose(host, golden["lr_schedule"], rtol=1e-13)
    traced = jax.jit(jax.vmap(lambda step: learning_rates(config, step)))(jnp.arange(41))
    np.testing.assert_allclose(np.stack([traced[name] for name in names], 1), golden["lr_schedule"], rtol=1e-6)


def test_constant_schedule_no_warmup_and_no_floor():
    config = OptimizerConfig({"a": 2.0}, 10, schedule="constant", warmup_ratio=0.25)
    assert [learning_rates(config, s)["a"] for s in (0, 1, 2, 9)] == [0.0, 1.0, 2.0, 2.0]
    config = OptimizerConfig({"a": 2.0}, 10, warmup_ratio=0.0)
    assert [learning_rates(config, s)["a"] for s in (0, 5)] == pytest.approx([2.0, 1.0])
    assert learning_rates(config, 10)["a"] == pytest.approx(0.0, abs=1e-30)


@pytest.mark.parametrize("clip_norm", [0.0, 2.5, 1e-3])
def test_updates_equal_torch_s_formulas(clip_norm):
    config = replace(CONFIG, clip_norm=clip_norm, weight_decay=0.1)
    gradients = [random_tree(10 + i, scale=3.0 ** (i - 3)) for i in range(8)]
    params = random_tree(0)
    history, state = run(config, gradients, params)
    for steps in (1, 8):
        expected = torch_adamw(config, gradients[:steps], params, list(tree.flatten(params)))
        for path, leaf in tree.flatten(history[steps - 1]).items():
            moved = expected[path] - np.asarray(tree.flatten(params)[path], np.float64)
            got = np.asarray(leaf, np.float64) - np.asarray(tree.flatten(params)[path], np.float64)
            # Relative to the movement, not to the parameter, which would hide an error in the update.
            np.testing.assert_allclose(got, moved, rtol=2e-5, atol=1.5e-7, err_msg=path)
    assert int(state.count) == 8
    assert int(state.skipped) == 0
    assert float(state.grad_norm) == pytest.approx(
        math.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(gradients[-1])))
    )


def test_first_update_has_full_precision():
    # Bias correction as 1 - 0.999**1 in float32 is off by 4.7e-5; the update must not be.
    config = OptimizerConfig(
        {"head": 1.0, "body": 1.0}, 10, warmup_ratio=0.0, weight_decay=0.0, clip_norm=0.0, eps=1e-30
    )
    history, _ = run(config, [random_tree(1)], jax.tree.map(jnp.zeros_like, random_tree(0)))
    for leaf in jax.tree.leaves(history[0]):
        np.testing.assert_allclose(np.abs(leaf), 1.0, rtol=5e-7)


@pytest.mark.torch
def test_updates_equal_torch_live():
    torch = pytest.importorskip("torch")
    gradients, params = [random_tree(10 + i, scale=3.0 ** (i - 3)) for i in range(8)], random_tree(0)
    history, _ = run(CONFIG, gradients, params)
    leaves = {p: torch.nn.Parameter(torch.tensor(np.asarray(v))) for p, v in tree.flatten(params).items()}
    groups = {
        g: [v for p, v in leaves.items() if p.startswith("head/") == (g == "head")] for g in CONFIG.learning_rates
    }
    optimizer = torch.optim.AdamW(
        [{"params": groups[g], "lr": lr} for g, lr in CONFIG.learning_rates.items()], weight_decay=CONFIG.weight_decay
    )
    for step, gradient in enumerate(gradients):
        for group, rate in zip(optimizer.param_groups, learning_rates(CONFIG, step).values()):
            group["lr"] = rate
        for path, value in tree.flatten(gradient).items():
            leaves[path].grad = torch.tensor(np.asarray(value))
        torch.nn.utils.clip_grad_norm_(list(leaves.values()), CONFIG.clip_norm)
        optimizer.step()
        for path, value in tree.flatten(history[step]).items():
            np.testing.assert_allclose(value, leaves[path].detach().numpy(), rtol=2e-6, atol=2e-7, err_msg=path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_changes_nothing_but_the_count(bad):
    params = random_tree(0)
    good, broken = random_tree(1), random_tree(2)
    broken["body"]["bias"] = broken["body"]["bias"].at[1].set(bad)
    with_skip, state = run(CONFIG, [good, broken, broken, good], params)
    without, reference = run(CONFIG, [good, good], params)
    assert_same_bits(with_skip[0], with_skip[2])
    assert_same_bits(with_skip[3], without[1])
    assert_same_bits((state.mu, state.nu, state.count), (reference.mu, reference.nu, reference.count))
    assert int(state.skipped) == 2


@pytest.mark.parametrize("how", ["no_gradient", "freeze"])
def test_untrained_leaves_keep_their_bits_and_do_not_count(how):
    params, gradient = random_tree(0), random_tree(1)
    params["body"]["norm"]["scale"] = jnp.array([-0.0, 1e-40, 3.0])
    gradient["body"]["norm"]["scale"] = jnp.array([jnp.nan, 1e9, 1e9])  # must neither skip nor dominate the norm
    history, state = run(replace(CONFIG, weight_decay=0.1), [gradient] * 3, params, **{how: ("body/norm/.*",)})
    assert_same_bits(history[-1]["body"]["norm"], params["body"]["norm"])
    assert "norm" not in state.mu["body"]
    assert "norm" not in state.nu["body"]
    trained = [p for p in tree.flatten(params) if "norm" not in p]
    expected = torch_adamw(replace(CONFIG, weight_decay=0.1), [gradient] * 3, params, trained)
    for path in trained:
        np.testing.assert_allclose(tree.flatten(history[-1])[path], expected[path], rtol=1e-5, err_msg=path)
    assert int(state.count) == 3


def test_parameters_in_bfloat16_keep_their_dtype_and_have_float32_moments():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_tree(0))
    history, state = run(CONFIG, [jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_tree(1))], params)
    assert {leaf.dtype for leaf in jax.tree.leaves(history[0])} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((state.mu, state.nu))} == {jnp.dtype(jnp.float32)}


def test_rules_and_settings_that_do_not_fit():
    params = random_tree(0)
    with pytest.raises(ValueError, match=r"'head' has none: give each of the policy's groups \['body', 'head'\]"):
        make_optimizer(replace(CONFIG, learning_rates={"body": 1.0}, floors={}), GROUPS, (), (), params)
    with pytest.raises(ValueError, match=r"freeze: 'heads/\.\*' match no parameter"):
        make_optimizer(CONFIG, GROUPS, (), ("heads/.*",), params)
    with pytest.raises(ValueError, match="no_gradient: 'norm' match no parameter"):
        make_optimizer(CONFIG, GROUPS, ("norm",), (), params)
    with pytest.raises(ValueError, match="no parameter to train"):
        make_optimizer(CONFIG, GROUPS, ("body/.*",), ("head/.*",), params)
    with pytest.raises(ValueError, match="body/kernel"):
        make_optimizer(CONFIG, GROUPS[:1], (), (), params)
    optimizer = make_optimizer(CONFIG, GROUPS, (), (), params)
    with pytest.raises(ValueError, match="decays weights"):
        optimizer.update(params, optimizer.init(params))


def test_impossible_settings_are_all_named():
    with pytest.raises(ValueError, match="optimizer settings") as error:
        OptimizerConfig(
            {"a": 1e-4}, 0, {"a": 1e-3}, warmup_ratio=1.5, schedule="linear", weight_decay=-1, clip_norm=math.nan, eps=0
        )
    for name in ("group 'a'", "total_steps", "warmup_ratio", "schedule", "weight_decay", "clip_norm", "eps"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="floors: expected the groups"):
        OptimizerConfig({"a": 1.0, "b": 1.0}, 10, {"a": 0.1})


def assert_same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def bits(leaf):
    return np.asarray(leaf).view(np.uint8) if np.ndim(leaf) else np.asarray(leaf)
