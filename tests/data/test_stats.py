"""`mem0-jax data stats`: exact over several datasets, from parquet alone, with warnings that name joints."""

import itertools
import json
import shutil

import numpy as np
import pytest
from episodes import ASSETS, CAMERA, episode_frames
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.cli import main
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.normalize import NormStats, span_warnings
from mem0_jax.data.robot import RMBENCH

KINDS = {"state": "observation.state", "action": "action"}


def run(*arguments: object) -> int:
    return main(["data", "stats", *map(str, arguments)])


@pytest.fixture(scope="module")
def datasets() -> list[LeRobotDataset]:
    """One of each version, without their videos."""
    return [LeRobotDataset(ASSETS / name) for name in ("lerobot_v21", "lerobot_v30")]


def expected(parts: list[np.ndarray]) -> dict[str, np.ndarray]:
    x = np.concatenate(parts).astype(np.float64)
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    return {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0), "q01": q01, "q99": q99}


def test_two_datasets_are_measured_as_one(tmp_path, recorded, real, capsys):
    out, report = tmp_path / "new/norm_stats.json", tmp_path / "report.json"
    assert run(recorded.root, real.root, "--out", out, "--json", report) == 0
    stats = NormStats.load(out)
    for kind, key in KINDS.items():
        for name, value in expected([recorded.column(key), real.column(key)]).items():
            np.testing.assert_allclose(getattr(stats, kind)[name], value, rtol=1e-12, atol=1e-15)
    data = json.loads(report.read_text())
    assert data["stats"] == json.loads(out.read_text())
    assert [entry["frames"] for entry in data["datasets"]] == [recorded.num_frames, real.num_frames]
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.startswith("right_joint_2")]
    for row, kind in zip(rows, KINDS, strict=True):
        of = {name: value[RMBENCH.action.names.index("right_joint_2")] for name, value in getattr(stats, kind).items()}
        assert row[1:] == [f"{of[name]:.4f}" for name in ("min", "q01", "mean", "q99", "max", "std")]


@given(st.lists(st.integers(0, 434), max_size=4), st.randoms())
def test_statistics_do_not_depend_on_how_frames_are_split(datasets, cuts, random):
    """A dataset cut into pieces and shuffled measures like the whole."""

    class Piece:
        def __init__(self, rows):
            self.rows, self.root, self.features = rows, datasets[0].root, datasets[0].features

        def column(self, key):
            return datasets[0].column(key)[self.rows]

    bounds = [0, *sorted(cuts), 435]
    pieces = [Piece(slice(a, b)) for a, b in itertools.pairwise(bounds)]
    random.shuffle(pieces)
    whole, parts = NormStats.from_dataset(datasets[0]), NormStats.from_datasets(pieces)  # pyright: ignore
    for kind in KINDS:
        for name in ("min", "max", "q01", "q99"):
            np.testing.assert_array_equal(getattr(parts, kind)[name], getattr(whole, kind)[name])
        for name in ("mean", "std"):
            np.testing.assert_allclose(getattr(parts, kind)[name], getattr(whole, kind)[name], rtol=1e-12, atol=1e-14)


def test_no_video_is_opened(tmp_path, real):
    copy = tmp_path / "copy"
    shutil.copytree(real.root, copy, ignore=shutil.ignore_patterns("*.mp4"))
    assert run(copy, "--out", tmp_path / "stats.json") == 0


def record(root, change) -> None:
    frames = episode_frames(0, 200)
    frames[CAMERA] = frames[CAMERA] * 0
    change(frames)
    with LeRobotWriter(root, 10, staged_features(64, 96), "planar") as writer:
        writer.add_episode(frames, "task")


def test_joints_that_normalise_badly_are_named(tmp_path, capsys):
    def change(frames):
        frames["observation.state"][:, [14, 15]] = [0.5, 0.25]
        frames["action"] = frames["observation.state"].copy()
        frames["action"][:, 2] = 0.3
        frames["action"][:, 4] *= 1e-5
        frames["action"][:, 8] = np.arange(200) == 7
        frames["action"][:, 15] = np.linspace(0, 850, 200)
        frames["action"][:, [6, 13]] = [0, 0.1]

    record(tmp_path / "set", change)
    report = tmp_path / "report.json"
    assert run(tmp_path / "set", "--json", report) == 0
    warnings = json.loads(report.read_text())["warnings"]
    assert [(line.split(":")[0], line.split(": ")[1].split(" ")[:3]) for line in warnings] == [
        ("action", ["left_joint_2,", "right_joint_6", "never"]),
        ("action", ["left_joint_4", "span", "less"]),
        ("action", ["right_joint_1", "move", "in"]),
        ("action", ["right_gripper", "leave", "the"]),
    ]
    printed = capsys.readouterr().err
    assert all(f"warning: {line}" in printed for line in warnings)


def test_healthy_statistics_warn_of_nothing(datasets):
    stats = NormStats.from_datasets(datasets)  # joints 6 and 13 are 0: these arms have six joints
    assert span_warnings(stats) == []


def test_nan_is_named_with_dataset_episode_and_frame(datasets):
    def column(key):
        x = datasets[1].column(key).copy()
        if key == "action":
            x[datasets[1].episodes[2].start + 5, 9] = np.nan
        return x

    class Broken:
        root, episodes, features = datasets[1].root, datasets[1].episodes, datasets[1].features

    broken = Broken()
    broken.column = column  # pyright: ignore
    with pytest.raises(ValueError, match=r"lerobot_v30: action has NaN.* right_joint_2 of episode 2, frame 5"):
        NormStats.from_datasets([datasets[0], broken])  # pyright: ignore


def test_wrong_input_is_refused(tmp_path, real, capsys):
    narrow = {"observation.state": {"dtype": "float32", "shape": [14]}, "action": {"dtype": "float32", "shape": [14]}}
    with LeRobotWriter(tmp_path / "narrow", 10, narrow, None) as writer:
        writer.add_episode(dict.fromkeys(narrow, np.zeros((3, 14), np.float32)), "task")
    with LeRobotWriter(tmp_path / "other", 10, {"force": {"dtype": "float32", "shape": [1]}}, None) as writer:
        writer.add_episode({"force": np.zeros(3, np.float32)}, "task")
    cases = {
        (tmp_path / "none",): "none/meta/info.json is missing",
        (real.root, real.root): "given twice",
        (real.root, tmp_path / "narrow"): "of one robot: the state of",
        (tmp_path / "other",): "no low-dimensional feature 'observation.state'",
        (real.root, "--out", real.root / "meta/info.json/stats.json"): "cannot write",
    }
    for arguments, message in cases.items():
        assert run(*arguments) == 1
        assert message in capsys.readouterr().err
    assert run() == 2
