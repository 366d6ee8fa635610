"""The batch order of the reference's own loader, recorded from it (PyTorch DataLoader and all)."""

from typing import Any

import jax
import numpy as np
import pytest
from episodes import ASSETS, CAMERA, LENGTHS, NULLS, assert_same, episode_frames, read_code

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.pipeline import make_loader
from mem0_jax.data.schedule import ReferenceSchedule

MORE_LENGTHS = (*LENGTHS, 4, 10, 3, 6)
# reference_order.npz: (episode, frame) [batches, batch, 2] that RandomEpisodeIterableDataset gave for these episodes.
with np.load(ASSETS / "reference_order.npz") as file:
    RUNS = {key: file[key] for key in file.files if key != "lengths"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> LeRobotDataset:
    root = tmp_path_factory.mktemp("reference") / "dataset"
    with LeRobotWriter(root, 10, staged_features(64, 96), "planar") as writer:
        for e, length in enumerate(MORE_LENGTHS):
            writer.add_episode(episode_frames(e, length, null_frames=NULLS.get(e, ())), "task")
    return LeRobotDataset(root)


def parse(name: str) -> dict[str, int]:
    """world2_rank0_workers2_seed42 as a dict."""
    return {part.rstrip("0123456789"): int(part.lstrip("abcdefghijklmnopqrstuvwxyz")) for part in name.split("_")}


def source_of(dataset: LeRobotDataset, run: dict[str, int], frames: int, **changes) -> LaneSource:
    settings: dict[str, Any] = {"first_lane": run["rank"], "num_local_lanes": 1} | changes
    settings |= {"lanes": run["world"], "frames": frames, "horizon": 3, "seed": run["seed"]}
    # PyTorch reads with 0 workers as with one.
    return LaneSource(dataset, schedule="reference", workers=max(1, run["workers"]), **settings)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_batches_are_those_of_the_reference(dataset, name):
    expected, run = RUNS[name], parse(name)
    source = source_of(dataset, run, expected.shape[1], cache_frames=True)
    with make_loader(source) as loader:
        for batch in expected:
            element = jax.tree.map(lambda value: value[0], next(loader))
            found = np.stack([element["episode_index"], element["frame"]], -1)
            np.testing.assert_array_equal(found, batch)
            assert [list(read_code(image)) for image in element["images"][CAMERA]] == batch.tolist()


def test_streams_of_workers_keep_their_own_decoders(dataset):
    """Windows alternate between streams, yet nothing is decoded twice: decoding in order equals the cached pictures."""
    run = {"world": 1, "rank": 0, "workers": 3, "seed": 1}
    cached, decoded = (source_of(dataset, run, 4, cache_frames=cache) for cache in (True, False))
    for index in range(60):
        np.testing.assert_array_equal(cached[index]["images"][CAMERA], decoded[index]["images"][CAMERA])
    passes = np.concatenate([decoded[index]["episode"] for index in range(60)])
    first = np.concatenate([decoded[index]["is_first"] for index in range(60)])
    assert len(np.unique(passes[first])) == first.sum()  # a number names one pass only
    decoded.close()


def test_the_released_setting_starts_as_it_was_observed():
    """12 episodes of 250 frames, 2 workers, batches of 56, seed 42: observed with the real dataset and library."""
    schedule = ReferenceSchedule(np.full(12, 250), np.arange(12), lanes=1, workers=2, seed=42)

    def batch(step):
        _, episode, offset = schedule.locate(*schedule.window(0, step, 56))
        return list(zip(episode.tolist(), offset.tolist()))

    assert batch(0) == [(0, f) for f in range(56)]
    assert batch(1) == [(6, f) for f in range(56)]
    assert batch(2) == [(0, f) for f in range(56, 112)]
    assert batch(8) == [(0, f) for f in range(224, 250)] + [(1, f) for f in range(30)]


def test_resume_and_two_hosts(dataset):
    run = {"world": 2, "rank": 0, "workers": 2, "seed": 42}
    whole = source_of(dataset, run, 5, num_local_lanes=2)
    halves = [source_of(dataset, run | {"rank": rank}, 5) for rank in range(2)]
    with make_loader(whole) as loader, make_loader(halves[0]) as a, make_loader(halves[1]) as b:
        for _ in range(7):
            next(loader)
        for half in (a, b):
            half.set_state(loader.get_state())
        both = jax.tree.map(lambda *parts: np.concatenate(parts), next(a), next(b))
        assert_same(both, next(loader))
        other = source_of(dataset, run | {"workers": 1}, 5, num_local_lanes=2)
        with make_loader(other) as c, pytest.raises(ValueError, match=r"workers=2', now 'reference-1 workers=1"):
            c.set_state(loader.get_state())


def test_too_few_episodes_are_refused(dataset):
    with pytest.raises(ValueError, match=r"worker 0 of lane 2 has no frame to play.*11 episodes.*4 lanes x 3 workers"):
        source_of(dataset, {"world": 4, "rank": 0, "workers": 3, "seed": 1}, 4)
    with pytest.raises(ValueError, match=r"seed is 4294967296"):
        source_of(dataset, {"world": 1, "rank": 0, "workers": 1, "seed": 2**32}, 4)
    with pytest.raises(ValueError, match=r"schedule is 'random'"):
        LaneSource(dataset, lanes=1, frames=1, horizon=1, seed=0, schedule="random")
