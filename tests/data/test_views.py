"""Several cameras of different sizes, earlier frames by index, and single frames in a random order."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from arm import CAMERAS, LENGTHS, pictures, write_arm
from episodes import CAMERA, NULLS, read_code
from episodes import LENGTHS as RECORDED

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.normalize import Normalizer, NormStats
from mem0_jax.data.pipeline import make_loader
from mem0_jax.data.robot import Robot, robot_of
from mem0_jax.data.subset import Subset
from mem0_jax.data.transforms import ColorJitter
from mem0_jax.tree import flatten

TOP, WRIST = CAMERAS
SIZES = {TOP: (24, 40), WRIST: None}
PLAYED = [[f for f in range(n) if f not in NULLS.get(e, ())] for e, n in enumerate(RECORDED)]


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> LeRobotDataset:
    return LeRobotDataset(write_arm(tmp_path_factory.mktemp("views") / "arm"))


def source_of(dataset, **changes) -> LaneSource:
    options = {"lanes": 2, "frames": 4, "horizon": 3, "seed": 5, "text": "task"}
    return LaneSource(dataset, **(options | changes))


@pytest.mark.parametrize("cache", [False, True])
def test_every_camera_shows_the_same_frame_in_its_own_size(arm, cache):
    source = source_of(arm, cameras=SIZES, cache_frames=cache)
    for index in range(20):
        element = source[index]
        assert {key: view.shape for key, view in element["images"].items()} == {
            TOP: (4, 24, 40, 3),
            WRIST: (4, 32, 32, 3),
        }
        for t, (episode, frame) in enumerate(zip(element["episode_index"], element["frame"])):
            for key, shown in pictures(int(episode), int(frame)).items():
                found = element["images"][f"observation.images.{key}"][t].mean((0, 1))
                np.testing.assert_allclose(found, shown.mean((0, 1)), atol=6)  # films are coded
    source.close()


def test_a_camera_does_not_depend_on_the_others(arm):
    both = source_of(arm, cameras=SIZES, jitter=ColorJitter())[3]["images"]
    alone = source_of(arm, cameras={TOP: (24, 40)}, jitter=ColorJitter())[3]["images"]
    np.testing.assert_array_equal(both[TOP], alone[TOP])


def test_a_batch_holds_all_cameras(arm):
    with make_loader(source_of(arm, cameras=SIZES), threads=2) as loader:
        batch = next(loader)
    images: Any = batch["images"]
    assert {key: view.shape[:2] for key, view in images.items()} == {TOP: (2, 4), WRIST: (2, 4)}


def test_an_episode_that_one_camera_lost_is_replaced_in_all(arm, tmp_path_factory):
    root = write_arm(tmp_path_factory.mktemp("lost") / "arm")
    for film in (root / "videos" / WRIST).rglob("*.mp4"):
        film.write_bytes(film.read_bytes()[:100])
    source = source_of(LeRobotDataset(root), cameras=SIZES)
    with pytest.raises(ValueError, match="no episode can be read"):
        source[0]
    assert source.damaged


def test_differences_begin_at_each_frame_of_a_window(arm):
    own = robot_of(arm)
    robot = Robot(own.state, own.action, delta=own.action.names[:6])
    normalizer = Normalizer(NormStats.from_dataset(arm, robot, 3), robot=robot, clip=False)
    element = source_of(arm, cameras={}, normalizer=normalizer)[1]
    state, action = (arm.column(key) for key in ("observation.state", "action"))
    for t, (e, frame) in enumerate(zip(element["episode_index"], element["frame"])):
        episode = arm.episodes[e]
        rows = np.minimum(episode.start + frame + np.arange(3), episode.start + episode.length - 1)
        wanted = action[rows] - np.where(np.arange(7) < 6, state[episode.start + frame], 0)
        np.testing.assert_allclose(normalizer.action.denormalize(element["action"][t]), wanted, atol=1e-5)
        np.testing.assert_array_equal(element["action_is_pad"][t], frame + np.arange(3) >= episode.length)


@pytest.mark.parametrize("cache", [False, True])
def test_earlier_frames_are_those_played_before(recorded, cache):
    offsets = (-5, -1, 0, "first")
    options = {"lanes": 3, "frames": 4, "cache_frames": cache, "text": "subtask"}
    source = source_of(recorded, history=offsets, **options)
    plain = source_of(recorded, **options)
    for index in np.random.default_rng(0).permutation(30):
        element, alone = source[index], plain[index]
        history, valid = element.pop("history")[CAMERA], element.pop("history_valid")
        for key, value in flatten(alone).items():
            np.testing.assert_array_equal(flatten(element)[key], value, err_msg=key)
        assert (history.shape, valid.shape) == ((4, 4, 64, 96, 3), (4, 4))
        for t, (episode, frame) in enumerate(zip(element["episode_index"], element["frame"])):
            frames = PLAYED[episode]
            place = frames.index(frame)
            for k, back in enumerate(offsets):
                wanted = 0 if back == "first" else place + back
                assert valid[t, k] == (wanted >= 0)
                if wanted >= 0:
                    assert read_code(history[t, k]) == (episode, frames[wanted])
                else:
                    assert not history[t, k].any()


def test_frames_to_come_are_no_history(recorded):
    with pytest.raises(ValueError, match="expected offsets of 0 or below"):
        source_of(recorded, history=(-1, 1))


def test_shuffled_frames_come_once_each_in_any_order(recorded):
    total = sum(map(len, PLAYED))
    source = source_of(recorded, lanes=3, frames=1, schedule="shuffled", text="subtask", cache_frames=True)
    elements = [source[i] for i in range(2 * total)]
    places = [(int(e["episode_index"][0]), int(e["frame"][0])) for e in elements]
    assert set(Counter(places[:total]).values()) == {1} == set(Counter(places[total:]).values())
    assert sorted(places[:total]) == [(e, f) for e, frames in enumerate(PLAYED) for f in frames]
    assert places[:total] != sorted(places[:total])
    assert places[:total] != places[total:]
    for element, place in zip(elements, places):
        assert read_code(element["images"][CAMERA][0]) == place
        assert element["is_first"].all()
    assert len({int(e["episode"][0]) for e in elements}) == 2 * total  # each is a pass: no memory outlasts it
    again = source_of(recorded, lanes=3, frames=1, schedule="shuffled", text="subtask")
    np.testing.assert_array_equal(again[17]["images"][CAMERA], elements[17]["images"][CAMERA])


def test_shuffled_mixtures_have_the_shares_that_lanes_have(arm):
    parts = [Subset(arm, [0, 1]), Subset(arm, [2])]
    for weights in (None, (1, 9)):
        mixture = Mixture(parts, weights)
        source = source_of(mixture, lanes=1, frames=1, schedule="shuffled", cameras={})
        drawn = np.array([int(source[i]["episode_index"][0]) == 2 for i in range(3000)]).mean()
        lengths = np.array([(LENGTHS[0] + LENGTHS[1]) / 2, LENGTHS[2]]) * mixture.weights
        assert drawn == pytest.approx(lengths[1] / lengths.sum(), abs=0.04)
