import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mem0_jax.envs import TASKS, Expert, make, rollout
from mem0_jax.envs.arm import RIGHT
from mem0_jax.envs.press_button import PressButton
from mem0_jax.envs.put_back_block import PutBackBlock
from mem0_jax.envs.swap_blocks import SwapBlocks
from mem0_jax.envs.tabletop import GRASP_TOLERANCE, HOME, LAY_TOLERANCE


def reach(env, point, gripper, steps=10):
    """Bring the right gripper to `point`, then set it to `gripper`."""
    action = env.joints.copy()
    action[7:9] = RIGHT.inverse(point)
    for opening in (float(env.joints[13]), gripper):
        action[13] = opening
        for _ in range(steps):
            if env.step(action)[2]:
                return


def block_at(env):
    return env.blocks[0].position


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # advice on normalised actions
def test_follows_the_gymnasium_interface(task):
    check_env(make(task), skip_render_check=False)
    name = TASKS[task].rpartition(":")[2]
    env = gymnasium.make(f"mem0_jax/{name}-v0", render=False)
    assert env.spec is not None
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("task", TASKS)
def test_observations_fit_their_space_and_rewards_sum_to_the_progress(task):
    env = make(task)
    expert = Expert(env, np.random.default_rng(0))
    observation, info = env.reset(seed=5)
    assert not info["success"]
    total, over = 0.0, False
    while not over:
        assert env.observation_space.contains(observation)
        action = expert.act()[0]
        assert env.action_space.contains(action)
        observation, reward, terminated, truncated, info = env.step(action)
        assert 0 <= info["reward"] <= 1
        assert 0 <= info["subtask"] < len(env.subtasks)
        total, over = total + reward, terminated or truncated
    assert terminated
    assert info["success"]
    assert info["placed"]
    assert info["placed_right"]
    assert total == pytest.approx(1.0)
    assert info["reward"] == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_fixes_every_pixel_and_another_seed_differs(task):
    first, again, other = (
        rollout(env, Expert(env, np.random.default_rng(0)), seed)
        for env, seed in ((make(task), 7), (make(task), 7), (make(task), 8))
    )
    assert first.image is not None
    assert other.image is not None
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.action, again.action)
    assert not np.array_equal(first.image[0], other.image[0])


@pytest.mark.parametrize("task", TASKS)
def test_an_instruction_is_short_and_plain(task):
    words = make(task).instruction.split()
    assert len(words) <= 8
    assert all(word.strip(",").isalpha() and word.islower() for word in words)


@pytest.mark.parametrize("task", TASKS)
def test_an_idle_policy_is_cut_off_at_the_step_limit_without_a_choice(task):
    env = make(task, render=False)
    env.reset(seed=0)
    for step in range(1, env.step_limit + 1):
        _, _, terminated, truncated, info = env.step(HOME)
        assert not terminated
        assert truncated == (step == env.step_limit)
    assert not info["placed"]
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(HOME)


def test_rejects_bad_actions_and_options():
    env = make("put_back_block")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(HOME)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    env.reset(seed=0)
    for bad in (HOME[:13], np.append(HOME, 0), np.full(14, np.nan), HOME[None]):
        with pytest.raises(ValueError, match="14 finite joint targets"):
            env.step(bad)
    with pytest.raises(ValueError, match="rgb_array"):
        make("put_back_block", render_mode="human")
    with pytest.raises(ValueError, match="did you mean 'put_back_block'"):
        make("put_back_blok")


def test_without_rendering_images_are_black_and_the_physics_is_the_same():
    drawn, blind = PutBackBlock(), PutBackBlock(render=False)
    seen = rollout(drawn, Expert(drawn, np.random.default_rng(0)), 3)
    unseen = rollout(blind, Expert(blind, np.random.default_rng(0)), 3)
    assert seen.image is not None
    assert unseen.image is None
    np.testing.assert_array_equal(seen.state, unseen.state)
    observation, _ = blind.reset(seed=3)
    assert not observation["observation"]["head_camera"]["rgb"].any()
    np.testing.assert_array_equal(blind.render(), seen.image[0])


