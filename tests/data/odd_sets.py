"""Small datasets bent out of shape as other writers make them: what they hold stays as recorded, or they are refused.

Axes: N frames of an episode.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from episodes import CAMERA, episode_frames
from layouts import edit_info

from mem0_jax.data.lerobot_writer import LeRobotWriter, mem0_features
from mem0_jax.data.lerobot_writer_v21 import LeRobotWriterV21

LENGTHS = (5, 4, 6)
TASKS = ("pick the cup", "open the box", "pick the cup")
VERSIONS = ("v2.1", "v3.0")


def write_set(root: Path, version: str, *, camera: bool = False) -> Path:
    """Three episodes of two tasks, every episode in a parquet file of its own, without pictures unless asked for."""
    features = {key: value for key, value in mem0_features(64, 96).items() if camera or key != CAMERA}
    writer, more = (LeRobotWriterV21, {}) if version == "v2.1" else (LeRobotWriter, {"data_mb": 1e-6})
    with writer(root, 10, features, "planar", **more) as recording:
        for episode, (length, task) in enumerate(zip(LENGTHS, TASKS)):
            frames = episode_frames(episode, length)
            recording.add_episode({key: frames[key] for key in features}, task)
    return root


@dataclass(frozen=True)
class Odd:
    """A way to bend a set.

    Attributes:
        bend: changes the files below a folder.
        versions: those it can be done to.
        refused: "" where the set is read as before, else a pattern of the error, which says how to go round.
        camera: whether the set has pictures.
    """

    bend: Callable[[Path], Any]
    versions: tuple[str, ...] = VERSIONS
    refused: str = ""
    camera: bool = False


# Bending


def data_files(root: Path) -> list[Path]:
    return sorted((root / "data").rglob("*.parquet"))


def edit_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def with_column(table: pa.Table, key: str, array: Any) -> pa.Table:
    """The table with a column replaced or added."""
    if key in table.column_names:
        return table.set_column(table.column_names.index(key), key, array)
    return table.append_column(key, array)


def edit_data(root: Path, change: Callable[[pa.Table], pa.Table], files: slice = slice(None)) -> None:
    for path in data_files(root)[files]:
        edit_table(path, change)


def edit_features(root: Path, **changes: dict) -> None:
    """Update features of info.json; keys are given with __ for a dot."""
    features = json.loads((root / "meta/info.json").read_text())["features"]
    for key, change in changes.items():
        features[key.replace("__", ".")] = features.get(key.replace("__", "."), {}) | change
    edit_info(root, features=features)


def cast(root: Path, key: str, kind: pa.DataType, files: slice = slice(None)) -> None:
    edit_data(root, lambda table: with_column(table, key, table[key].cast(kind)), files)


def link(root: Path, name: str) -> None:
    """Move a file or folder of the set elsewhere, and put a link in its place."""
    place = root.parent / f"{root.name}.elsewhere" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / name, place)
    (root / name).symlink_to(place)


def _unneeded(dtype: str, shape: Any, cells: Callable[[int], Any]) -> Callable[[Path], None]:
    def bend(root: Path) -> None:
        edit_data(root, lambda table: with_column(table, "extra", cells(len(table))))
        edit_features(root, extra={"dtype": dtype, "shape": shape, "names": None})

    return bend


ODD = {
    "nothing": Odd(lambda root: None),
    "nothing, with pictures": Odd(lambda root: None, camera=True),
    "float64 in one file": Odd(lambda root: cast(root, "action", pa.list_(pa.float64(), 16), slice(1, 2))),
    "data linked": Odd(lambda root: link(root, "data")),
    "unneeded null": Odd(_unneeded("float32", [1], lambda n: pa.array([None] * n, pa.float32()))),
}


def sets() -> list[tuple[str, str]]:
    """Every (name, version) of ODD."""
    return [(name, version) for name, odd in ODD.items() for version in odd.versions]


def truth(key: str) -> np.ndarray:
    """What was recorded: [F, ...] of all episodes."""
    return np.concatenate([episode_frames(episode, length)[key] for episode, length in enumerate(LENGTHS)])
