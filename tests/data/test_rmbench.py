"""Importing RMBench recordings: equal to the reference's converter, strict about damage, resumable."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA
from hypothesis import given, settings
from hypothesis import strategies as st
from rmbench_files import decoded, write_task

from mem0_jax.cli import main
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.rmbench import Recording, RmbenchError, TaskFolder, open_task

RECORDINGS = ASSETS / "rmbench/recordings"
CONVERTED = ASSETS / "rmbench/converted"  # by the reference's converters and lerobot 0.3.3; without the videos
TASKS = ("put_back_block", "press_button")


def run(*arguments: object) -> int:
    return main(["data", "import", "rmbench", *map(str, arguments)])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three tasks of short episodes: (folder, what was recorded by task and number)."""
    root = tmp_path_factory.mktemp("raw")
    recorded = {
        "put_back_block": write_task(root, "put_back_block", {0: 12, 1: 9, 3: 5}),
        "swap_blocks": write_task(root, "swap_blocks", {0: 11, 2: 10}, joints=7),
        "press_button": write_task(root, "press_button", {0: 30}),
    }
    return root, recorded


def pictures(dataset: LeRobotDataset, number: int) -> np.ndarray:
    episode = dataset.episodes[number]
    video = dataset.open_video(episode, CAMERA)
    images = video.read(0, episode.length)
    video.close()
    return images


# Equality with the reference


@pytest.mark.parametrize("task", TASKS)
def test_version_21_equals_what_the_reference_converts(tmp_path, task):
    assert run(RECORDINGS / task, tmp_path / "out", "--format", "v2.1", "--workers", 1) == 0
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
    run(RECORDINGS / task, tmp_path / "out", "--workers", 1)
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
    assert run(*folders, out, "--format", version, "--workers", 2, "--json", report) == 0
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
        run(root / "put_back_block", root / "press_button", tmp_path / version, "--format", version, "--workers", 1)
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


# Damage


def rewrite(path: Path, key: str, change) -> None:
    with h5py.File(path, "r+") as file:
        value = file[key][()]  # pyright: ignore[reportIndexIssue]
        del file[key]
        new = change(value)
        if new is not None:
            file[key] = new