def test_a_gripper_takes_only_a_block_within_reach_and_only_by_closing():
    env = PutBackBlock(render=False)
    env.reset(seed=2)
    x, y = block_at(env)
    reach(env, (x, y - 1.2 * GRASP_TOLERANCE), 0.0)
    assert env.held(RIGHT) is None
    reach(env, (x, y), 0.0)  # shut already: pushing a shut gripper onto a block takes nothing
    assert env.held(RIGHT) is None
    reach(env, (x, y - 0.8 * GRASP_TOLERANCE), 1.0)
    reach(env, (x, y - 0.8 * GRASP_TOLERANCE), 0.0)
    assert env.held(RIGHT) is env.blocks[0]
    assert block_at(env) == env.tip(RIGHT)


def test_a_block_laid_near_the_pad_settles_in_its_middle_and_elsewhere_stays():
    env = PutBackBlock(render=False)
    env.reset(seed=2)
    pad = env.mats[4]
    reach(env, block_at(env), 0.0)
    reach(env, (pad[0] + 1.3 * LAY_TOLERANCE, pad[1]), 1.0)
    assert block_at(env) == pytest.approx((pad[0] + 1.3 * LAY_TOLERANCE, pad[1]), abs=1e-4)
    assert env.info()["subtask"] == 0
    reach(env, block_at(env), 0.0)
    reach(env, (pad[0] + 0.7 * LAY_TOLERANCE, pad[1]), 1.0)
    assert block_at(env) == pad
    assert env.info()["subtask"] == 1


def test_the_button_is_dead_until_the_block_is_on_the_pad():
    env = PutBackBlock(render=False)
    env.reset(seed=2)
    reach(env, env.buttons[0].position, 0.0)
    assert env.light == "off"
    assert env.tip(RIGHT) == pytest.approx(env.buttons[0].position, abs=1e-6)


def test_a_wrong_mat_is_a_choice_that_ends_the_episode_in_failure():
    env = PutBackBlock(render=False)
    env.reset(seed=2)
    wrong = (env.origin + 1) % 4
    for point, gripper in ((block_at(env), 0), (env.mats[4], 1), (env.buttons[0].position, 0), (env.mats[4], 1)):
        reach(env, point, gripper)
    reach(env, block_at(env), 0.0)
    reach(env, env.mats[wrong], 1.0)
    info = env.info()
    assert (info["placed"], info["placed_right"], info["success"]) == (True, False, False)
    assert info["reward"] == pytest.approx(0.6)


def test_a_block_dropped_between_the_mats_ends_a_swap():
    env = SwapBlocks(render=False)
    env.reset(seed=0)
    reach(env, block_at(env), 0.0)
    reach(env, (0.75, 0.45), 1.0)
    assert env.failed
    assert not env.info()["placed"]


def test_a_recalled_arm_can_do_nothing_until_it_docks_exactly_at_home():
    env = PressButton(render=False)
    seed = next(s for s in range(50) if env.reset(seed=s) and env.digit >= 3)
    env.reset(seed=seed)
    button = env.buttons[0].position
    reach(env, button, 0.0)
    assert (env.presses, env.recalled) == (1, True)
    reach(env, button, 1.0)
    reach(env, button, 0.0)
    assert env.presses == 1
    reach(env, (RIGHT.home[0] - 0.03, RIGHT.home[1]), 1.0)
    assert not env.recalled
    reach(env, button, 0.0)
    assert env.presses == 2


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_wrong_count_of_presses_fails(extra):
    env = PressButton(render=False)
    seed = next(s for s in range(50) if env.reset(seed=s) and env.digit == 2)
    env.reset(seed=seed)
    for _ in range(env.digit + extra):
        reach(env, env.buttons[0].position, 0.0)
        if not env.failed:
            reach(env, RIGHT.home, 1.0)
    if not env.failed:
        reach(env, env.buttons[1].position, 0.0)
    assert env.failed
    assert not env.info()["success"]


def test_arms_do_not_move_while_the_sign_is_shown():
    env = make("observe_and_pickup", render=False)
    env.reset(seed=0)
    action = HOME + np.float32(0.3)
    moved = [not np.array_equal(env.step(action)[0]["joint_action"]["vector"], HOME) for _ in range(9)]
    assert moved == [False] * 8 + [True]


def test_importing_the_environments_pulls_in_no_learning_framework():
    code = "import sys, mem0_jax.envs as e; e.make('put_back_block').reset(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "torch", "tensorflow", "transformers", "matplotlib"} & set(modules)
