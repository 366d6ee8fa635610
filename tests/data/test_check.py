"""Checking datasets: real ones are clean, and every fault put into one is named by kind, episode and frame."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA, write_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.cli import main
from mem0_jax.data.check import check_dataset
from mem0_jax.data.findings import runs
from mem0_jax.data.lerobot_writer_v21 import LeRobotWriterV21

DATA21 = "data/chunk-000/episode_{:06d}.parquet"
VIDEO21 = f"videos/chunk-000/{CAMERA}/" + "episode_{:06d}.mp4"
DATA30, VIDEO30 = "data/chunk-000/file-000.parquet", f"videos/{CAMERA}/chunk-000/file-000.mp4"
TABLE30 = "meta/episodes/chunk-000/file-000.parquet"


@pytest.mark.parametrize("name", ["lerobot_v21", "lerobot_v30", "lerobot_v21_cameras", "lerobot_v30_cameras"])
def test_what_lerobot_wrote_is_clean(name):
    report = check_dataset(ASSETS / name)
    assert [str(finding) for finding in report.findings] == []
    assert (report.episodes, report.frames) == ((3, 15) if "cameras" in name else (6, 435))


def test_what_we_record_is_clean(recorded):
    assert [str(finding) for finding in check_dataset(recorded.root).findings if finding.severity == "error"] == []


# Faults: each changes a copy of a dataset


def edit_json(root: Path, name: str, change: Callable[[Any], Any]) -> None:
    value = json.loads((root / name).read_text())
    (root / name).write_text(json.dumps(change(value) or value))


def edit_lines(root: Path, name: str, change: Callable[[list], Any]) -> None:
    rows = [json.loads(line) for line in (root / name).read_text().splitlines()]
    rows = change(rows) or rows
    (root / name).write_text("\n".join(map(json.dumps, rows)))


def edit_column(root: Path, file: str, column: str, change: Callable[[list], Any], kind: Any = None) -> None:
    table = pq.read_table(root / file)
    values = table[column].to_pylist()
    values = change(values) or values
    array = pa.array(values, kind or table[column].type)
    pq.write_table(table.set_column(table.column_names.index(column), column, array), root / file)


def put(index: Any, value: Any) -> Callable[[list], None]:
    def change(values: list) -> None:
        for i in np.atleast_1d(index).tolist():
            values[i] = value

    return change


def put_dim(row: int, dim: int, value: Any) -> Callable[[list], None]:
    def change(values: list) -> None:
        values[row][dim] = value

    return change


def cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size])


def swap(a: str, b: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / a).rename(root / "x")
        (root / b).rename(root / a)
        (root / "x").rename(root / b)

    return change


def swap_rows(root: Path) -> None:
    table = pq.read_table(root / DATA21.format(2))
    order = list(range(len(table)))
    order[10], order[11] = 11, 10
    pq.write_table(table.take(order), root / DATA21.format(2))


def drop_column(root: Path) -> None:
    path = root / DATA21.format(3)
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)


def shorten(root: Path) -> None:
    path = root / DATA21.format(2)
    pq.write_table(pq.read_table(path).slice(0, 60), path)


def reencode(rate: int, drop: int | None = None) -> Callable[[Path], None]:
    """Encode episode 3's video anew: at another rate, or without one of its frames."""

    def change(root: Path) -> None:
        path = root / VIDEO21.format(3)
        with av.open(str(path)) as source:
            pictures = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        with av.open(str(path), "w") as out:
            stream: Any = out.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            stream.codec_context.time_base = Fraction(1, rate)
            for i, picture in enumerate(pictures):
                if i != drop:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = i, stream.codec_context.time_base
                    out.mux(stream.encode(frame))
            out.mux(stream.encode())

    return change


def edit_table(column: str, row: int, value: Any) -> Callable[[Path], None]:
    return lambda root: edit_column(root, TABLE30, column, put(row, value))


def feature(key: str, **changes: Any) -> Callable[[Path], None]:
    return lambda root: edit_json(root, "meta/info.json", lambda info: info["features"][key].update(changes))


def stored_stat(episode: int, key: str, name: str, value: Any) -> Callable[[Path], None]:
    return lambda root: edit_lines(
        root, "meta/episodes_stats.jsonl", lambda rows: rows[episode]["stats"][key].update({name: value})
    )


def column(file: str, name: str, change: Callable[[list], Any], kind: Any = None) -> Callable[[Path], None]:
    return lambda root: edit_column(root, file, name, change, kind)


def lines(name: str, change: Callable[[list], Any]) -> Callable[[Path], None]:
    return lambda root: edit_lines(root, name, change)


def info(**changes: Any) -> Callable[[Path], None]:
    return lambda root: edit_json(root, "meta/info.json", lambda value: value | changes)


