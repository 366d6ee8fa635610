"""What follows from a wrong number of frames, rate or label is not told: one finding a cause."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from episodes import CAMERA
from layouts import edit_info
from odd_sets import data_files, edit_data, edit_features, edit_table, with_column, write_set

from mem0_jax.data.check import check_dataset

OLD, NEW = "v2.1", "v3.0"
TEMPLATE = "data/file-{file_index:03d}.parquet"


def edit_lines(path: Path, change: Callable[[list[dict]], Any]) -> None:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    change(entries)
    path.write_text("\n".join(map(json.dumps, entries)))


def lengths(root: Path, change: Callable[[list[dict]], Any]) -> None:
    """Change the rows of the episode table."""
    if (root / "meta/episodes.jsonl").is_file():
        return edit_lines(root / "meta/episodes.jsonl", change)

    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        change(rows)
        return pa.Table.from_pylist(rows, table.schema)

    return edit_table(next((root / "meta/episodes").rglob("*.parquet")), changed)


def rows(root: Path, episode: int, change: Callable[[pa.Table], pa.Table]) -> None:
    edit_table(data_files(root)[episode], change)


def floats(root: Path, key: str, place: int, value: float) -> None:
    """Declare a column as floats, and put one of its own into the second episode."""
    edit_features(root, **{key: {"dtype": "float32"}})
    edit_data(root, lambda table: with_column(table, key, table[key].cast(pa.float32())))

    def put(table: pa.Table) -> pa.Table:
        values = np.array(table[key].to_pylist(), np.float32)
        values[place] = value
        return with_column(table, key, pa.array(values))

    rows(root, 1, put)


def slower(root: Path) -> None:
    edit_data(root, lambda table: with_column(table, "timestamp", pa.array(2 * np.array(table["timestamp"]))))


ONE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], str]] = {
    "row lost": (lambda r: rows(r, 1, lambda t: t.take([0, 2, 3])), (OLD, NEW), "says 4 frames, but the file holds 3"),
    "rows twice": (lambda r: rows(r, 0, lambda t: pa.concat_tables([t, t[:2]])), (OLD, NEW), "but the file holds 7"),
    "longer": (
        lambda r: lengths(r, lambda e: e[0].update(length=6)),
        (OLD, NEW),
        "6 frames, but the file holds 5",
    ),
    "empty": (lambda r: lengths(r, lambda e: e[1].update(length=0)), (OLD, NEW), "^length is 0; expected an integer"),
    "empty behind": (
        lambda r: lengths(r, lambda e: e.append(e[2] | {"episode_index": 9, "length": 0})),
        (OLD, NEW),
        "^length is 0; expected an integer",
    ),
    "fps": (lambda r: edit_info(r, fps=20), (OLD, NEW), "video.fps is 10, but the dataset has 20|^counts 10 frames"),
    "timestamps": (slower, (OLD, NEW), r"^counts 5 frames a second, the dataset 10 \(in 3 files"),
    "a new label": (lambda r: edit_info(r, codebase_version=NEW), (OLD,), "set it to 'v2.1'"),
    "an old label": (lambda r: edit_info(r, codebase_version=OLD), (NEW,), "set it to 'v3.0'"),
    "template": (lambda r: edit_info(r, data_path=TEMPLATE), (OLD,), "uses 'file_index', which v2.1 lacks"),
    "NaN for a flag": (lambda r: floats(r, "subtask_end", 2, np.nan), (OLD, NEW), "^is neither 0 nor 1$"),
    "NaN for an id": (lambda r: floats(r, "episode_id", 0, np.nan), (OLD, NEW), "^NaN or infinity in"),
    "NaN for a task": (lambda r: floats(r, "task_index", 1, np.nan), (OLD, NEW), "^NaN or infinity in"),
}


@pytest.mark.parametrize(("fault", "version"), [(fault, v) for fault, (_, them, _) in ONE.items() for v in them])
def test_one_finding_a_cause(fault, version, tmp_path):
    root = write_set(tmp_path / "set", version)
    assert check_dataset(root).errors == 0
    change, _, words = ONE[fault]
    change(root)
    (error,) = [finding for finding in check_dataset(root).findings if finding.severity == "error"]
    assert re.search(words, error.message), error


@pytest.mark.parametrize("version", [OLD, NEW])
def test_videos_and_time_stamps_of_another_rate_are_one_cause(version, tmp_path):
    root = write_set(tmp_path / "set", version, camera=True)
    edit_info(root, fps=5)
    (error,) = [finding for finding in check_dataset(root).findings if finding.severity == "error"]
    assert (error.kind, error.feature) == ("fps", CAMERA)


def test_the_cause_comes_first_and_hides_no_other_fault(tmp_path):
    root = write_set(tmp_path / "set", OLD)
    rows(root, 2, lambda table: table[:5])
    edit_lines(root / "meta/tasks.jsonl", lambda tasks: tasks[1].update(task_index=0))
    kinds = [finding.kind for finding in check_dataset(root).findings if finding.severity == "error"]
    assert kinds[0] == "frame-count"
    assert "tasks" in kinds
