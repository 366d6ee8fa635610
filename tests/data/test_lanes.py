"""The stream of lanes: its schedule, its contents, and that nothing but the position decides them."""

import itertools
import json
import shutil
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest
from episodes import ASSETS, CAMERA, LENGTHS, NULLS, assert_same, episode_frames, read_code
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.normalize import Normalizer, NormStats
from mem0_jax.data.pipeline import make_loader
from mem0_jax.data.schedule import LaneSchedule
from mem0_jax.data.transforms import ColorJitter, action_chunk
from mem0_jax.tree import flatten, unflatten

lengths_of_episodes = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def source_of(dataset: LeRobotDataset, **changes) -> LaneSource:
    settings: dict[str, Any] = {"lanes": 3, "frames": 4, "horizon": 5, "seed": 7} | changes
    return LaneSource(dataset, **settings)


# Schedule


@given(lengths_of_episodes, st.integers(1, 7), st.integers(0, 2**64 - 1), st.integers(1, 3))
def test_every_cycle_plays_every_episode_once_and_lanes_share_none(lengths, lanes, seed, cycles):
    schedule = LaneSchedule(np.array(lengths), lanes, seed)
    ticks = np.arange(cycles * sum(lengths) + max(lengths))
    played: dict[int, int] = {}
    for lane in range(lanes):
        passes, episode, offset = schedule.locate(lane, ticks)
        starts = np.flatnonzero(offset == 0)
        assert starts[0] == 0
        # In order: a pass counts 0, 1, ... up to its episode's length, then the next begins.
        np.testing.assert_array_equal(np.diff(offset)[np.diff(passes) == 0], 1)
        for start, end in itertools.pairwise(starts):
            assert end - start == lengths[episode[start]]
        assert len(set(passes[starts])) == len(starts)
        for p, e in zip(passes.tolist(), episode.tolist()):
            assert played.setdefault(p, e) == e
            assert p % lanes == lane
    n = len(lengths)
    for cycle in range(cycles):
        found = [played[p] for p in range(cycle * n, (cycle + 1) * n)]
        assert sorted(found) == list(range(n))
        assert found == schedule.permutation(cycle).tolist()


@given(lengths_of_episodes, st.integers(1, 5), st.integers(0, 10**6), st.integers(0, 3000))
def test_a_far_position_is_found_without_playing_up_to_it(lengths, lanes, seed, tick):
    walked, jumped = (LaneSchedule(np.array(lengths), lanes, seed) for _ in range(2))
    for at in range(0, tick, 97):
        walked.locate(lanes - 1, np.array([at]))
    for a, b in zip(walked.locate(lanes - 1, np.array([tick])), jumped.locate(lanes - 1, np.array([tick]))):
        np.testing.assert_array_equal(a, b)


def test_seeds_and_cycles_differ():
    def orders(seed):
        schedule = LaneSchedule(np.ones(20), 4, seed)
        return [tuple(schedule.permutation(cycle)) for cycle in range(5)]

    assert len(set(orders(0) + orders(1))) == 10


