"""The training step: parts of a batch, averages, what is trained and how it is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import policy_and_batch
from toy import LANES, ToyPolicy, batch_at, make_config, make_policy

from mem0_jax import tree
from mem0_jax.train.optim import make_optimizer
from mem0_jax.train.state import create_params, create_state
from mem0_jax.train.step import make_train_step

QUICK = {"xla_backend_optimization_level": 0}  # compile fast; what is computed stays the same


def start(policy, lanes, freeze=(), bfloat16=(), ema=False):
    params = create_params(policy, 0, bfloat16)
    config = make_config(20).optimizer
    if len(policy.learning_rate_groups) == 4:
        rates = {group: 1e-3 for group, _ in policy.learning_rate_groups}
        config = type(config)(learning_rates=rates, total_steps=20, warmup_ratio=0.0)
    optimizer = make_optimizer(config, policy.learning_rate_groups, policy.no_gradient, freeze, params)
    return optimizer, create_state(policy, optimizer, params, 0, lanes, ema)


def test_parts_of_a_batch_carry_memory_and_give_the_gradient_of_the_whole():
    """Mem-0 with a memory that reaches over the cuts, episodes and clears included; noise is given."""
    policy, batch = policy_and_batch(lanes=2, frames=6)
    optimizer, state = start(policy, 2)
    states, metrics = {}, {}
    for parts in (1, 3):
        step = jax.jit(make_train_step(policy, optimizer, parts), compiler_options=QUICK)
        states[parts], metrics[parts] = step(state, batch)
    for whole, cut in zip(jax.tree.leaves(states[1].opt_state.mu), jax.tree.leaves(states[3].opt_state.mu)):
        scale = float(jnp.abs(whole).max())
        np.testing.assert_allclose(cut, whole, atol=2e-5 * scale + 1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states[1].carry, states[3].carry)
    assert metrics[1].keys() == metrics[3].keys()
    for name, value in metrics[1].items():
        assert float(metrics[3][name]) == pytest.approx(float(value), rel=1e-5), name
    # The memory matters: without carrying it the gradient is another.
    step = jax.jit(make_train_step(policy, optimizer), compiler_options=QUICK)
    first, alone = (step(state, {k: v[:, cut] for k, v in batch.items()})[0] for cut in (slice(0, 3), slice(3, 6)))
    kernel = ("memory", "cross_attn1", "out", "kernel")

    def moment(trained):
        for key in kernel:
            trained = trained[key]
        return np.asarray(trained)

    forgetful = (moment(alone.opt_state.mu) + moment(first.opt_state.mu)) / 2
    whole = moment(states[1].opt_state.mu)
    assert np.abs(forgetful - whole).max() > 0.05 * np.abs(whole).max()


def test_frames_that_cannot_be_cut_are_refused():
    optimizer, state = start(make_policy(), LANES)
    with pytest.raises(ValueError, match="3 frames of a lane cannot be cut into 2"):
        jax.jit(make_train_step(make_policy(), optimizer, 2))(state, batch_at(0))


def test_averages_follow_their_formula_and_stand_still_where_an_update_is_left_out():
    policy = make_policy()
    optimizer, state = start(policy, LANES, freeze=("head/bias",), ema=True)
    step = jax.jit(make_train_step(policy, optimizer, ema_decay=0.9))
    expected = {path: np.asarray(v, np.float64) for path, v in tree.flatten(state.ema).items()}
    assert "head/bias" not in expected
    assert "memory/decay" in expected
    count = 0
    for index in range(8):
        batch = batch_at(index)
        if index == 5:
            batch["y"] = batch["y"] * np.float32(np.nan)
        state, _ = step(state, batch)
        if index != 5:
            count += 1
            decay = min(0.9, (1 + count) / (10 + count))
            params = tree.flatten(state.params)
            expected = {p: decay * v + (1 - decay) * np.asarray(params[p], np.float64) for p, v in expected.items()}
    for path, value in tree.flatten(state.ema).items():
        np.testing.assert_allclose(value, expected[path], rtol=2e-6, atol=1e-8)
    used = tree.flatten(state.averaged_params)
    assert np.array_equal(used["memory/decay"], tree.flatten(state.ema)["memory/decay"])
    assert np.array_equal(used["head/bias"], state.params["head"]["bias"])


def test_weights_kept_in_bfloat16_are_trained_in_it_with_moments_in_float32():
    policy = make_policy()
    optimizer, state = start(policy, LANES, bfloat16=("memory/.*",), ema=True)
    before = jax.tree.map(np.asarray, state.params)
    state, _ = jax.jit(make_train_step(policy, optimizer))(state, batch_at(0))
    assert state.params["memory"]["kernel"].dtype == jnp.bfloat16
    assert state.params["head"]["kernel"].dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((state.opt_state.mu, state.ema))} == {"float32"}
    assert np.any(np.asarray(state.params["memory"]["kernel"]) != before["memory"]["kernel"])
    assert state.averaged_params["memory"]["kernel"].dtype == jnp.bfloat16


def test_only_trained_parameters_are_differentiated():
    """A frozen parameter through which no gradient could pass does no harm."""

    class Stubborn(ToyPolicy):
        def loss(self, params, state, batch, rng, train):
            @jax.custom_vjp
            def no_way_back(x):
                return x

            def backward(*_):
                raise AssertionError("a frozen parameter was differentiated")

            no_way_back.defvjp(lambda x: (x, None), backward)
            head = params["head"] | {"kernel": no_way_back(params["head"]["kernel"])}
            return super().loss(params | {"head": head}, state, batch, rng, train)

    policy = Stubborn()
    optimizer, state = start(policy, LANES, freeze=("head/kernel",))
    after, _ = jax.jit(make_train_step(policy, optimizer))(state, batch_at(0))  # pyright: ignore[reportArgumentType]
    assert np.array_equal(after.params["head"]["kernel"], state.params["head"]["kernel"])
    optimizer, state = start(policy, LANES)
    with pytest.raises(AssertionError, match="was differentiated"):
        jax.jit(make_train_step(policy, optimizer))(state, batch_at(0))  # pyright: ignore[reportArgumentType]
