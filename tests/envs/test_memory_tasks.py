"""What a single frame shows, and how often someone who sees nothing else succeeds."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.envs import TASKS, Expert, frame_oracle, make, rollout
from mem0_jax.envs.observe_and_pickup import ObserveAndPickup
from mem0_jax.envs.press_button import PressButton, best_without_memory
from mem0_jax.envs.put_back_block import PutBackBlock
from mem0_jax.envs.swap_blocks import SwapBlocks, ring
from mem0_jax.envs.tabletop import Block

EPISODES = 800


def play(env, until):
    """Let the expert act until `until(env)`; returns the frame and the joint vector there."""
    expert = Expert(env, np.random.default_rng(0))
    for _ in range(env.step_limit):
        env.step(expert.act()[0])
        if until(env):
            return env.render(), env.joints.copy()
    raise AssertionError("the moment never came")


def assert_indistinguishable(moments):
    frames, joints = zip(*moments)
    for frame, vector in zip(frames[1:], joints[1:]):
        np.testing.assert_array_equal(frame, frames[0])
        np.testing.assert_array_equal(vector, joints[0])


@pytest.mark.parametrize("task", TASKS)
def test_the_frame_only_oracle_is_at_chance(task):
    env = make(task, render=False)
    oracle = frame_oracle(env, np.random.default_rng(11))
    episodes = [rollout(env, oracle, seed) for seed in range(EPISODES)]
    assert all(episode.placed for episode in episodes)
    rate = np.mean([episode.success for episode in episodes])
    deviation = np.sqrt(env.chance * (1 - env.chance) / EPISODES)
    assert abs(rate - env.chance) < 3.29 * deviation  # the 99.9 % interval


def origin(env):
    return env.origin


def target(env):
    return env.target


def start(env):
    return env.ring[0]


def digit(env):
    return env.digit


@pytest.mark.parametrize(
    ("task", "variable", "values"),
    [
        ("put_back_block", origin, 4),
        ("observe_and_pickup", target, 4),
        ("swap_blocks", start, 6),
        ("press_button", digit, 4),
    ],
)
def test_the_choice_is_uniform_over_seeds(task, variable, values):
    env, draws = make(task, render=False), 1200
    counts = Counter()
    for seed in range(draws):
        env.reset(seed=seed)
        counts[variable(env)] += 1
    assert len(counts) == values
    expected = draws / values
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 20  # p < 0.002 for 5 degrees


def test_put_back_block_after_the_press_no_pixel_tells_the_origin():
    env, first, pressed = PutBackBlock(), [], []
    for mat in range(4):
        env.reset(seed=6)
        env.origin, env.blocks = mat, [Block("red", env.mats[mat], mat)]
        first.append(env.render())
        pressed.append(play(env, lambda e: e.light == "green"))
    assert_indistinguishable(pressed)
    assert all(not np.array_equal(first[0], other) for other in first[1:])


def test_observe_and_pickup_after_the_sign_no_pixel_tells_the_target():
    env, first, after = ObserveAndPickup(), [], []
    for place in range(4):
        env.reset(seed=6)
        env.target = place
        first.append(env.render())
        after.append(play(env, lambda e: e.steps == 8))
    assert_indistinguishable(after)
    assert all(not np.array_equal(first[0], other) for other in first[1:])


def test_swap_blocks_at_rest_no_pixel_tells_how_far_the_swap_is():
    env = SwapBlocks()
    seen = {}
    for begin in ring((0, 1)):
        env.reset(seed=6)
        env.ring = ring(begin)
        env.blocks = [Block(color, env.mats[mat], mat) for color, mat in zip(("red", "blue"), begin)]
        arrangement = begin
        seen.setdefault(arrangement, []).append((env.render(), env.joints.copy()))
        for moves in range(1, 4):
            docked = play(env, lambda e: e.at_rest())
            arrangement = (env.blocks[0].mat, env.blocks[1].mat)
            assert env.info()["subtask"] == (moves == 3)
            seen[arrangement] = [*seen.get(arrangement, []), docked]
    assert len(seen) == 6
    for moments in seen.values():
        assert len(moments) == 4  # once after none, one, two and three moves
        assert_indistinguishable(moments)


def test_press_button_at_rest_no_pixel_tells_the_count():
    env = PressButton()
    seed = next(s for s in range(50) if env.reset(seed=s) and env.digit == 4)
    env.reset(seed=seed)
    rests = [(env.render(), env.joints.copy())]
    rests += [play(env, lambda e: e.at_rest()) for _ in range(4)]
    assert (env.presses, env.hidden()) == (4, True)
    assert_indistinguishable(rests)


@settings(max_examples=300)
@given(st.lists(st.lists(st.floats(-12, 12), min_size=3, max_size=3), min_size=6, max_size=6))
def test_no_stationary_policy_on_the_ring_swaps_more_often_than_chance(logits):
    """Solves the walk of an arbitrary random policy (press, on, back per arrangement) exactly."""
    policy = np.exp(np.array(logits) - np.max(logits, axis=1, keepdims=True))
    policy /= policy.sum(axis=1, keepdims=True)
    moves = np.zeros((6, 6))
    for i in range(6):
        moves[i, (i + 1) % 6], moves[i, (i - 1) % 6] = policy[i, 1], policy[i, 2]
    pressed_at = np.linalg.solve(np.eye(6) * (1 + 1e-9) - moves, np.diag(policy[:, 0]))
    success = np.mean([pressed_at[i, (i + 3) % 6] for i in range(6)])
    assert success <= SwapBlocks.chance + 1e-6


@given(st.integers(1, 4), st.floats(0, 1))
def test_no_fixed_probability_to_confirm_beats_the_press_count_bound(presses, confirm):
    assert (1 - confirm) ** presses * confirm <= best_without_memory(presses) + 1e-12


def test_moving_on_round_the_ring_swaps_after_three_moves():
    for begin in ring((0, 1)):
        assert ring(begin)[3] == (begin[1], begin[0])
        assert len(set(ring(begin))) == 6
        moved = [(a[0] != b[0]) + (a[1] != b[1]) for a, b in zip(ring(begin), ring(begin)[1:])]
        assert moved == [1] * 5
