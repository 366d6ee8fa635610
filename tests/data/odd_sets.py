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

from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.lerobot_writer_v21 import LeRobotWriterV21

LENGTHS = (5, 4, 6)
TASKS = ("pick the cup", "open the box", "pick the cup")
VERSIONS = ("v2.1", "v3.0")
THREE = ("v3.0",)


def write_set(root: Path, version: str, *, camera: bool = False) -> Path:
    """Three episodes of two tasks, every episode in a parquet file of its own, without pictures unless asked for."""
    features = {key: value for key, value in staged_features(64, 96).items() if camera or key != CAMERA}
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
        asked: a feature that is in order nowhere, and refused when it is asked for.
        differs: lerobot reads something else, by mistake.
        camera: whether the set has pictures.
    """

    bend: Callable[[Path], Any]
    versions: tuple[str, ...] = VERSIONS
    refused: str = ""
    asked: str = ""
    differs: bool = False
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


# Features


def _unneeded(dtype: str, shape: Any, cells: Callable[[int], Any]) -> Odd:
    """One more feature, which nothing asks for."""

    def bend(root: Path) -> None:
        edit_data(root, lambda table: with_column(table, "extra", cells(len(table))))
        edit_features(root, extra={"dtype": dtype, "shape": shape, "names": None})

    return Odd(bend, asked="extra")


def _undeclared(root: Path) -> None:
    edit_data(root, lambda table: with_column(table, "extra", pa.array([{"a": 1}] * len(table))))


def _absent(root: Path) -> None:
    edit_features(root, extra={"dtype": "float32", "shape": [2], "names": None})


def _struct_of(n: int) -> pa.Array:
    return pa.array([{"a": 1, "b": "x"}] * n)


FEATURES = {
    "unneeded nulls": _unneeded("float32", [1], lambda n: pa.array([None] * (n - 1) + [1.0], pa.float32())),
    "unneeded null texts": _unneeded("string", [1], lambda n: pa.array([None] * n, pa.string())),
    "unneeded null type": _unneeded("float32", [1], lambda n: pa.nulls(n)),
    "unneeded list of texts": _unneeded("string", [1], lambda n: pa.array([["go", "now"]] * n)),
    "unneeded timestamps": _unneeded("timestamp[ns]", [1], lambda n: pa.array(range(n), pa.timestamp("ns"))),
    "unneeded binary": _unneeded("binary", [1], lambda n: pa.array([b"x"] * n)),
    "unneeded struct": _unneeded("struct", [2], _struct_of),
    "unneeded map": _unneeded("map", [1], lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64()))),
    "unneeded decimals": _unneeded(
        "decimal128(5, 2)", [1], lambda n: pa.array([1] * n, pa.int64()).cast(pa.decimal128(21, 2))
    ),
    "unneeded texts for numbers": _unneeded("float32", [1], lambda n: pa.array(["1.5"] * n)),
    "unneeded empty lists": _unneeded("float32", [0], lambda n: pa.array([[]] * n, pa.list_(pa.float32()))),
    "unneeded ragged lists": _unneeded("float32", [2], lambda n: pa.array([[1.0]] + [[1.0, 2.0]] * (n - 1))),
    "unneeded ragged lists that add up": _unneeded(
        "float32", [2], lambda n: pa.array([[1.0], [1.0, 2.0, 3.0]] + [[1.0, 2.0]] * (n - 2))
    ),
    "unneeded shape of text": _unneeded("float32", ["two"], lambda n: pa.array([[1.0, 2.0]] * n)),
    "unneeded shape without end": _unneeded("float32", [2**40], lambda n: pa.array([1.0] * n)),
    "unneeded unknown dtype": _unneeded("quaternion", [4], lambda n: pa.array([[1.0] * 4] * n)),
    "a column that is not declared": Odd(_undeclared, asked="extra"),
    "a feature without a column": Odd(_absent, asked="extra"),
}


# Types of what is needed


def _cast(kind: pa.DataType, files: slice = slice(None), key: str = "action") -> Odd:
    return Odd(lambda root: cast(root, key, kind, files))


def _without(root: Path, *keys: str) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in info.items() if key not in keys}))


def _dictionary(table: pa.Table) -> pa.Table:
    return with_column(table, "task_index", table["task_index"].dictionary_encode())


def _tensor(table: pa.Table) -> pa.Table:
    storage = table["action"].combine_chunks().cast(pa.list_(pa.float32(), 16))
    return with_column(
        table, "action", pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [16]), storage)
    )


def _null_inside(table: pa.Table) -> pa.Table:
    values = table["action"].to_pylist()
    values[1][3] = None
    return with_column(table, "action", pa.array(values, pa.list_(pa.float32())))


def _misshapen(table: pa.Table) -> pa.Table:
    values = table["action"].to_pylist()
    values[0], values[1] = values[0][:15], [*values[1], 0.0]  # as many numbers as promised
    return with_column(table, "action", pa.array(values, pa.list_(pa.float32())))


def _swap_files(root: Path) -> None:
    """Episodes 0 and 2 in one file, 1 in another."""
    first, _, third = data_files(root)
    pq.write_table(pa.concat_tables([pq.read_table(first), pq.read_table(third)]), first)
    third.unlink()
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    at = "data/file_index"
    pq.write_table(with_column(table, at, pa.array([0, 1, 0], pa.int64())), path)


ONE = slice(1, 2)
TYPES = {
    "float64 in one file": _cast(pa.list_(pa.float64(), 16), ONE),
    "float64 in all files": _cast(pa.list_(pa.float64())),
    "lists in one file": _cast(pa.list_(pa.float32()), ONE),
    "large lists in one file": _cast(pa.large_list(pa.float32()), ONE),
    "large lists of float64 in one file": _cast(pa.large_list(pa.float64()), ONE),
    "int32 counters in one file": _cast(pa.int32(), ONE, "task_index"),
    "float64 counters in one file": _cast(pa.float64(), ONE, "episode_index"),
    "float64 times in one file": _cast(pa.float64(), ONE, "timestamp"),
    "large_string in one file": _cast(pa.large_string(), ONE, "subtask"),
    "tasks in a dictionary": Odd(lambda root: edit_data(root, _dictionary)),
    "tensors": Odd(lambda root: edit_data(root, _tensor)),
    "a null inside": Odd(lambda root: edit_data(root, _null_inside, ONE), refused=r"'action' has 1 empty cells"),
    "misshapen": Odd(lambda root: edit_data(root, _misshapen, ONE), refused=r"'action' has cells of different sizes"),
    "episodes of two files in turn": Odd(_swap_files, ("v3.0",)),
}


# info.json


def _change(**changes: Any) -> Callable[[Path], None]:
    return lambda root: edit_info(root, **changes)


def _crlf(root: Path) -> None:
    for path in (root / "meta").rglob("*.json*"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")


def _relabel(root: Path) -> None:
    version = json.loads((root / "meta/info.json").read_text())["codebase_version"]
    edit_info(root, codebase_version="v2.1" if version == "v3.0" else "v3.0")


def _state(**change: Any) -> Odd:
    return Odd(lambda root: edit_features(root, observation__state=change))


JOINTS = [f"joint {i}" for i in range(16)]
INFO = {
    "fps as float": Odd(_change(fps=10.0)),
    "fps as text": Odd(_change(fps="10"), refused="fps is '10'.*without quotes"),
    "no splits": Odd(lambda root: _without(root, "splits")),
    "no chunks_size": Odd(lambda root: _without(root, "chunks_size")),
    "no robot_type": Odd(lambda root: _without(root, "robot_type")),
    "fewer frames declared": Odd(_change(total_frames=14), refused="declares 3 episodes and 14 frames.*correct"),
    "more episodes declared": Odd(_change(total_episodes=4), refused="declares 4 episodes.*correct"),
    "no totals": Odd(lambda root: _without(root, "total_frames"), refused="declares 3 episodes and None.*correct"),
    "label without v": Odd(lambda root: edit_info(root, codebase_version=_label(root)[1:])),
    "label v3": Odd(_change(codebase_version="v3"), THREE),
    "label V3.0.0": Odd(_change(codebase_version=" V3.0.0 "), THREE),
    "label 3": Odd(_change(codebase_version=3), THREE),
    "label 2.1": Odd(_change(codebase_version=2.1), ("v2.1",)),
    "label v2": Odd(_change(codebase_version="v2"), ("v2.1",), refused="write v2.1 if there is meta/episodes_stats"),
    "label of a newer version": Odd(_change(codebase_version="v3.1"), THREE, refused="if its files are laid out as in"),
    "label of an older version": Odd(_change(codebase_version="v1.6"), refused="lerobot's conversion scripts"),
    "label none": Odd(lambda root: _without(root, "codebase_version"), refused="None is unknown.*write v3.0 if there"),
    "label of another version": Odd(_relabel, refused="says codebase_version .* but there is meta/episodes"),
    "label of v2.0": Odd(_change(codebase_version="v2.0"), ("v2.1",)),
    "marks, CRLF and empty lines": Odd(_crlf),
    "shape as number": _state(shape=16),
    "names in a dict": _state(names={"motors": JOINTS}),
    "names by axes": _state(names=["joints"]),
    "names in a list of lists": _state(names=[JOINTS]),
    "names by place": _state(names={name: i for i, name in enumerate(JOINTS)}),
    "names none": _state(names=None),
    "names text": _state(names="joints"),
    "names in one text": _state(names=", ".join(JOINTS)),
    "names as keys": _state(names=dict.fromkeys(JOINTS)),
    "names empty": _state(names=[]),
    "names of a few": _state(names=JOINTS[:3]),
    "no names": Odd(lambda root: _drop_names(root)),
    "shape in floats": _state(shape=[16.0]),
    "data outside": Odd(_change(data_path="../data/{episode_index}"), ("v2.1",), refused="leads outside"),
}


def _label(root: Path) -> str:
    return json.loads((root / "meta/info.json").read_text())["codebase_version"]


def _drop_names(root: Path) -> None:
    features = json.loads((root / "meta/info.json").read_text())["features"]
    for feature in features.values():
        feature.pop("names")
    edit_info(root, features=features)


# Links


def _link_root(root: Path) -> None:
    shutil.move(root, root.with_name("elsewhere"))
    root.symlink_to(root.with_name("elsewhere"))


LINKS = {
    "data linked": Odd(lambda root: link(root, "data")),
    "meta linked": Odd(lambda root: link(root, "meta")),
    "a chunk linked": Odd(lambda root: link(root, "data/chunk-000")),
    "a chunk of the table linked": Odd(lambda root: link(root, "meta/episodes/chunk-000"), ("v3.0",)),
    "the table linked": Odd(lambda root: link(root, "meta/episodes"), ("v3.0",)),
    "files linked": Odd(lambda root: [link(root, str(path.relative_to(root))) for path in data_files(root)]),
    "info linked": Odd(lambda root: link(root, "meta/info.json")),
    "all linked": Odd(_link_root),
}


# Tasks


def _tasks(index: list | None = None, **columns: Any) -> Callable[[Path], None]:
    """Another tasks.parquet; `index` are pandas' index columns, if it is to say any."""

    def bend(root: Path) -> None:
        table = pa.table({key.replace("dunder_", "__"): value for key, value in columns.items()})
        if index is not None:
            table = table.replace_schema_metadata({"pandas": json.dumps(_pandas(table, index))})
        pq.write_table(table, root / "meta/tasks.parquet")

    return bend


