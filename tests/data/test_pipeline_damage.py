"""Damaged episodes: others play in their place, and the stream stays a pure function of files and index."""

import contextlib
import itertools
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.error import FFmpegError
from episodes import CAMERA, LENGTHS, NULLS, assert_same, episode_frames, read_code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.pack import pack
from mem0_jax.data.packed import PackedDataset
from mem0_jax.data.pipeline import make_loader
from mem0_jax.tree import flatten

STAND_IN = 2**30  # passes numbered from here on play in the place of others
PLAYED = {e: [f for f in range(n) if f not in NULLS.get(e, ())] for e, n in enumerate(LENGTHS) if e != 2}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """The recorded episodes, one mp4 each."""
    root = tmp_path_factory.mktemp("damage") / "videos"
    with LeRobotWriter(root, 10, staged_features(64, 96), "planar", video_mb=0) as writer:
        for e, length in enumerate(LENGTHS):
            writer.add_episode(episode_frames(e, length, null_frames=NULLS.get(e, ())), "task")
    return root


@pytest.fixture(scope="module")
def packed(videos, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("damage") / "packed"
    pack(LeRobotDataset(videos), root, workers=1)
    return root


def video_of(root: Path, episode: int) -> Path:
    return root / f"videos/{CAMERA}/chunk-000/file-{episode:03d}.mp4"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank_packets(path: Path, frame: int = 0) -> None:
    """Overwrite the coded pictures from a frame on, leaving the file's tables as they are."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]
    data = bytearray(path.read_bytes())
    for position, size in packets[frame:]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)


def first_damaged(path: Path, episode: int) -> int:
    """How many of the episode's played frames PyAV decodes, read plainly from the start."""
    frames = 0
    with contextlib.suppress(FFmpegError, FileNotFoundError), av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1  # with more, pictures before the damage are lost
        for _ in container.decode(video=0):
            frames += 1
    return sum(frame < frames for frame in PLAYED[episode])


def source_of(dataset, **changes) -> LaneSource:
    settings: dict[str, Any] = {"lanes": 3, "frames": 4, "horizon": 5, "seed": 7} | changes
    return LaneSource(dataset, **settings)


def stream(source: LaneSource, lane: int, steps: int) -> dict[str, np.ndarray]:
    windows = [flatten(source[step * source.num_local_lanes + lane]) for step in range(steps)]
    return {key: np.concatenate([window[key] for window in windows]) for key in windows[0]}


def check_stand_ins(healthy: LaneSource, damaged: LaneSource, first_bad: dict[int, int], steps: int) -> None:
    """What the first 3 lanes play, tick by tick, against what they would play without damage.

    `first_bad` tells for each damaged episode the first of its played frames (counted among these) that is damaged.
    """
    frames = damaged.frames
    for lane in range(damaged.num_local_lanes):
        plain, found = stream(healthy, lane, steps), stream(damaged, lane, steps)
        stands_in = found["episode"] >= STAND_IN
        for key in ("episode", "episode_index", "frame", "is_first", "action", f"images/{CAMERA}", "state", "text_id"):
            np.testing.assert_array_equal(found[key][~stands_in], plain[key][~stands_in], err_msg=key)
        begin = 0
        for t in range(steps * frames):
            begin = t if plain["is_first"][t] else begin
            bad = first_bad.get(int(plain["episode_index"][t]))
            # The rule: from the window that would show the first damaged frame, but not before the pass begins.
            expected = bad is not None and t >= (begin + bad) // frames * frames
            assert stands_in[t] == expected
            if not expected:
                continue
            other, frame = int(found["episode_index"][t]), int(found["frame"][t])
            assert other not in first_bad
            place = PLAYED[other].index(frame)
            assert found["is_first"][t] == (place == 0)
            starts = t == begin or not stands_in[t - 1]
            assert starts <= (place == 0)
            if not starts and place > 0:
                assert PLAYED[other].index(int(found["frame"][t - 1])) == place - 1
                assert found["episode"][t - 1] == found["episode"][t]
            elif not starts:
                assert found["episode"][t - 1] != found["episode"][t]
        codes = [read_code(image) for image in found[f"images/{CAMERA}"]]
        assert codes == list(zip(found["episode_index"].tolist(), found["frame"].tolist()))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("harm", ["lost", "truncated", "undecodable"])
def test_lost_and_truncated_videos_are_played_by_others(videos, tmp_path, caplog, harm, cache):
    root = shutil.copytree(videos, tmp_path / "copy")
    for episode in (1, 5):
        {"lost": Path.unlink, "truncated": truncate, "undecodable": blank_packets}[harm](video_of(root, episode))
    first_bad = {episode: first_damaged(video_of(root, episode), episode) for episode in (1, 5)}
    source = source_of(LeRobotDataset(root), cache_frames=cache)
    with caplog.at_level(logging.WARNING):
        check_stand_ins(source_of(LeRobotDataset(videos), cache_frames=True), source, first_bad, 30)
    assert sorted(source.damaged) == [1, 5]
    warned = [record.getMessage() for record in caplog.records if "other episodes are played" in record.getMessage()]
    assert len(warned) == 2  # once an episode
    frame = PLAYED[5][first_bad[5]]
    assert any(f"episode 5 cannot be read from frame {frame} on" in text and "5.mp4" in text for text in warned)
    with make_loader(source_of(LeRobotDataset(root), cache_frames=cache)) as loader:
        for _ in range(30):
            next(loader)
        assert loader.damaged == 2
    with make_loader(source_of(LeRobotDataset(root), cache_frames=cache, strict=True)) as loader:
        batches = itertools.islice(loader, 30)
        with pytest.raises((ValueError, OSError), match=r"episode [15] .*file-00[15]\.mp4"):
            list(batches)


@pytest.mark.parametrize("cache", [False, True])
def test_an_episode_plays_up_to_its_damage(videos, tmp_path, cache):
    root = shutil.copytree(videos, tmp_path / "copy")
    blank_packets(video_of(root, 5), 9)
    assert first_damaged(video_of(root, 5), 5) == 9
    source = source_of(LeRobotDataset(root), cache_frames=cache)
    check_stand_ins(source_of(LeRobotDataset(videos), cache_frames=True), source, {5: 9}, 40)
    assert list(source.damaged) == [5]
    jumping = source_of(LeRobotDataset(root), cache_frames=not cache)
    for index in np.random.default_rng(0).permutation(120):
        assert_same(jumping[index], source[index])


def break_pictures(root: Path, episode_frames: dict[int, int], starts: list[int]) -> None:
    """Make single packed pictures unreadable: their bytes no longer have the CRC that was noted."""
    path = root / "pictures/000.bin"
    index = np.fromfile(path, "<i8").reshape(-1, 3)
    for episode, frame in episode_frames.items():
        index[starts[episode] + frame, 2] ^= 1
    index.tofile(path)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    harm=st.dictionaries(st.sampled_from(sorted(PLAYED)), st.integers(0, 15), max_size=4),
    lanes=st.integers(1, 4),
    frames=st.integers(1, 9),
    seed=st.integers(0, 99),
    cache=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_damage_leaves_a_pure_stream(packed, tmp_path_factory, harm, lanes, frames, seed, cache, order):
    root = tmp_path_factory.getbasetemp() / "broken"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(packed, root)
    harm = {episode: frame % len(PLAYED[episode]) for episode, frame in harm.items()}  # place among the played
    break_pictures(root, {e: PLAYED[e][k] for e, k in harm.items()}, np.cumsum((0, *LENGTHS)).tolist())
    options = {"lanes": lanes, "frames": frames, "seed": seed}
    steps = 60 // frames
    source = source_of(PackedDataset(root), cache_frames=cache, **options)
    check_stand_ins(source_of(PackedDataset(packed), cache_frames=True, **options), source, harm, steps)
    indices = list(range(steps * lanes))
    order.shuffle(indices)
    jumping = source_of(PackedDataset(root), cache_frames=not cache, **options)
    for index in indices:
        assert_same(jumping[index], source[index])
    assert set(jumping.damaged) <= set(harm)


def test_resume_over_damage_in_a_new_process_and_on_two_hosts(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "copy")
    break_pictures(root, {5: 10, 3: 2, 0: 6}, np.cumsum((0, *LENGTHS)).tolist())
    options: dict[str, Any] = {"lanes": 4, "frames": 3, "horizon": 5, "seed": 1}
    with make_loader(LaneSource(PackedDataset(root), **options)) as loader:
        batches = [(json.dumps(loader.get_state()), next(loader)) for _ in range(25)]
    assert any((batch["episode"] >= STAND_IN).any() for _, batch in batches)
    code = """if True:
        import json, sys
        import numpy as np
        from mem0_jax.data.lanes import LaneSource
        from mem0_jax.data.packed import PackedDataset
        from mem0_jax.data.pipeline import make_loader
        from mem0_jax.tree import flatten
        root, options, states, out = sys.argv[1], *map(json.loads, sys.argv[2:4]), sys.argv[4]
        found = {}
        for host in range(2):
            count = options["lanes"] // 2
            source = LaneSource(PackedDataset(root), first_lane=host * count, num_local_lanes=count, **options)
            with make_loader(source, threads=1) as loader:
                for i, state in enumerate(states):
                    loader.set_state(state)
                    found |= {f"{i} {host} {key}": value for key, value in flatten(next(loader)).items()}
        np.savez(out, **found)
    """
    states = json.dumps([json.loads(state) for state, _ in batches])
    arguments = [str(root), json.dumps(options), states, str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    with np.load(tmp_path / "found.npz") as found:
        for i, (_, batch) in enumerate(batches):
            for key, value in flatten(batch).items():
                np.testing.assert_array_equal(np.concatenate([found[f"{i} 0 {key}"], found[f"{i} 1 {key}"]]), value)


def test_without_any_whole_episode_the_loader_says_so(videos, tmp_path):
    root = shutil.copytree(videos, tmp_path / "copy")
    for episode in range(len(LENGTHS)):
        video_of(root, episode).unlink()
    with (
        make_loader(source_of(LeRobotDataset(root))) as loader,
        pytest.raises(
            ValueError, match=r"copy: no episode can be read to its end; episode 0, from frame 0 on: .*000\.mp4"
        ),
    ):
        next(loader)
