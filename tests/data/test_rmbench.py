"""Importing RMBench recordings: equal to the reference's converter, several tasks as one dataset, resumable."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA
from hypothesis import given
from hypothesis import strategies as st
from rmbench_files import RECORDINGS, decoded, run_import, write_copy

from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.rmbench import TaskFolder, open_task

CONVERTED = ASSETS / "rmbench/converted"  # by the reference's converters and lerobot 0.3.3; without the videos
TASKS = ("put_back_block", "press_button")


def pictures(dataset: LeRobotDataset, number: int) -> np.ndarray:
    episode = dataset.episodes[number]
    video = dataset.open_video(episode, CAMERA)
    images = video.read(0, episode.length)
    video.close()
    return images


# Equality with the reference


@pytest.mark.parametrize("task", TASKS)
def test_version_21_equals_what_the_reference_converts(tmp_path, task):
    assert run_import(RECORDINGS / task, tmp_path / "out", "--format", "v2.1", "--workers", 1) == 0
    ours, theirs = tmp_path / "out", CONVERTED / task
    info = [json.loads((root / "meta/info.json").read_text()) for root in (ours, theirs)]
    assert info[0] == info[1]
    for name in ("episodes.jsonl", "tasks.jsonl"):
        assert (ours / "meta" / name).read_text() == (theirs / "meta" / name).read_text()
    for root in (ours, theirs):
        assert len(list((root / "data").rglob("*.parquet"))) == info[0]["total_episodes"]
    for path in (theirs / "data").rglob("*.parquet"):
        our_table, their_table = pq.read_table(ours / path.relative_to(theirs)), pq.read_table(path)
        assert our_table.replace_schema_metadata().equals(their_table.replace_schema_metadata())
    our_stats, their_stats = (
        [json.loads(line) for line in (root / "meta/episodes_stats.jsonl").read_text().splitlines()]
        for root in (ours, theirs)
    )
    for our_row, their_row in zip(our_stats, their_stats, strict=True):
        assert our_row["stats"].keys() == their_row["stats"].keys()
        for key, expected in their_row["stats"].items():
            assert our_row["stats"][key].keys() == expected.keys()
            for name, value in expected.items():
                value, found = np.asarray(value, float), np.asarray(our_row["stats"][key][name], float)
                assert found.shape == value.shape
                np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_those_of_the_recording_in_rgb_order(tmp_path, task):
    run_import(RECORDINGS / task, tmp_path / "out", "--workers", 1)
    dataset = LeRobotDataset(tmp_path / "out")
    for number, path in open_task(RECORDINGS / task).episodes.items():
        found, expected = pictures(dataset, number).astype(int), decoded(path).astype(int)
        assert np.abs(found - expected).mean() < 2.5
        colourful = np.ptp(expected, axis=-1) > 80
        assert colourful.sum() > 100 * len(found)
        assert np.abs(found - expected)[colourful].mean() < 25
        assert np.abs(found[..., ::-1] - expected)[colourful].mean() > 80


# Whole imports


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_several_tasks_make_one_dataset(tmp_path, raw, version):
    root, recorded = raw
    out, report = tmp_path / "mix", tmp_path / "report.json"
    folders = [root / "put_back_block", root / "swap_blocks/demo_clean", root / "press_button"]
    assert run_import(*folders, out, "--format", version, "--workers", 2, "--json", report) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mix", "report.json"]
    dataset = LeRobotDataset(out)
    assert dataset.version == version
    assert dataset.fps == 30
    # Ids go on where the folder before could have ended: numbers that are missing leave gaps.
    sources = [("put_back_block", 0, 0), ("put_back_block", 1, 1), ("put_back_block", 3, 3)]
    sources += [("swap_blocks", 0, 4), ("swap_blocks", 2, 6), ("press_button", 0, 7)]
    episodes = json.loads(report.read_text())["episodes"]
    assert [(e["task"], int(Path(e["file"]).stem[7:]), e["id"]) for e in episodes] == sources
    tasks, subtasks, globals_ = (dataset.texts(key) for key in ("task", "subtask", "global_task"))
    for episode, (task, number, id_) in zip(dataset.episodes, sources, strict=True):
        rows, data = slice(episode.start, episode.start + episode.length), recorded[task][number]
        state = data.state()
        np.testing.assert_array_equal(dataset.column("observation.state")[rows], state)
        np.testing.assert_array_equal(dataset.column("action")[rows], np.concatenate([state[1:], state[-1:]]))
        assert (dataset.column("episode_id")[rows] == id_).all()
        assert episode.tasks == (task,)
        assert {tasks[1][i] for i in tasks[0][rows]} == {task}
        instruction = open_task(root / task).instruction
        assert {globals_[1][i] for i in globals_[0][rows]} == {instruction}
        texts = {subtasks[1][i] for i in subtasks[0][rows]}
        assert texts == ({"press the button"} if task == "press_button" else {instruction})
        error = np.abs(pictures(dataset, episode.index).astype(int) - data.images)
        assert error.mean() < 2.5
    assert dataset.features["subtask_end"]["dtype"] == "int32"  # bool only if every task is staged
    seven = dataset.column("observation.state")[dataset.column("episode_id") == 4]
    np.testing.assert_allclose(seven[:, 13], 0.01 * np.arange(len(seven)), rtol=1e-6)


def test_both_versions_hold_the_same_frames(tmp_path, raw):
    root, _ = raw
    for version in ("v3.0", "v2.1"):
        run_import(
            root / "put_back_block", root / "press_button", tmp_path / version, "--format", version, "--workers", 1
        )
    one, other = (LeRobotDataset(tmp_path / version) for version in ("v3.0", "v2.1"))
    for key in ("observation.state", "action", "subtask_end", "episode_id", "timestamp", "index", "task_index"):
        np.testing.assert_array_equal(one.column(key), other.column(key))
    for number in range(len(one.episodes)):
        np.testing.assert_array_equal(pictures(one, number), pictures(other, number))


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "null"]), st.integers(0, 20)), min_size=1, max_size=8),
    st.integers(0, 5),
)
def test_labels_frame_by_frame(segments, rest):
    annotations = {"episode_4": [list(segment) for segment in segments]}
    task = TaskFolder("t", Path("/t"), "instruction", True, {}, annotations)
    length = sum(frames for _, frames in segments) + rest
    texts, ends, uncovered = task.labels(4, length)
    expected = []
    for text, frames in segments:
        expected += [(text, frames - i <= 8) for i in range(frames)]
    expected += [("", False)] * rest
    assert list(zip(texts, ends.tolist())) == expected
    assert uncovered == rest
    one = TaskFolder("t", Path("/t"), "instruction", False, {}, {})
    texts, ends, _ = one.labels(0, length)
    assert texts == ["instruction"] * length
    assert ends.tolist() == [length - i <= 8 for i in range(length)]


# Resuming


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_killed_import_continues_and_leaves_no_process(tmp_path, raw):
    task = write_copy(raw[0] / "put_back_block", tmp_path / "raw/put_back_block")
    data = task / "demo_clean/data"
    for number in range(4, 24):
        os.link(data / "episode0.hdf5", data / f"episode{number}.hdf5")
    out, stage = tmp_path / "out", tmp_path / ".out.import"
    command = [sys.executable, "-m", "mem0_jax.cli", "data", "import", "rmbench", str(task), str(out), "--workers", "2"]
    process = subprocess.Popen(command)
    wait_for(lambda: len(list(stage.glob("episode_??????/state.npy"))) >= 2)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    wait_for(lambda: not any(map(alive, workers)))
    finished = sorted(path.parent.name for path in stage.glob("episode_??????/source.json"))
    assert 2 <= len(finished) < 23
    assert not out.exists()
    # A mark in what is finished tells whether it is done again; a recording that has changed must be.
    mark, changed = finished[0], finished[1]
    for name in (mark, changed):
        state = np.load(stage / name / "state.npy")
        np.save(stage / name / "state.npy", state + 1)
    os.utime(data / f"episode{int(changed[8:])}.hdf5", ns=(1, 1))
    assert subprocess.run(command).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    dataset = LeRobotDataset(out)
    ids = dataset.column("episode_id")
    numbers = [0, 1, 3, *range(4, 24)]
    assert list(dict.fromkeys(ids.tolist())) == numbers
    for number in numbers:
        recorded = raw[1]["put_back_block"][number if number < 4 else 0].state()
        marked = f"episode_{number:06d}" == mark and mark != changed
        np.testing.assert_array_equal(dataset.column("observation.state")[ids == number], recorded + marked)


# The library itself


@pytest.mark.lerobot
@pytest.mark.parametrize("tasks", [("put_back_block",), ("press_button",), ("put_back_block", "press_button")])
def test_the_lerobot_library_reads_the_same_frames(tmp_path, raw, tasks):
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    version = module.CODEBASE_VERSION
    run_import(*(raw[0] / task for task in tasks), tmp_path / "out", "--format", version, "--workers", 1)
    ours = LeRobotDataset(tmp_path / "out")
    theirs = module.LeRobotDataset("local/out", root=tmp_path / "out", video_backend="pyav")
    assert (len(theirs), theirs.num_episodes) == (ours.num_frames, len(ours.episodes))
    ids, texts = ours.texts("subtask")
    for episode in ours.episodes:
        images = pictures(ours, episode.index)
        for i in range(episode.length):
            row, item = episode.start + i, theirs[episode.start + i]
            for key in ("observation.state", "action", "subtask_end", "episode_id", "timestamp"):
                np.testing.assert_array_equal(item[key].numpy(), ours.column(key)[row])
            assert item["task"] == episode.tasks[0]
            assert item["subtask"] == texts[ids[row]]
            image = (item[CAMERA].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            assert np.abs(image.astype(int) - images[i]).max() <= 1