def replace_picture(data: bytes):
    def change(pictures):
        jpegs = [bytes(jpeg) for jpeg in pictures]
        jpegs[2] = data or jpegs[2][: len(jpegs[2]) // 2]
        return np.array(jpegs, dtype=f"S{max(map(len, jpegs))}")

    return change


def with_nan(x):
    x[3, 1] = np.nan
    return x


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def point_elsewhere(path: Path) -> None:
    rewrite(path, "joint_action/left_arm", lambda _: None)
    with h5py.File(path, "r+") as file:
        file["joint_action/left_arm"] = h5py.ExternalLink(path.with_name("episode0.hdf5"), "joint_action/left_arm")


def make_group(path: Path) -> None:
    rewrite(path, "joint_action/left_gripper", lambda _: None)
    with h5py.File(path, "r+") as file:
        file.create_group("joint_action/left_gripper")


def make_empty(path: Path) -> None:
    rewrite(path, "joint_action/left_gripper", lambda _: None)
    with h5py.File(path, "r+") as file:
        file["joint_action/left_gripper"] = h5py.Empty("f8")


def claim_much(path: Path) -> None:
    rewrite(path, "observation/head_camera/rgb", lambda _: None)
    with h5py.File(path, "r+") as file:
        file.create_dataset("observation/head_camera/rgb", (90_000,), "S1000000", chunks=(1,))


SMALL_JPEG = cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
PNG = cv2.imencode(".png", np.zeros((240, 320, 3), np.uint8))[1].tobytes()
RGB = "observation/head_camera/rgb"
DAMAGE = {
    "truncated": (truncate, r"episode1\.hdf5 is not a readable HDF5 file"),
    "no HDF5": (lambda p: p.write_bytes(b"hello"), r"episode1\.hdf5 is not a readable HDF5 file"),
    "missing key": (
        lambda p: rewrite(p, "joint_action/right_arm", lambda x: None),
        r"episode1\.hdf5: joint_action/right_arm is missing",
    ),
    "group": (make_group, r"joint_action/left_gripper is a group"),
    "empty": (make_empty, r"joint_action/left_gripper is a group or empty"),
    "other length": (
        lambda p: rewrite(p, "joint_action/left_arm", lambda x: x[:-1]),
        r"joint_action/left_arm is float64 \[8, 6\]; expected numbers \[9, 6\] or \[9, 7\]",
    ),
    "other width": (lambda p: rewrite(p, "joint_action/left_arm", lambda x: x[:, :5]), r"left_arm is float64 \[9, 5\]"),
    "gripper shape": (
        lambda p: rewrite(p, "joint_action/right_gripper", lambda x: x[:, None]),
        r"right_gripper is float64 \[9, 1\]; expected numbers \[9\]",
    ),
    "text": (
        lambda p: rewrite(p, "joint_action/right_gripper", lambda x: x.astype("S")),
        r"joint_action/right_gripper is \|S",
    ),
    "NaN": (lambda p: rewrite(p, "joint_action/left_arm", with_nan), r"left_arm has NaN .* first at \[3, 1\]"),
    "huge": (lambda p: rewrite(p, "joint_action/left_arm", lambda x: x * 1e300), r"left_arm has NaN or infinite"),
    "no JPEG": (lambda p: rewrite(p, RGB, replace_picture(b"x" * 50)), rf"{RGB}: frame 2 is not a JPEG"),
    "PNG": (lambda p: rewrite(p, RGB, replace_picture(PNG)), rf"{RGB}: frame 2 is not a JPEG"),
    "cut JPEG": (lambda p: rewrite(p, RGB, replace_picture(b"")), rf"{RGB}: frame 2 is a truncated JPEG"),
    "other size": (lambda p: rewrite(p, RGB, replace_picture(SMALL_JPEG)), rf"{RGB}: frame 2 is \(32, 32\), frame 0"),
    "raw pictures": (lambda p: rewrite(p, RGB, lambda x: np.zeros((9, 4, 4, 3), np.uint8)), rf"{RGB} is uint8"),
    "no frames": (lambda p: rewrite(p, RGB, lambda x: x[:0]), rf"{RGB} has 0 frames"),
    "external link": (point_elsewhere, r"joint_action/left_arm points to another file"),
    "hostile size": (claim_much, rf"{RGB} claims .* more than 4 GiB"),
}


@pytest.fixture
def three(tmp_path, raw):
    """A fresh copy of three episodes."""
    return write_copy(raw[0] / "put_back_block", tmp_path / "raw/put_back_block")


def write_copy(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_file_and_key(three, kind):
    damage, message = DAMAGE[kind]
    path = three / "demo_clean/data/episode1.hdf5"
    damage(path)

    def read() -> None:
        with Recording(path) as recording:
            recording.state()
            list(recording.pictures())

    with pytest.raises(RmbenchError, match=message):
        read()


@given(st.lists(st.tuples(st.integers(0, 28_000), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150)
def test_flipped_bytes_are_read_or_refused(changes):
    """Whatever the bytes are: a recording or an error of ours, nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode1.hdf5"
        data = bytearray((RECORDINGS / "put_back_block/demo_clean/data/episode1.hdf5").read_bytes())
        for place, value in changes:
            data[place] = value
        path.write_bytes(data)
        with contextlib.suppress(RmbenchError), Recording(path) as recording:
            assert np.isfinite(recording.state()).all()
            assert all(picture.dtype == np.uint8 for picture in recording.pictures())


def test_damaged_recordings_are_all_named_and_can_be_left_out(tmp_path, three, capsys):
    data = three / "demo_clean/data"
    truncate(data / "episode0.hdf5")
    rewrite(data / "episode3.hdf5", RGB, replace_picture(b""))
    out, report = tmp_path / "out", tmp_path / "report.json"
    assert run(three, out, "--workers", 2) == 1
    error = capsys.readouterr().err
    assert "2 of 3 recordings are damaged" in error
    assert "episode0.hdf5 is not a readable HDF5 file" in error
    assert "episode3.hdf5: observation/head_camera/rgb: frame 2" in error
    assert "--skip-damaged" in error
    assert not out.exists()
    assert run(three, out, "--workers", 2, "--skip-damaged", "--json", report) == 0
    assert "left out" in capsys.readouterr().err
    dataset = LeRobotDataset(out)
    assert [e.length for e in dataset.episodes] == [9]
    assert (dataset.column("episode_id") == 1).all()  # the number in the file's name
    skipped = json.loads(report.read_text())["skipped"]
    assert [Path(entry["file"]).name for entry in skipped] == ["episode0.hdf5", "episode3.hdf5"]


def test_nothing_is_imported_if_all_is_damaged(tmp_path, three, capsys):
    for path in (three / "demo_clean/data").iterdir():
        truncate(path)
    assert run(three, tmp_path / "out", "--workers", 1, "--skip-damaged") == 1
    assert "3 of 3 recordings are damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"episode_1": [["x", 1]]}, r"language_annotation\.json: episode_0 is missing"),
        ({"episode_0": []}, r"episode_0: expected a list such as"),
        ({"episode_0": [["x", "30"]]}, r"episode_0: expected a list such as"),
        ({"episode_0": [["x", -1], ["y", 31]]}, r"episode_0: expected a list such as"),
        ({"episode_0": [["x", 31]]}, r"episode_0 covers 31 frames, but the recording has 30"),
        ({}, r"language_annotation\.json is missing or empty"),
        ([], r"language_annotation\.json: expected an object"),
        (None, r"language_annotation\.json is not valid JSON"),
    ],
)
def test_bad_annotations_are_named(tmp_path, raw, capsys, annotations, message):
    task = write_copy(raw[0] / "press_button", tmp_path / "raw/press_button")
    text = "{" if annotations is None else json.dumps(annotations)
    (task / "demo_clean/language_annotation.json").write_text(text)
    assert run(task, tmp_path / "out", "--workers", 1) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_frames_without_subtask_are_told_of(tmp_path, raw, capsys):
    task = write_copy(raw[0] / "press_button", tmp_path / "raw/press_button")
    (task / "demo_clean/language_annotation.json").write_text(json.dumps({"episode_0": [["x", 20]]}))
    assert run(task, tmp_path / "out", "--workers", 1) == 0
    assert "its last 10 frames have no subtask" in capsys.readouterr().err
    ids, texts = LeRobotDataset(tmp_path / "out").texts("subtask")
    assert [texts[i] for i in ids] == ["x"] * 20 + [""] * 10


# Wrong usage


def test_unfit_folders_are_refused(tmp_path, raw, capsys):
    root, _ = raw
    cases = {
        (tmp_path / "none",): "is no folder",
        (tmp_path,): "holds no episodes",
        (root / "put_back_block", root / "put_back_block/demo_clean"): "is given twice",
    }
    for folders, message in cases.items():
        assert run(*folders, tmp_path / "out") == 1
        assert message in capsys.readouterr().err
    write_copy(root / "put_back_block/demo_clean", tmp_path / "t/put_back_block/demo_clean")
    write_copy(root / "put_back_block/demo_clean", tmp_path / "t/put_back_block/demo_hard")
    assert run(tmp_path / "t/put_back_block", tmp_path / "out") == 1
    assert "several settings (demo_clean, demo_hard)" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert run(root / "put_back_block", tmp_path / "out") == 1
    assert "out exists" in capsys.readouterr().err


def test_other_tasks_need_an_instruction(tmp_path, raw, capsys):
    task = write_copy(raw[0] / "press_button", tmp_path / "raw/ring_bell")
    assert run(task, tmp_path / "out") == 1
    assert "'ring_bell' is none of RMBench's tasks" in capsys.readouterr().err
    assert run(task, tmp_path / "out", "--instruction", "ring_bell=Ring the bell.", "--workers", 1) == 0
    dataset = LeRobotDataset(tmp_path / "out")
    assert dataset.texts("global_task")[1] == ["Ring the bell."]
    assert dataset.texts("subtask")[1] == ["press the button"]  # annotated, so staged
    assert run(task, tmp_path / "other", "--instruction", "ring_bell=x", "--instruction", "ringbell=x") == 1
    assert "an instruction is given for ['ringbell']" in capsys.readouterr().err
    for wrong in ("ring_bell", "=text", "ring_bell= "):
        assert run(task, tmp_path / "out", "--instruction", wrong) == 2
    assert run(task, tmp_path / "out", "--workers", 0) == 2
    assert "expected TASK=TEXT" in capsys.readouterr().err


def test_pictures_of_two_sizes_are_refused(tmp_path, raw, capsys):
    task = write_copy(raw[0] / "press_button", tmp_path / "raw/press_button")
    rewrite(task / "demo_clean/data/episode0.hdf5", RGB, lambda x: np.array([SMALL_JPEG] * len(x)))
    assert run(raw[0] / "put_back_block", task, tmp_path / "out", "--workers", 1) == 1
    assert "pictures of 32x32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_h5py_names_the_extra(monkeypatch, tmp_path, raw, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run(raw[0] / "put_back_block", tmp_path / "out", "--workers", 1) == 1
    assert "pip install 'mem0-jax[rmbench]'" in capsys.readouterr().err


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
    run(*(raw[0] / task for task in tasks), tmp_path / "out", "--format", version, "--workers", 1)
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
