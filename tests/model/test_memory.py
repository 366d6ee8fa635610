"""The banded attention over a run of frames against the frame-by-frame walk, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_memory import PlainMemory

from mem0_jax.memory import bank
from mem0_jax.memory.bank import MemoryBank, MemoryConfig
from mem0_jax.nn import module

WIDTH, WINDOW, HEADS, CLEAR = 8, 4, 2, 3
CONFIG = MemoryConfig(WINDOW, HEADS, CLEAR, 0.0)


def build(rngs):
    return MemoryBank(WIDTH, CONFIG, rngs)


def random_params(seed: int = 0):
    params = module.init(build, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), params)


PARAMS = random_params()
SEQUENCE = jax.jit(lambda params, *args: module.bind(build)(params).sequence(*args))
STEP = jax.jit(lambda params, *args: module.bind(build)(params).step(*args))


@st.composite
def streams(draw):
    """Features, episodes and labels of a few lanes, and where the run is cut into calls."""
    lanes, frames = 2, draw(st.sampled_from([6, 12]))
    seed = draw(st.integers(0, 2**32 - 1))
    boundaries = draw(
        st.lists(st.lists(st.booleans(), min_size=frames, max_size=frames), min_size=lanes, max_size=lanes)
    )
    ends = draw(st.lists(st.lists(st.booleans(), min_size=frames, max_size=frames), min_size=lanes, max_size=lanes))
    sparse = draw(st.booleans())  # long episodes overflow the window
    starts = np.array(boundaries) & (np.random.default_rng(seed).random((lanes, frames)) < (0.2 if sparse else 0.7))
    x = np.random.default_rng(seed).normal(size=(lanes, frames, WIDTH)).astype(np.float32)
    return x, np.cumsum(starts, 1).astype(np.int32), np.array(ends, np.int32), draw(st.sampled_from([1, 2, 3]))


def run(x, episode, end, pieces):
    state, outputs = bank.init_state(len(x), CONFIG, WIDTH), []
    for part in np.split(np.arange(x.shape[1]), pieces):
        reading, state = SEQUENCE(PARAMS, state, x[:, part], episode[:, part], end[:, part])
        outputs.append(reading)
    return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *outputs), state


@settings(max_examples=40)
@given(streams())
def test_sequence_equals_the_frame_by_frame_walk(stream):
    x, episode, end, pieces = stream
    reading, _ = run(x, episode, end, pieces)
    for lane in range(len(x)):
        outputs = PlainMemory(PARAMS, CONFIG).run(x[lane], episode[lane], end[lane])
        for ours, plain in zip(reading, outputs):
            np.testing.assert_allclose(ours[lane], plain, rtol=2e-4, atol=2e-5)


@settings(max_examples=25)
@given(streams())
def test_sequence_equals_repeated_step(stream):
    x, episode, end, pieces = stream
    reading, after = run(x, episode, end, pieces)
    state = bank.init_state(len(x), CONFIG, WIDTH)
    for t in range(x.shape[1]):
        one, state = STEP(PARAMS, state, x[:, t], episode[:, t], end[:, t])
        for ours, theirs in zip(one, reading):
            np.testing.assert_allclose(ours, theirs[:, t], rtol=1e-5, atol=1e-5)
    for name in ("count", "end_count", "episode"):
        np.testing.assert_array_equal(getattr(state, name), getattr(after, name))
    for lane, count in enumerate(np.asarray(state.count)):
        np.testing.assert_array_equal(state.window[lane, WINDOW - count :], after.window[lane, WINDOW - count :])
        if count:
            np.testing.assert_array_equal(state.anchor[lane], after.anchor[lane])


def example(frames=6, lanes=2):
    x = np.random.default_rng(1).normal(size=(lanes, frames, WIDTH)).astype(np.float32)
    return x, np.zeros((lanes, frames), np.int32), np.zeros((lanes, frames), np.int32)


def test_gradients_flow_through_the_current_feature_alone():
    x, episode, end = example()
    state = bank.init_state(2, CONFIG, WIDTH)

    def last(x):
        reading, _ = SEQUENCE(PARAMS, state, x, episode, end)
        return reading.window[:, -1].sum() + reading.anchor[:, -1].sum()

    gradient = np.asarray(jax.grad(last)(jnp.asarray(x)))
    assert np.abs(gradient[:, -1]).max() > 0
    np.testing.assert_array_equal(gradient[:, :-1], 0)


def test_lanes_do_not_see_each_other():
    x, episode, end = example()
    before, _ = run(x, episode, end, 1)
    changed = x.copy()
    changed[1] += 1
    after, _ = run(changed, episode, end, 1)
    np.testing.assert_array_equal(before.window[0], after.window[0])
    assert np.abs(before.window[1] - after.window[1]).max() > 0


def test_reset_empties_the_chosen_lanes():
    x, episode, end = example()
    _, state = run(x, episode, end, 1)
    state = bank.reset(state, jnp.array([True, False]))
    reading, _ = STEP(PARAMS, state, x[:, 0], episode[:, 0], end[:, 0])
    np.testing.assert_array_equal(reading.window[0], x[0, 0])
    assert np.abs(reading.window[1] - x[1, 0]).max() > 0


@pytest.mark.parametrize("branches", [(), ("window",), ("anchor",)])
def test_a_branch_left_out_passes_the_feature_through(branches):
    config = MemoryConfig(WINDOW, HEADS, CLEAR, 0.0, branches)
    x, episode, end = example()
    bound = module.bind(lambda rngs: MemoryBank(WIDTH, config, rngs))(PARAMS)
    reading, _ = bound.sequence(bank.init_state(2, config, WIDTH), x, episode, end)
    full, _ = run(x, episode, end, 1)
    for name in ("window", "anchor"):
        expected = getattr(full, name) if name in branches else x
        np.testing.assert_allclose(getattr(reading, name), expected, rtol=1e-5, atol=1e-6)


def test_attention_dropout_is_random_and_off_without_a_key():
    config = MemoryConfig(WINDOW, HEADS, CLEAR, 0.5)
    x, episode, end = example()
    bound = module.bind(lambda rngs: MemoryBank(WIDTH, config, rngs))(PARAMS)
    state = bank.init_state(2, config, WIDTH)
    draws = [np.asarray(bound.sequence(state, x, episode, end, jax.random.key(i))[0].anchor) for i in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0
    np.testing.assert_allclose(
        bound.sequence(state, x, episode, end)[0].anchor, run(x, episode, end, 1)[0].anchor, atol=1e-5
    )


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(*[st.integers(0, 6)] * 2), min_size=1, max_size=3))
def test_write_equals_sequence_for_ragged_counts(seed, calls):
    """Two lanes, other counts in each, none too, and more than the window holds."""
    rng = np.random.default_rng(seed)
    written = bank.init_state(2, CONFIG, WIDTH)
    walked = [bank.init_state(1, CONFIG, WIDTH) for _ in range(2)]
    fresh = np.full((1, 1), -1, np.int32)  # the episode of a state that has seen none
    for counts in calls:
        x = rng.normal(size=(2, 6, WIDTH)).astype(np.float32)
        emptied = rng.random(2) < 0.2
        written = bank.write(bank.reset(written, emptied), jnp.asarray(x), jnp.array(counts))
        for lane, count in enumerate(counts):
            walked[lane] = bank.reset(walked[lane], emptied[lane : lane + 1])
            for frame in x[lane, :count]:
                _, walked[lane] = SEQUENCE(PARAMS, walked[lane], frame[None, None], fresh, fresh * 0)
    for lane, state in enumerate(walked):
        count = int(state.count[0])
        assert count == written.count[lane]
        np.testing.assert_array_equal(written.window[lane, WINDOW - count :], state.window[0, WINDOW - count :])
        if count:
            np.testing.assert_array_equal(written.anchor[lane], state.anchor[0])
