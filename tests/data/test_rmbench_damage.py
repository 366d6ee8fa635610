"""Recordings and folders that RMBench's import refuses: damaged files, bad annotations, wrong usage; all by name."""

import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rmbench_files import RECORDINGS, run_import, write_copy

from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.rmbench import Recording, RmbenchError
from mem0_jax.installed import how_to_install

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
    assert run_import(three, out, "--workers", 2) == 1
    error = capsys.readouterr().err
    assert "2 of 3 recordings are damaged" in error
    assert "episode0.hdf5 is not a readable HDF5 file" in error
    assert "episode3.hdf5: observation/head_camera/rgb: frame 2" in error
    assert "--skip-damaged" in error
    assert not out.exists()
    assert run_import(three, out, "--workers", 2, "--skip-damaged", "--json", report) == 0
    assert "left out" in capsys.readouterr().err
    dataset = LeRobotDataset(out)
    assert [e.length for e in dataset.episodes] == [9]
    assert (dataset.column("episode_id") == 1).all()  # the number in the file's name
    skipped = json.loads(report.read_text())["skipped"]
    assert [Path(entry["file"]).name for entry in skipped] == ["episode0.hdf5", "episode3.hdf5"]


def test_nothing_is_imported_if_all_is_damaged(tmp_path, three, capsys):
    for path in (three / "demo_clean/data").iterdir():
        truncate(path)
    assert run_import(three, tmp_path / "out", "--workers", 1, "--skip-damaged") == 1
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
    assert run_import(task, tmp_path / "out", "--workers", 1) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_frames_without_subtask_are_told_of(tmp_path, raw, capsys):
    task = write_copy(raw[0] / "press_button", tmp_path / "raw/press_button")
    (task / "demo_clean/language_annotation.json").write_text(json.dumps({"episode_0": [["x", 20]]}))
    assert run_import(task, tmp_path / "out", "--workers", 1) == 0
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
        assert run_import(*folders, tmp_path / "out") == 1
        assert message in capsys.readouterr().err
    write_copy(root / "put_back_block/demo_clean", tmp_path / "t/put_back_block/demo_clean")
    write_copy(root / "put_back_block/demo_clean", tmp_path / "t/put_back_block/demo_hard")
    assert run_import(tmp_path / "t/put_back_block", tmp_path / "out") == 1
    assert "several settings (demo_clean, demo_hard)" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert run_import(root / "put_back_block", tmp_path / "out") == 1
    assert "out exists" in capsys.readouterr().err


def test_other_tasks_need_an_instruction(tmp_path, raw, capsys):
    task = write_copy(raw[0] / "press_button", tmp_path / "raw/ring_bell")
    assert run_import(task, tmp_path / "out") == 1
    assert "'ring_bell' is none of RMBench's tasks" in capsys.readouterr().err
    assert run_import(task, tmp_path / "out", "--instruction", "ring_bell=Ring the bell.", "--workers", 1) == 0
    dataset = LeRobotDataset(tmp_path / "out")
    assert dataset.texts("global_task")[1] == ["Ring the bell."]
    assert dataset.texts("subtask")[1] == ["press the button"]  # annotated, so staged
    assert run_import(task, tmp_path / "other", "--instruction", "ring_bell=x", "--instruction", "ringbell=x") == 1
    assert "an instruction is given for ['ringbell']" in capsys.readouterr().err
    for wrong in ("ring_bell", "=text", "ring_bell= "):
        assert run_import(task, tmp_path / "out", "--instruction", wrong) == 2
    assert run_import(task, tmp_path / "out", "--workers", 0) == 2
    assert "expected TASK=TEXT" in capsys.readouterr().err


def test_pictures_of_two_sizes_are_refused(tmp_path, raw, capsys):
    task = write_copy(raw[0] / "press_button", tmp_path / "raw/press_button")
    rewrite(task / "demo_clean/data/episode0.hdf5", RGB, lambda x: np.array([SMALL_JPEG] * len(x)))
    assert run_import(raw[0] / "put_back_block", task, tmp_path / "out", "--workers", 1) == 1
    assert "pictures of 32x32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_h5py_names_the_extra(monkeypatch, tmp_path, raw, capsys):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run_import(raw[0] / "put_back_block", tmp_path / "out", "--workers", 1) == 1
    assert how_to_install("rmbench") in capsys.readouterr().err