# Contents


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("frames", [1, 4, 30])
def test_elements_are_the_frames_they_say(recorded, cache, frames):
    normalizer = Normalizer(NormStats.from_dataset(recorded))
    source = source_of(recorded, frames=frames, cache_frames=cache, normalizer=normalizer)
    state, action = (recorded.column(key) for key in ("observation.state", "action"))
    ids, texts = recorded.texts("subtask")
    assert source.texts == texts
    for index in range(3 * max(3, 40 // frames)):
        element = source[index]
        for t in range(frames):
            episode = recorded.episodes[element["episode_index"][t]]
            frame = int(element["frame"][t])
            row = episode.start + frame
            assert read_code(element["images"][CAMERA][t]) == (episode.index, frame)
            assert frame not in NULLS.get(episode.index, ())
            np.testing.assert_array_equal(element["state"][t], normalizer.state.normalize(state[row]))
            actions = action[episode.start : episode.start + episode.length]
            chunk, pad = action_chunk(normalizer.action.normalize(actions), frame, 5)
            np.testing.assert_array_equal(element["action"][t], chunk)
            np.testing.assert_array_equal(element["action_is_pad"][t], pad)
            assert element["subtask_end"][t] == recorded.column("subtask_end")[row]
            assert element["text_id"][t] == ids[row]
    dtypes = {key: str(value.dtype) for key, value in flatten(element).items()}
    assert dtypes == {
        f"images/{CAMERA}": "uint8",
        **dict.fromkeys(("state", "action"), "float32"),
        **dict.fromkeys(("action_is_pad", "is_first"), "bool"),
        **dict.fromkeys(("episode", "episode_index", "frame", "subtask_end", "text_id"), "int32"),
    }
    source.close()


def test_lanes_walk_whole_episodes_without_the_null_frames(recorded):
    source = source_of(recorded, cache_frames=True)
    kept = {e: [i for i in range(n) if i not in NULLS.get(e, ())] for e, n in enumerate(LENGTHS) if e != 2}
    passes = {}
    for lane in range(3):
        windows = [source[step * 3 + lane] for step in range(30)]
        stream = {key: np.concatenate([w[key] for w in windows]) for key in ("episode", "frame", "is_first")}
        index = np.concatenate([w["episode_index"] for w in windows])
        np.testing.assert_array_equal(stream["is_first"][1:], np.diff(stream["episode"]) != 0)
        assert stream["is_first"][0]
        for key in np.unique(stream["episode"])[:-1]:  # the last may be cut
            chosen = stream["episode"] == key
            assert stream["frame"][chosen].tolist() == kept[int(index[chosen][0])]
            passes[int(key)] = int(index[chosen][0])
    for cycle in range(2):
        assert sorted(passes[p] for p in range(6 * cycle, 6 * cycle + 6)) == sorted(kept)


def test_one_episode_replayed_shows_a_boundary(tmp_path):
    with LeRobotWriter(tmp_path / "one", 10, staged_features(64, 96), "planar") as writer:
        writer.add_episode(episode_frames(0, 3), "task")
    source = source_of(LeRobotDataset(tmp_path / "one"), lanes=2, frames=7, cache_frames=True)
    element = source[1]
    assert element["frame"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert element["is_first"].tolist() == [True, False, False, True, False, False, True]
    assert element["episode"].tolist() == [1, 1, 1, 3, 3, 3, 5]
    assert [read_code(image) for image in element["images"][CAMERA]] == [(0, f) for f in element["frame"]]
    source.close()


def test_real_datasets_stream_alike(real, truth):
    source = source_of(real, lanes=2, frames=16, horizon=30, cameras={CAMERA: (60, 80)})
    for index in range(12):
        element = source[index]
        rows = [real.episodes[e].start + f for e, f in zip(element["episode_index"], element["frame"])]
        np.testing.assert_array_equal(element["state"], truth["state"][rows])
        np.testing.assert_array_equal((~element["action_is_pad"]).sum(1), truth["n_valid_future_actions_of_30"][rows])
        grid = truth["v21_grid" if real.version == "v2.1" else "v30_grid"][rows]
        means = element["images"][CAMERA].reshape(16, 4, 15, 5, 16, 3).mean((2, 4))
        assert np.abs(means - grid).max() < 3  # block borders blend when the picture shrinks
        assert [source.texts[i] for i in element["text_id"]] == truth["subtask"][rows].tolist()
    source.close()


@pytest.mark.parametrize("camera", ["front", "wrist"])
@pytest.mark.parametrize("version", ["v21", "v30"])
def test_image_columns_and_videos_stream_alike(version, camera):
    """The front camera is an image column; ground truth is what lerobot's own reader returned."""
    dataset = LeRobotDataset(ASSETS / f"lerobot_{version}_cameras")
    truth = np.load(ASSETS / f"lerobot_{version}_cameras.npz")[camera]
    source = source_of(dataset, lanes=2, frames=3, cameras={f"observation.images.{camera}": None}, text="task")
    with make_loader(source) as loader:
        for _ in range(6):
            batch = next(loader)
            start = np.array([episode.start for episode in dataset.episodes])
            rows = start[batch["episode_index"]] + batch["frame"]
            np.testing.assert_array_equal(batch["images"][f"observation.images.{camera}"], truth[rows])


def test_cached_and_decoded_pictures_are_equal_in_any_order(recorded):
    cached, decoded = (source_of(recorded, cache_frames=c, cameras={CAMERA: (32, 40)}) for c in (True, False))
    for index in np.random.default_rng(0).permutation(60):
        assert_same(cached[index], decoded[index])
    cached.close()
    decoded.close()


def test_jitter_depends_on_seed_step_and_lane_alone(recorded):
    def images(seed):
        source = source_of(recorded, seed=seed, cache_frames=True, jitter=ColorJitter(0.3, 0.3, 0.3))
        return [source[i]["images"][CAMERA] for i in (0, 1, 3, 0)]

    a, b = images(7), images(7)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a[0], a[3])
    plain = source_of(recorded, cache_frames=True)[0]["images"][CAMERA].astype(float)
    ratios = {round(float(x.mean() / y.mean()), 3) for x, y in zip(a[0], plain)}
    assert len(ratios) > 1  # drawn anew for each frame
    assert all(0.6 < ratio < 1.4 for ratio in ratios)


def test_transform_prepares_each_element(recorded):
    source = source_of(recorded, cache_frames=True, transform=lambda e: {"mean": e["images"][CAMERA].mean((1, 2, 3))})
    raw = source_of(recorded, cache_frames=True)
    np.testing.assert_array_equal(source[4]["mean"], raw[4]["images"][CAMERA].mean((1, 2, 3)))
    with make_loader(source) as loader:
        assert next(loader)["mean"].shape == (3, 4)


# Loader


def batches(source, n, **options):
    with make_loader(source, **options) as loader:
        return [next(loader) for _ in range(n)]


@pytest.mark.parametrize("cache", [False, True])
def test_threads_do_not_change_a_byte(recorded, cache):
    make = lambda: source_of(recorded, cache_frames=cache, jitter=ColorJitter())  # noqa: E731
    reference = batches(make(), 12, threads=0)
    for threads, prefetch in ((1, 1), (2, 2), (8, 3)):
        for a, b in zip(reference, batches(make(), 12, threads=threads, prefetch=prefetch)):
            assert_same(a, b)
    assert reference[0]["images"][CAMERA].shape == (3, 4, 64, 96, 3)


def test_resume_is_exact_for_any_thread_count_and_a_fresh_object(recorded):
    make = lambda: source_of(recorded, jitter=ColorJitter())  # noqa: E731
    reference = batches(make(), 9, threads=0)
    with make_loader(make(), threads=2) as loader:
        for step in range(9):
            state = json.loads(json.dumps(loader.get_state()))
            assert state["step"] == step
            with make_loader(make(), threads=step % 3) as other:
                other.set_state(state)
                assert_same(next(other), reference[step])
            assert_same(next(loader), reference[step])
        loader.set_state(state)
        assert_same(next(loader), reference[8])
    assert_same(batches(make(), 1, start_step=6)[0], reference[6])
    assert len(json.dumps(state)) < 300


def test_closing_waits_for_pictures_being_decoded(recorded):
    """A decoder freed under a thread that reads from it would end the program."""
    for i in range(40):
        source = source_of(recorded, lanes=6, frames=30)
        with make_loader(source, threads=4, prefetch=3) as loader:
            for _ in range(i % 3):
                next(loader)
        source.close()


def test_resume_in_a_new_process(recorded, tmp_path):
    source = source_of(recorded, jitter=ColorJitter())
    with make_loader(source) as loader:
        for _ in range(5):
            next(loader)
        state = loader.get_state()
        expected = next(loader)
    code = f"""if True:
        import numpy as np
        from mem0_jax.data.lanes import LaneSource
        from mem0_jax.data.lerobot import LeRobotDataset
        from mem0_jax.data.pipeline import make_loader
        from mem0_jax.data.transforms import ColorJitter
        from mem0_jax.tree import flatten
        dataset = LeRobotDataset({str(recorded.root)!r})
        source = LaneSource(dataset, lanes=3, frames=4, horizon=5, seed=7, jitter=ColorJitter())
        with make_loader(source) as loader:
            loader.set_state({state!r})
            np.savez({str(tmp_path / "batch.npz")!r}, **flatten(next(loader)))
    """
    subprocess.run([sys.executable, "-c", code], check=True)
    with np.load(tmp_path / "batch.npz") as file:
        assert_same(unflatten(dict(file)), expected)


def test_a_state_of_another_stream_is_refused(recorded):
    with make_loader(source_of(recorded)) as loader:
        state = loader.get_state()
    with make_loader(source_of(recorded, seed=8)) as other, pytest.raises(ValueError, match="seed was 7, now 8"):
        other.set_state(state)
    with make_loader(source_of(recorded)) as same, pytest.raises(ValueError, match="not a state"):
        same.set_state({"next_index": 3})


@pytest.mark.parametrize("split", [(2, 2), (1, 3), (1, 1, 2)])
def test_hosts_with_lane_blocks_make_up_the_global_batch(recorded, split):
    make = lambda **block: source_of(recorded, lanes=4, cache_frames=True, jitter=ColorJitter(), **block)  # noqa: E731
    whole = batches(make(), 6)
    firsts = np.cumsum((0, *split[:-1])).tolist()
    parts = [batches(make(first_lane=f, num_local_lanes=n), 6) for f, n in zip(firsts, split)]
    for step, batch in enumerate(whole):
        assert_same(jax.tree.map(lambda *blocks: np.concatenate(blocks), *(part[step] for part in parts)), batch)


def test_a_state_moves_to_another_number_of_hosts(recorded):
    with (
        make_loader(source_of(recorded, lanes=4)) as whole,
        make_loader(source_of(recorded, lanes=4, first_lane=2, num_local_lanes=2)) as half,
    ):
        for _ in range(3):
            next(whole)
        half.set_state(whole.get_state())
        batch, part = next(whole), next(half)
        assert_same(jax.tree.map(lambda value: value[2:], batch), part)


# Refusals


def test_bad_settings_are_refused(recorded):
    with pytest.raises(ValueError, match=r"lanes \(0\)"):
        source_of(recorded, lanes=0)
    with pytest.raises(ValueError, match="lanes 2 to 4 are not among 3"):
        source_of(recorded, first_lane=2, num_local_lanes=3)
    with pytest.raises(ValueError, match=r"'global_task'.*text=\"task\""):
        source_of(recorded, text="global_task")
    with pytest.raises(ValueError, match=r"needs 0\.9 MiB at 64x96, but cache_bytes is 0\.5 MiB"):
        source_of(recorded, cache_frames=True, cache_bytes=2**19)
    with pytest.raises(ValueError, match="seed is -1"):
        source_of(recorded, seed=-1)
    with pytest.raises(ValueError, match="wrist"):
        source_of(recorded, cameras={"wrist": None})
    with pytest.raises(ValueError, match=r"threads \(-1\)"):
        make_loader(source_of(recorded), threads=-1)
    assert source_of(recorded, text="task").texts == ["task 0", "task 1"]


def test_a_lost_video_stops_the_loader_by_name(recorded, tmp_path):
    dataset = LeRobotDataset(shutil.copytree(recorded.root, tmp_path / "copy"))
    (tmp_path / "copy/videos" / CAMERA / "chunk-000/file-000.mp4").unlink()
    with (
        make_loader(source_of(dataset, strict=True)) as loader,
        pytest.raises(FileNotFoundError, match=r"episode \d.*mp4 is missing"),
    ):
        next(loader)


def test_speed_with_a_warm_cache(recorded):
    """32 lanes of one 64x64 frame: more than 2 000 frames a second on one core; measured 17 000."""
    normalizer = Normalizer(NormStats.from_dataset(recorded))
    source = source_of(
        recorded, lanes=32, frames=1, horizon=10, cameras={CAMERA: (64, 64)}, cache_frames=True, normalizer=normalizer
    )
    with make_loader(source, threads=0) as loader:
        for _ in range(60):
            next(loader)
        start = time.process_time()
        for _ in range(100):
            next(loader)
        assert 3200 / (time.process_time() - start) > 2000