NAN = float("nan")
E3 = DATA21.format(3)
FAULTS: dict[str, tuple[str, Callable[[Path], Any], tuple]] = {
    # name: version, fault, (severity, kind, episode, frames, words in the message)
    "missing parquet": ("v21", lambda r: (r / E3).unlink(), ("error", "missing-file", 3, (), "missing")),
    "truncated parquet": ("v21", cut(E3, 3000), ("error", "unreadable-file", 3, (), "unfinished")),
    "missing mp4": ("v21", lambda r: (r / VIDEO21.format(1)).unlink(), ("error", "missing-file", 1, (), "mp4")),
    "mp4 without index": ("v21", cut(VIDEO21.format(1), 9000), ("error", "unreadable-file", 1, (), "truncated")),
    "unreadable mp4": (
        "v21",
        lambda r: (r / VIDEO21.format(1)).write_bytes(b"x" * 999),
        ("error", "unreadable-file", 1, (), "not a readable video"),
    ),
    "missing column": ("v21", drop_column, ("error", "missing-column", None, (), "missing")),
    "too few rows": ("v21", shorten, ("error", "frame-count", 2, (), "64 frames, but the file holds 60")),
    "swapped rows": ("v21", swap_rows, ("error", "frame-index", 2, ((10, 11),), "11 where 10")),
    "NaN": ("v21", column(E3, "action", put_dim(7, 2, NAN)), ("error", "not-finite", 3, ((7, 7),), "left_joint_2")),
    "infinity": (
        "v30",
        column(DATA30, "observation.state", put_dim(50, 15, np.inf)),
        ("error", "not-finite", 1, ((3, 3),), "right_gripper"),
    ),
    "index": ("v21", column(E3, "index", put([4, 5, 9], 7)), ("error", "index", 3, ((4, 5), (9, 9)), "235")),
    "timestamp": ("v21", column(E3, "timestamp", put(6, 0.21)), ("error", "timestamp", 3, ((6, 6),), "0.2000 s")),
    "foreign rows": (
        "v30",
        column(DATA30, "episode_index", put([0, 1], 77)),
        ("error", "episode-index", 77, (), "2 rows"),
    ),
    "unknown task": ("v21", column(E3, "task_index", put(5, 9)), ("error", "task", 3, ((5, 5),), "9")),
    "another task": (
        "v21",
        column(E3, "task_index", lambda v: [0] * len(v)),
        ("error", "task", 3, (), "swap_blocks"),
    ),
    "empty text": ("v21", column(E3, "subtask", put(5, None)), ("error", "empty-text", 3, ((5, 5),), "empty")),
    "flag of 2": ("v21", column(E3, "subtask_end", put(5, 2)), ("error", "subtask-end", 3, ((5, 5),), "neither")),
    "no flag at the end": (
        "v21",
        column(E3, "subtask_end", put(39, 0)),
        ("warning", "subtask-end", 3, ((39, 39),), "without a flag"),
    ),
    "no flags": (
        "v21",
        column(E3, "subtask_end", lambda v: [0] * len(v)),
        ("warning", "subtask-end", 3, (), "no frame"),
    ),
    "flag at a start": (
        "v21",
        column(DATA21.format(0), "subtask_end", put(24, 1)),
        ("warning", "subtask-end", 0, ((24, 24),), "starts"),
    ),
    "flag in null": (
        "v21",
        column(E3, "subtask", lambda v: v[:36] + ["null"] * 4),
        ("warning", "subtask-end", 3, ((36, 39),), "null"),
    ),
    "episode id changes": (
        "v21",
        column(E3, "episode_id", put(5, 9)),
        ("error", "episode-id", 3, ((5, 5),), "changes"),
    ),
    "episode id shared": (
        "v21",
        column(E3, "episode_id", lambda v: [1] * len(v)),
        ("error", "episode-id", 3, (), "episode 1"),
    ),
    "misshapen cell": (
        "v21",
        column(E3, "action", put(8, [1.0]), pa.list_(pa.float32())),
        ("error", "shape", 3, ((8, 8),), "shape"),
    ),
    "empty cell": ("v21", column(E3, "action", put(8, None)), ("error", "shape", 3, ((8, 8),), "empty")),
    "wrong dtype": (
        "v21",
        column(E3, "action", lambda v: v, pa.list_(pa.float64())),
        ("warning", "dtype", None, (), "float64"),
    ),
    "wrong kind": (
        "v21",
        column(E3, "subtask_end", lambda v: [float(x) for x in v], pa.float32()),
        ("error", "dtype", None, (), "float32"),
    ),
    "info's fps": ("v21", info(fps=20), ("error", "fps", None, (), "video.fps is 30")),
    "video's rate": ("v21", reencode(25), ("error", "fps", None, (), "25 frames a second, the dataset 30")),
    "lost frame": ("v21", reencode(30, drop=17), ("error", "frame-count", 3, ((17, 17),), "39 of 40")),
    "codec": ("v21", reencode(30), ("warning", "codec", None, (), "h264")),
    "picture size": (
        "v21",
        feature(CAMERA, shape=[120, 160, 3]),
        ("error", "shape", None, (), "240x320, info.json declares 120x160"),
    ),
    "swapped videos": (
        "v21",
        swap(VIDEO21.format(0), VIDEO21.format(3)),
        ("error", "frame-count", 0, ((40, 46),), "40 of 47"),
    ),
    "video too long": (
        "v21",
        swap(VIDEO21.format(0), VIDEO21.format(3)),
        ("warning", "frame-count", None, (), "47 frames, of which the episodes use 40"),
    ),
    "statistics": (
        "v21",
        stored_stat(3, "action", "max", [9.0] * 16),
        ("error", "statistics", 3, (), "left_joint_0 9 instead of"),
    ),
    "statistics of all": (
        "v30",
        lambda r: edit_json(r, "meta/stats.json", lambda s: s["action"].update(std=[1e-8] * 16)),
        ("error", "statistics", None, (), "std of the whole dataset"),
    ),
    "count": (
        "v21",
        stored_stat(3, "action", "count", [41]),
        ("error", "statistics", 3, (), "41 frames; there are 40"),
    ),
    "another's pictures": (
        "v21",
        stored_stat(3, CAMERA, "mean", [[[0.9]], [[0.1]], [[0.4]]]),
        ("warning", "statistics", 3, (), "mean colour"),
    ),
    "no statistics": (
        "v21",
        lambda r: (r / "meta/episodes_stats.jsonl").unlink(),
        ("warning", "statistics", None, (), "episodes_stats"),
    ),
    "totals": ("v21", info(total_frames=434), ("error", "totals", None, (), "435")),
    "episodes out of order": (
        "v21",
        lines("meta/episodes.jsonl", lambda rows: rows[::-1]),
        ("warning", "episode-order", 2, (), "after episode 5"),
    ),
    "episode twice": (
        "v21",
        lines("meta/episodes.jsonl", lambda rows: [*rows, rows[4]]),
        ("error", "episode-table", 4, (), "twice"),
    ),
    "episode left out": (
        "v21",
        lines("meta/episodes.jsonl", lambda rows: rows[:2] + rows[3:]),
        ("error", "episode-table", 2, (), "not in the episode table"),
    ),
    "bad length": (
        "v21",
        lines("meta/episodes.jsonl", lambda rows: rows[1].update(length=-4)),
        ("error", "episode-table", 1, (), "length is -4"),
    ),
    "task twice": (
        "v21",
        lines("meta/tasks.jsonl", lambda rows: rows[1].update(task_index=0)),
        ("error", "tasks", None, (), "task_index 0 is given 2 times"),
    ),
    "no task table": ("v30", lambda r: (r / "meta/tasks.parquet").unlink(), ("error", "tasks", None, (), "missing")),
    "names": ("v21", feature("action", names=["a", "b"]), ("warning", "names", None, (), "2 names")),
    "index span": (
        "v30",
        edit_table("dataset_from_index", 2, 5),
        ("error", "episode-table", 2, (), "dataset_from_index is 5"),
    ),
    "video span": (
        "v30",
        edit_table(f"videos/{CAMERA}/to_timestamp", 2, 9.0),
        ("error", "video-times", 2, (), "not 64"),
    ),
    "off the grid": (
        "v30",
        edit_table(f"videos/{CAMERA}/from_timestamp", 1, 1.58),
        ("error", "video-times", 1, (), "47.400 frames"),
    ),
    "shared pictures": (
        "v30",
        edit_table(f"videos/{CAMERA}/from_timestamp", 1, 40 / 30),
        ("error", "video-times", 1, (), "shares 7 frames of the video with episode 0"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, tmp_path):
    version, change, (severity, kind, episode, frames, words) = FAULTS[fault]
    root = Path(shutil.copytree(ASSETS / f"lerobot_{version}", tmp_path / "set"))
    change(root)
    report = check_dataset(root)
    matching = [
        f for f in report.findings if (f.severity, f.kind, f.episode, f.frames) == (severity, kind, episode, frames)
    ]
    assert any(words in f.message for f in matching), [str(f) for f in report.findings]


def test_a_truncated_shared_video_names_each_episode_and_its_lost_frames(tmp_path):
    root = Path(shutil.copytree(ASSETS / "lerobot_v30", tmp_path / "set"))
    path = root / VIDEO30
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lost = {
        f.episode: f.frames for f in check_dataset(root).findings if f.kind == "frame-count" and f.episode is not None
    }
    assert set(lost) >= {4, 5}
    assert lost[5] == ((0, 70),)
    assert min(lost) > 0
    first = min(lost)
    assert lost[first][-1][1] == [47, 120, 64, 40, 93, 71][first] - 1  # from somewhere to its end


def test_a_damaged_image_is_named(tmp_path):
    root = Path(shutil.copytree(ASSETS / "lerobot_v30_cameras", tmp_path / "set"))
    damage = lambda cells: cells[6].update(bytes=cells[6]["bytes"][:40])  # noqa: E731
    edit_column(root, DATA30, "observation.images.front", damage)
    found = [f for f in check_dataset(root).findings if f.kind == "picture"]
    assert [(f.episode, f.frames, f.feature) for f in found] == [(1, ((1, 1),), "observation.images.front")]


def test_everything_is_found_at_once(tmp_path):
    root = Path(shutil.copytree(ASSETS / "lerobot_v21", tmp_path / "set"))
    for name in ("missing mp4", "NaN", "swapped rows", "totals", "bad length"):
        FAULTS[name][1](root)
    kinds = {(f.kind, f.episode) for f in check_dataset(root).findings if f.severity == "error"}
    assert kinds >= {("not-finite", 3), ("frame-index", 2), ("episode-table", 1)}
    assert ("missing-file", 1) not in kinds  # an episode whose entry cannot be read has no known files


@settings(max_examples=200)
@given(st.lists(st.booleans(), max_size=30))
def test_runs_are_the_true_frames(wrong):
    frames = [i for a, b in runs(np.array(wrong, bool)) for i in range(a, b + 1)]
    assert frames == [i for i, value in enumerate(wrong) if value]


# The command


def test_command(tmp_path, capsys):
    out = tmp_path / "findings.json"
    assert main(["data", "check", str(ASSETS / "lerobot_v30"), "--json", str(out)]) == 0
    assert "0 errors, 0 warnings in 6 episodes, 435 frames" in capsys.readouterr().out
    assert json.loads(out.read_text())["findings"] == []
    root = Path(shutil.copytree(ASSETS / "lerobot_v21", tmp_path / "set"))
    FAULTS["NaN"][1](root)
    FAULTS["lost frame"][1](root)
    assert main(["data", "check", str(root), "--json", str(out), "--workers", "1"]) == 1
    text = capsys.readouterr().out
    assert "error    episode 3, frame 7, action: NaN or infinity in left_joint_2" in text
    found = json.loads(out.read_text())
    assert {(f["kind"], f["episode"], str(f["frames"])) for f in found["findings"] if f["severity"] == "error"} == {
        ("not-finite", 3, "[[7, 7]]"),
        ("frame-count", 3, "[[17, 17]]"),
    }
    assert main(["data", "check", str(root), "--no-video", "--json", str(out)]) == 1
    assert [f["kind"] for f in json.loads(out.read_text())["findings"]] == ["not-finite"]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nowhere"], 1, "info.json is missing"),
        (["."], 1, "info.json is missing"),
        ([str(ASSETS / "lerobot_v30"), "--workers", "0"], 1, "--workers is 0"),
        ([str(ASSETS / "lerobot_v30"), "--json", "no/such/x.json"], 1, "does not exist"),
        ([str(ASSETS / "lerobot_v30"), "--no-vido"], 2, "--no-video"),
    ],
)
def test_bad_input(argv, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *argv]) == code
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


def test_one_cause_in_many_episodes_is_one_finding(tmp_path):
    write_numbers(LeRobotWriterV21, tmp_path / "set", episodes=8, length=20)
    for episode in range(8):
        edit_column(tmp_path / "set", DATA21.format(episode), "subtask_end", lambda values: [0] * len(values))
        edit_column(tmp_path / "set", DATA21.format(episode), "action", lambda v: v, pa.list_(pa.float64()))
    put_nan = lambda rows: [[NAN, *row[1:]] if i % 2 else row for i, row in enumerate(rows)]  # noqa: E731
    edit_column(tmp_path / "set", DATA21.format(3), "observation.state", put_nan)
    found = [str(finding) for finding in check_dataset(tmp_path / "set").findings if finding.kind != "statistics"]
    assert len(found) == 3
    assert "(in 8 episodes: 0-7)" in next(text for text in found if "no frame is flagged" in text)
    assert "(in 8 files, the first is " in next(text for text in found if "float64" in text)
    assert any(text.startswith("episode 3, frames 1, 3, 5, 7, 9, 11, 13, 15, ... 19 (10 in all)") for text in found)