def _pandas(table: pa.Table, index: list) -> dict[str, Any]:
    columns = []
    for field in table.schema:
        kind = ("unicode", "object") if field.type == pa.string() else ("int64", "int64")
        entry = {
            "name": None if field.name.startswith("__") else field.name,
            "field_name": field.name,
            "metadata": None,
        }
        columns.append(entry | dict(zip(("pandas_type", "numpy_type"), kind)))
    return {"index_columns": index, "column_indexes": [], "columns": columns, "pandas_version": "2.3.3"}


def _lines(name: str, change: Callable[[list[dict]], Any]) -> Callable[[Path], None]:
    def bend(root: Path) -> None:
        rows = [json.loads(line) for line in (root / name).read_text().splitlines()]
        rows = change(rows) or rows
        (root / name).write_text("\n".join(map(json.dumps, rows)))

    return bend


def _renumber(number: dict[int, int]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: with_column(
        table, "task_index", pa.array([number[i] for i in table["task_index"].to_pylist()], pa.int64())
    )


def _gaps(root: Path) -> None:
    edit_data(root, _renumber({0: 3, 1: 7}))
    if (root / "meta/tasks.jsonl").exists():
        _lines("meta/tasks.jsonl", lambda rows: [row.update(task_index=n) for row, n in zip(rows, (3, 7))] and None)(
            root
        )
    else:
        _tasks(task_index=[3, 7], task=TEXTS)(root)


def _other_episode_tasks(root: Path) -> None:
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    if path.exists():
        edit_table(path, lambda table: with_column(table, "tasks", pa.array([["pick the cup"], ["wave"], ["wave"]])))
    else:
        _lines("meta/episodes.jsonl", lambda rows: rows[1].update(tasks=["wave"]))(root)


TEXTS = ["pick the cup", "open the box"]
KITCHEN = ["kitchen", "kitchen"]
UNCLEAR = r"has the columns \['.*which holds the task texts is not clear: name it task"
TASK_TABLES = {
    "tasks by pandas' index": Odd(_tasks(["task"], category=KITCHEN, task_index=[0, 1], task=TEXTS), THREE),
    "tasks by an index of another name": Odd(
        _tasks(["instruction"], category=KITCHEN, task_index=[0, 1], instruction=TEXTS), THREE
    ),
    "tasks by an index without name": Odd(
        _tasks(["__index_level_0__"], category=KITCHEN, task_index=[0, 1], dunder_index_level_0__=TEXTS), THREE
    ),
    "tasks after another text": Odd(_tasks(category=KITCHEN, task_index=[0, 1], task=TEXTS), THREE),
    "tasks under an index of numbers": Odd(
        _tasks(["__index_level_0__"], task_index=[0, 1], task=TEXTS, dunder_index_level_0__=[7, 9]), THREE
    ),
    "tasks under a range": Odd(
        _tasks([{"kind": "range", "start": 0, "stop": 2, "step": 1}], task_index=[0, 1], task=TEXTS), THREE
    ),
    "tasks under task_index": Odd(_tasks(["task_index"], category=KITCHEN, task=TEXTS, task_index=[0, 1]), THREE),
    "tasks in two levels": Odd(
        _tasks(["category", "task"], task_index=[0, 1], category=KITCHEN, task=TEXTS), THREE, refused=UNCLEAR
    ),
    "tasks under no known name": Odd(
        _tasks(category=KITCHEN, instruction=TEXTS, task_index=[0, 1]), THREE, refused=UNCLEAR
    ),
    "tasks by the wrong index": Odd(
        _tasks(["category"], task_index=[0, 1], task=TEXTS, category=KITCHEN),
        THREE,
        refused=r"'kitchen'.*column 'category' of \['task_index', 'task', 'category'\].*'pick the cup'",
    ),
    "tasks as large_string": Odd(_tasks(task_index=[0, 1], task=pa.array(TEXTS, pa.large_string())), THREE),
    "tasks as string_view": Odd(_tasks(task_index=[0, 1], task=pa.array(TEXTS, pa.string_view())), THREE),
    "tasks as dictionary": Odd(_tasks(task_index=[0, 1], task=pa.array(TEXTS).dictionary_encode()), THREE),
    "tasks out of order": Odd(_tasks(task_index=[1, 0], task=TEXTS[::-1]), THREE, differs=True),
    "tasks out of order in lines": Odd(_lines("meta/tasks.jsonl", lambda rows: rows[::-1]), ("v2.1",)),
    "tasks with more keys": Odd(_lines("meta/tasks.jsonl", lambda rows: [{"a": "b"} | row for row in rows]), ("v2.1",)),
    "tasks of other keys": Odd(
        _lines("meta/tasks.jsonl", lambda rows: [{"task_index": 0, "instruction": "go"}]),
        ("v2.1",),
        refused=r"task of task_index 0 is not among \['instruction', 'task_index'\]",
    ),
    "tasks with gaps": Odd(_gaps, differs=True),
    "tasks twice": Odd(
        _tasks(task_index=[0, 1, 1], task=[*TEXTS, "wave"]), THREE, refused=r"gives task_index \[1\] more"
    ),
    "tasks null": Odd(_tasks(task_index=[0, 1], task=["pick the cup", None]), THREE, refused="task_index 1 is None"),
    "tasks null number": Odd(_tasks(task_index=[0, None], task=TEXTS), THREE, refused="task_index has 1 empty cells"),
    "tasks of the episodes": Odd(_other_episode_tasks, refused=r"episode 1: .*'open the box'.*'wave'"),
}


ODD = {
    "nothing": Odd(lambda root: None),
    "nothing, with pictures": Odd(lambda root: None, camera=True),
    **FEATURES,
    **TYPES,
    **INFO,
    **LINKS,
    **TASK_TABLES,
}


def sets() -> list[tuple[str, str]]:
    """Every (name, version) of ODD."""
    return [(name, version) for name, odd in ODD.items() for version in odd.versions]


def truth(key: str) -> np.ndarray:
    """What was recorded: [F, ...] of all episodes."""
    return np.concatenate([episode_frames(episode, length)[key] for episode, length in enumerate(LENGTHS)])
