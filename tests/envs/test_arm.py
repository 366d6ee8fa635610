import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.envs.arm import ARMS, JOINT_STEP, LEFT, RIGHT, WRIST, home_joints, joint_limits, limit_speed

across, ahead = st.floats(0.15, 4 / 3 - 0.15), st.floats(0.3, 0.85)
vectors = st.lists(st.floats(-4, 4, width=32), min_size=14, max_size=14).map(lambda v: np.array(v, np.float32))


@given(across, ahead, st.sampled_from(ARMS))
def test_inverse_kinematics_reaches_every_point_of_the_workspace_within_the_joint_limits(x, y, arm):
    joints = arm.inverse((x, y))
    assert arm.forward(*joints)[1] == pytest.approx((x, y), abs=1e-9)
    low, high = joint_limits()
    assert (low[:2] <= joints).all()
    assert (joints <= high[:2]).all()


@given(across, ahead)
def test_the_arms_are_mirror_images(x, y):
    assert LEFT.inverse((4 / 3 - x, y)) == pytest.approx(RIGHT.inverse((x, y)), abs=1e-12)


@given(across, ahead, st.floats(0, 2 * math.pi), st.sampled_from(ARMS))
def test_an_expert_step_is_within_the_speed_limit_of_the_joints(x, y, angle, arm):
    step = (x + 0.07 * math.cos(angle), y + 0.07 * math.sin(angle))
    change = np.subtract(arm.inverse(step), arm.inverse((x, y)))
    assert np.abs(change).max() < JOINT_STEP


@given(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from(ARMS))
def test_inverse_kinematics_of_an_unreachable_point_stays_within_the_limits(x, y, arm):
    low, high = joint_limits()
    joints = np.array(arm.inverse((x, y)), np.float32)
    assert (low[:2] <= joints + 1e-6).all()
    assert (joints - 1e-6 <= high[:2]).all()


@given(vectors)
def test_a_step_is_limited_and_moves_neither_wrists_nor_locked_arms(target):
    home = home_joints()
    after = limit_speed(home, target, locked=(LEFT,))
    np.testing.assert_array_equal(after[:7], home[:7])
    np.testing.assert_array_equal(after[9:13], np.array(WRIST, np.float32))
    assert np.abs(after - home).max() <= 0.4 + 1e-6
    assert np.abs(after - home)[7:9].max() <= JOINT_STEP + 1e-6


@given(vectors)
def test_a_held_target_is_reached_exactly_and_kept(target):
    low, high = joint_limits()
    joints = home_joints()
    for _ in range(40):
        joints = limit_speed(joints, target)
    moving = [0, 1, 6, 7, 8, 13]
    np.testing.assert_array_equal(joints[moving], np.clip(target, low, high)[moving])
