import gymnasium
import numpy as np
import pytest

from mem0_jax.envs import TASKS, Expert, Noise, make, rollout
from mem0_jax.envs.expert import segment_ends
from mem0_jax.envs.press_button import PressButton
from mem0_jax.envs.tabletop import HOME


@pytest.fixture(params=TASKS)
def blind(request):
    return make(request.param, render=False)


def episodes(env, noise, count):
    expert = Expert(env, np.random.default_rng(1), noise)
    return [rollout(env, expert, seed) for seed in range(count)]


def test_the_expert_always_succeeds_and_nearly_always_under_noise(blind):
    assert all(episode.success for episode in episodes(blind, None, 300))
    assert np.mean([episode.success for episode in episodes(blind, Noise(), 300)]) >= 0.98


def test_episodes_stay_well_below_the_step_limit(blind):
    lengths = [len(episode) for episode in episodes(blind, Noise(), 100)]
    assert max(lengths) < 0.75 * blind.step_limit


def test_put_back_block_episodes_are_of_moderate_length():
    lengths = [len(episode) for episode in episodes(make("put_back_block", render=False), Noise(), 200)]
    assert 45 <= np.mean(lengths) <= 70


def test_noise_disturbs_what_is_executed_and_not_the_label(blind):
    """The label of a state does not depend on the noise drawn there; what is executed does."""
    expert = Expert(blind, np.random.default_rng(3), Noise())
    blind.reset(seed=4)
    differences, over = [], False
    while not over:
        label, _ = expert.act()
        again, _ = expert.act()
        np.testing.assert_array_equal(label, again)
        executed = expert.execute(label)
        differences.append(np.abs(executed - label).max())
        _, _, terminated, truncated, _ = blind.step(executed)
        over = terminated or truncated
    assert np.median(differences) > 0.005
    assert max(differences) < 0.5


def test_a_kick_has_its_length_in_table_units():
    env = make("put_back_block", render=False)
    env.reset(seed=0)
    expert = Expert(env, np.random.default_rng(0), Noise(sigma=0.0, kick_probability=1.0, kick=0.05))
    action, _ = expert.act()
    arm = env.working_arms[0]

    def tip(joints):
        return np.array(arm.forward(*joints[arm.joint : arm.joint + 2].tolist())[1])

    assert np.linalg.norm(tip(expert.execute(action)) - tip(action)) == pytest.approx(0.05, abs=1e-5)
    assert np.linalg.norm(tip(action) - tip(HOME)) == pytest.approx(0.07, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_recorded_episode_has_aligned_arrays(task):
    env = make(task)
    episode = rollout(env, Expert(env, np.random.default_rng(0), Noise()), seed=9)
    frames = len(episode)
    assert episode.image is not None
    assert episode.image.shape == (frames, 240, 320, 3)
    assert episode.image.dtype == np.uint8
    for array in (episode.state, episode.action):
        assert array.shape == (frames, 14)
        assert array.dtype == np.float32
    assert len(episode.text) == frames
    np.testing.assert_array_equal(episode.state[0], HOME)
    env.reset(seed=9)
    np.testing.assert_array_equal(episode.image[0], env.render())
    assert set(episode.text) == (set(env.subtasks) if env.staged else {env.instruction})
    assert episode.subtask[0] == 0
    assert episode.subtask[-1] == len(env.subtasks) - 1
    assert episode.subtask_end[-8:].all()


def test_a_staged_episode_marks_the_end_of_every_subtask_and_names_each():
    env = make("press_button", render=False)
    episode = next(e for e in episodes(env, Noise(), 20) if e.subtask[-1] == 3)
    assert episode.subtask_end.sum() == 4 * 8
    assert list(np.unique(episode.subtask)) == [0, 1, 2, 3]
    for stage in range(4):
        frames = np.flatnonzero(episode.subtask == stage)
        np.testing.assert_array_equal(episode.subtask_end[frames], [0] * (len(frames) - 8) + [1] * 8)
        np.testing.assert_array_equal(episode.state[frames[0]], HOME)
        name = "press the confirm button" if stage == 3 else "press the button"
        assert {episode.text[i] for i in frames} == {name}


def test_segment_ends_of_short_segments_do_not_spill_over():
    ends = segment_ends(np.repeat([0, 1, 2], [10, 3, 9]))
    assert ends.tolist() == [0] * 2 + [1] * 8 + [1] * 3 + [0] + [1] * 8
    assert segment_ends(np.zeros(4, int)).tolist() == [1, 1, 1, 1]


def test_an_expert_refuses_a_foreign_or_another_environment():
    with pytest.raises(TypeError, match=r"mem0_jax\.envs"):
        Expert(gymnasium.make("CartPole-v1"), np.random.default_rng(0))
    env = make("put_back_block")
    with pytest.raises(ValueError, match="differ"):
        rollout(make("put_back_block"), Expert(env, np.random.default_rng(0)), 0)


def test_the_expert_acts_on_the_visible_scene_and_the_hidden_variable_alone():
    """Frames of noisy runs that look equal and hide the same get the same label, at whatever time they occur."""
    env = PressButton(render=False)
    expert = Expert(env, np.random.default_rng(0), Noise())
    seen = {}
    for seed in range(30):
        env.reset(seed=seed)
        over = False
        while not over:
            label, _ = expert.act()
            visible = (seed, env.joints.tobytes(), env.recalled, env.hidden())
            np.testing.assert_array_equal(seen.setdefault(visible, label), label)
            _, _, terminated, truncated, _ = env.step(expert.execute(label))
            over = terminated or truncated
    assert any(seen)
