"""What training needs of a dataset: a check, packing and the lanes refuse the same, in the same words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from layouts import edit_info
from odd_sets import edit_data, edit_features, with_column, write_set

from mem0_jax.cli import main
from mem0_jax.data.check import check_dataset
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.normalize import NormStats

ONE = ("timestamp", "index", "frame_index", "episode_index", "task_index", "subtask_end", "episode_id")


def put(root: Path, key: str, change: Callable[[list], list], kind: Any = None, **declared: Any) -> None:
    """Change the cells of a column, and what is declared of it."""
    edit_features(root, **{key.replace(".", "__"): declared})

    def changed(table: pa.Table) -> pa.Table:
        return with_column(table, key, pa.array(change(table[key].to_pylist()), kind or table[key].type))

    edit_data(root, changed)


def pairs(key: str) -> Callable[[Path], None]:
    def bend(root: Path) -> None:
        kind = pa.float32() if key == "timestamp" else pa.int64()
        put(root, key, lambda cells: [[cell, cell] for cell in cells], pa.list_(kind), shape=[2])

    return bend


def flag(value: float, kind: pa.DataType, dtype: str) -> Callable[[Path], None]:
    return lambda r: put(r, "subtask_end", lambda cells: [value, *cells[1:]], kind, dtype=dtype)


def number(key: str, value: float) -> Callable[[Path], None]:
    def bend(root: Path) -> None:
        changed = [value] * 16
        put(root, key, lambda cells: [changed, *cells[1:]], pa.list_(pa.float64()), dtype="float64")

    return bend


def lost(root: Path, key: str) -> None:
    edit_data(root, lambda table: table.drop_columns([key]))


def undeclared(root: Path, key: str) -> None:
    lost(root, key)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    del features[key]
    edit_info(root, features=features)


NOT_A_FLAG = "episode 0, frame 0, subtask_end: is neither 0 nor 1"
# What is wrong, and the words of: training and packing, the check.
FAULTS: dict[str, tuple[Any, ...]] = {
    **{f"{key} in pairs": (pairs(key), *[f"{key}: has shape [2]; expected [1]"] * 2) for key in ONE},
    "flag 255": (flag(255, pa.uint8(), "uint8"), NOT_A_FLAG, NOT_A_FLAG),
    "flag -1": (flag(-1, pa.int64(), "int64"), NOT_A_FLAG, NOT_A_FLAG),
    "flag 0.9": (flag(0.9, pa.float32(), "float32"), NOT_A_FLAG, NOT_A_FLAG),
    "flag NaN": (flag(np.nan, pa.float64(), "float64"), NOT_A_FLAG, NOT_A_FLAG),
    "no timestamps": (lambda r: lost(r, "timestamp"), "lacks the columns ['timestamp']", "timestamp: the column is"),
    "durations": (
        lambda r: put(r, "timestamp", lambda cells: [round(1e9 * t) for t in cells], pa.duration("ns")),
        "feature 'timestamp' holds duration[ns]",
        "timestamp: the column holds duration[ns]",
    ),
    "null ids": (
        lambda r: put(r, "episode_id", lambda cells: [None] * len(cells)),
        "feature 'episode_id' has",
        "episode_id: all cells are empty",
    ),
    "ids of texts": (
        lambda r: put(r, "episode_id", lambda cells: ["a"] * len(cells), pa.string(), dtype="string"),
        *["episode_id: is declared as string; commands read it as numbers"] * 2,
    ),
    "no index": (lambda r: undeclared(r, "index"), *["index: info.json lacks this feature"] * 2),
    "actions unreadable": (
        lambda r: edit_features(r, action={"dtype": "complex64"}),
        *["action: cannot be read: its dtype is 'complex64'"] * 2,
    ),
    "NaN": (
        number("action", np.nan),
        "action has NaN or infinite values, first in left_joint_0",
        "action: NaN or infin",
    ),
    "infinity": (
        number("observation.state", np.inf),
        "observation.state has NaN or infinite",
        "state: NaN or infinity",
    ),
    "beyond float32": (number("action", 1e300), "action has values beyond float32", "action: numbers beyond float32"),
    **{
        f"subtasks as {dtype}": (
            lambda r, dtype=dtype: edit_features(r, subtask={"dtype": dtype}),
            *[f"subtask: cannot be read: its dtype is {dtype!r}"] * 2,
        )
        for dtype in ("str", "object", "language")
    },
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fault", FAULTS)
def test_training_packing_and_the_check_refuse_alike(fault, tmp_path, capsys):
    pytest.importorskip("array_record.python.array_record_module", reason="packing needs mem0-jax[pack]")
    root, out = write_set(tmp_path / "set", "v3.0"), tmp_path / "out"
    bend, words, checked = FAULTS[fault]
    bend(root)
    with pytest.raises(ValueError, match=r".") as caught:
        LaneSource(LeRobotDataset(root), lanes=1, frames=1, horizon=1, seed=0)
    assert words in str(caught.value)
    assert main(["data", "pack", str(root), str(out)]) == 1
    assert words in capsys.readouterr().err
    assert not out.exists()
    errors = [finding for finding in check_dataset(root).findings if finding.severity == "error"]
    assert any(checked in str(error) for error in errors)
    assert len({(error.kind, error.feature) for error in errors}) == 1


def test_a_mixture_names_the_dataset(tmp_path):
    good, bad = (write_set(tmp_path / name, "v2.1") for name in ("good", "bad"))
    flag(2, pa.int64(), "int64")(bad)
    with pytest.raises(ValueError, match=rf"{bad}: {NOT_A_FLAG}"):
        LaneSource(Mixture([LeRobotDataset(good), LeRobotDataset(bad)]), lanes=1, frames=1, horizon=1, seed=0)


def test_statistics_need_the_vectors_alone(tmp_path):
    root = write_set(tmp_path / "set", "v2.1")
    lost(root, "timestamp")
    assert NormStats.from_dataset(LeRobotDataset(root))


@pytest.mark.parametrize("spec", ["06", "06d", "d", "0"])
def test_templates_as_python_reads_them(spec, tmp_path):
    root = write_set(tmp_path / "set", "v2.1")
    if spec in ("d", "0"):
        for path in (root / "data").rglob("*.parquet"):
            path.rename(path.with_name(f"episode_{int(path.stem[-6:])}.parquet"))
    edit_info(root, data_path="data/chunk-000/episode_{episode_index:" + spec + "}.parquet")
    assert LeRobotDataset(root).num_frames == 15
