"""Datasets mixed by weight."""

from typing import Any

import numpy as np
import pytest
from episodes import CAMERA, assert_same, episode_frames, read_code
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.pack import pack
from mem0_jax.data.packed import PackedDataset
from mem0_jax.data.pipeline import make_loader
from mem0_jax.data.schedule import LaneSchedule

OTHER_LENGTHS = (6, 11, 4)
lengths_of_episodes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> LeRobotDataset:
    """Three episodes with an own text and without subtask ends; their pictures call themselves 40, 41, 42."""
    root = tmp_path_factory.mktemp("other") / "dataset"
    features = staged_features(64, 96)
    del features["subtask_end"]
    with LeRobotWriter(root, 10, features, "planar") as writer:
        for e, length in enumerate(OTHER_LENGTHS):
            frames: dict[str, Any] = episode_frames(40 + e, length)
            del frames["subtask_end"]
            frames["subtask"] = ["wipe the table"] * (length - 2) + ["press the button"] * 2
            writer.add_episode(frames, "wipe")
    return LeRobotDataset(root)


def source_of(dataset, **changes) -> LaneSource:
    settings: dict[str, Any] = {"lanes": 3, "frames": 4, "horizon": 5, "seed": 7} | changes
    return LaneSource(dataset, **settings)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0.05, 5)), min_size=1, max_size=4
    ),
    st.integers(1, 5),
    st.integers(0, 2**64 - 1),
)
def test_each_dataset_is_drawn_by_weight_and_played_in_permutations(groups, lanes, seed):
    lengths = np.concatenate([part for part, _ in groups])
    group = np.repeat(np.arange(len(groups)), [len(part) for part, _ in groups])
    weights = tuple(weight for _, weight in groups)
    schedule = LaneSchedule(lengths, lanes, seed, group, weights)
    played: dict[int, int] = {}
    for lane in range(lanes):
        passes, episode, _ = schedule.locate(lane, np.arange(9000))
        played |= dict(zip(passes.tolist(), episode.tolist()))
    count = next(p for p in range(len(played) + 1) if p not in played)  # all lanes have come so far
    order = np.array([played[p] for p in range(count)])
    for g in range(len(groups)):
        share, wanted = (group[order] == g).mean(), weights[g] / sum(weights)
        assert abs(share - wanted) < 6 * np.sqrt(wanted * (1 - wanted) / count) + 1e-9
        members, own = np.flatnonzero(group == g), order[group[order] == g]
        for at in range(0, len(own) - len(members), len(members)):
            assert sorted(own[at : at + len(members)]) == members.tolist()
            assert own[at : at + len(members)].tolist() == schedule.permutation(at // len(members), g).tolist()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 30_000))
def test_a_far_position_is_found_without_playing_up_to_it(seed, lane, tick):
    lengths, group = np.array([3, 1, 4, 1, 5]), np.array([0, 0, 1, 1, 1])
    walked, jumped = (LaneSchedule(lengths, 5, seed, group, (1, 2)) for _ in range(2))
    for at in range(0, tick, 2973):
        walked.locate((at // 2973) % 5, np.array([at]))
    for a, b in zip(walked.locate(lane, np.array([tick])), jumped.locate(lane, np.array([tick]))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("packed", [False, True])
def test_elements_are_the_frames_they_say(recorded, other, tmp_path, packed):
    if packed:
        pack(other, tmp_path / "packed", workers=1)
    second = PackedDataset(tmp_path / "packed") if packed else other
    mixture = Mixture([recorded, second], [1, 3])
    assert mixture.weights == (0.25, 0.75)
    source = source_of(mixture, jitter=None)
    seen, first = set(), recorded.num_frames
    for index in range(90):
        element = source[index]
        for t in range(4):
            number, frame = int(element["episode_index"][t]), int(element["frame"][t])
            episode = mixture.episodes[number]
            own, dataset = (number, recorded) if number < 7 else (number - 7, second)
            row = dataset.episodes[own].start + frame
            seen.add(number)
            assert episode.start + frame == row + (0 if number < 7 else first)
            assert read_code(element["images"][CAMERA][t]) == (own if number < 7 else 40 + own, frame)
            np.testing.assert_array_equal(element["state"][t], dataset.column("observation.state")[row])
            ids, texts = dataset.texts("subtask")
            assert source.texts[element["text_id"][t]] == texts[ids[row]]
            assert element["subtask_end"][t] == (recorded.column("subtask_end")[row] if number < 7 else 0)
            actions = dataset.column("action")[row : dataset.episodes[own].start + dataset.episodes[own].length][:5]
            np.testing.assert_array_equal(element["action"][t][: len(actions)], actions)
    assert seen == set(range(10)) - {2}  # episode 2 of the first is "null" throughout
    assert sorted(source.texts) == ["null", "pick block 0", "pick block 1", "press the button", "wipe the table"]
    source.close()


def test_without_weights_datasets_count_by_their_episodes(recorded, other):
    assert Mixture([recorded, other]).weights == (0.7, 0.3)


def test_threads_and_resume_do_not_change_a_byte(recorded, other):
    def make():
        return source_of(Mixture([recorded, other], [2, 1]))

    with make_loader(make(), threads=0) as loader:
        batches = [next(loader) for _ in range(12)]
    with make_loader(make(), threads=3) as loader:
        for step, expected in enumerate(batches):
            state = loader.get_state()
            batch = next(loader)
            with make_loader(make(), threads=step % 2) as again:
                again.set_state(state)
                resumed = next(again)
            assert_same(batch, expected)
            assert_same(resumed, expected)
    with (
        make_loader(source_of(Mixture([recorded, other], [1, 1]))) as changed,
        pytest.raises(ValueError, match=r"schedule was 'interleaved-1 0\.666666667 0\.333333333', now"),
    ):
        changed.set_state(state)


def test_datasets_that_do_not_fit_are_refused(recorded, other, tmp_path):
    with pytest.raises(ValueError, match="expected 2 positive numbers"):
        Mixture([recorded, other], [1, 0])
    with pytest.raises(ValueError, match="at least one dataset"):
        Mixture([])
    with LeRobotWriter(tmp_path / "small", 10, staged_features(32, 48), "planar") as writer:
        frames = episode_frames(0, 4)
        writer.add_episode(frames | {key: v[:, :32, :48] for key, v in frames.items() if "camera" in key}, "task")
    small = LeRobotDataset(tmp_path / "small")
    with pytest.raises(ValueError, match=r"picture size of .* \(64, 96\) in .*, \(32, 48\) in .*small"):
        source_of(Mixture([recorded, small]))
    resized = source_of(Mixture([recorded, small]), cameras={CAMERA: (16, 24)})
    assert resized[0]["images"][CAMERA].shape == (4, 16, 24, 3)
    with LeRobotWriter(tmp_path / "fast", 20, staged_features(64, 96), "planar") as writer:
        writer.add_episode(episode_frames(0, 4), "task")
    with pytest.raises(ValueError, match=r"agree in fps: 10\.0 in .*, 20\.0 in .*fast"):
        Mixture([recorded, LeRobotDataset(tmp_path / "fast")])
    with LeRobotWriter(tmp_path / "null", 10, staged_features(64, 96), "planar") as writer:
        writer.add_episode(episode_frames(0, 4, null_frames=(0, 1, 2, 3)), "task")
    with pytest.raises(ValueError, match=r"null: every frame is 'null'; take it out"):
        source_of(Mixture([recorded, LeRobotDataset(tmp_path / "null")]))
    with pytest.raises(ValueError, match="one dataset, not a mixture"):
        source_of(Mixture([recorded, other]), schedule="reference")
