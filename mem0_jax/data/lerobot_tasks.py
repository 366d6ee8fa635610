"""The task table of a LeRobot dataset: meta/tasks.jsonl (v2) or meta/tasks.parquet (v3.0).

Axes: F frames of the whole dataset.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mem0_jax.data import files, parquet
from mem0_jax.data.files import AnyPath, DatasetError
from mem0_jax.data.lerobot_meta import Episode, Info, integer


def read_tasks(root: AnyPath, info: Info) -> list[tuple[int, str]]:
    """Return (task_index, text) of every row of the task table.

    Raises:
        MissingFile, DatasetError: no table, no column that is surely that of the texts, cells that are no texts.
    """
    return _read(root, info)[0]


def task_texts(
    root: AnyPath, info: Info, episodes: Sequence[Episode], index: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Return the tasks of frames that have the task_index int [F], as (ids int32 [F], the distinct texts).

    Raises:
        DatasetError: a task_index that the table lacks or gives twice, or another task than the episode table gives.
    """
    path = tasks_path(root, info)
    rows, column = _read(root, info)
    twice = [number for number, count in Counter(number for number, _ in rows).items() if count > 1]
    if twice:
        raise DatasetError(f"{path} gives task_index {twice} more than once")
    table = dict(sorted(rows))
    used, place = np.unique(index, return_inverse=True)
    unknown = sorted(set(used.tolist()) - table.keys())
    if unknown:
        raise DatasetError(f"{root}: task_index {unknown} has no entry in the task table")
    ids = {text: i for i, text in enumerate(dict.fromkeys(table.values()))}
    id_of = np.array([ids[table[number]] for number in used.tolist()], np.int32)[place]
    texts = list(ids)
    for episode in episodes:
        found = {texts[i] for i in np.unique(id_of[episode.start : episode.start + episode.length])}
        if episode.tasks and not found <= set(episode.tasks):
            raise DatasetError(
                f"{episode.name}: its frames have the tasks {sorted(found)} by {path} ({column}), but "
                f"{sorted(episode.tasks)} by the episode table; correct the one that is wrong"
            )
    return id_of, texts


def tasks_path(root: AnyPath, info: Info) -> AnyPath:
    """Where the task table lies."""
    return root / ("meta/tasks.parquet" if info.version == "v3.0" else "meta/tasks.jsonl")


def _read(root: AnyPath, info: Info) -> tuple[list[tuple[int, str]], str]:
    """Return the rows, and which column the texts are from."""
    path = tasks_path(root, info)
    if info.version != "v3.0":
        return [_checked_row(row, str(path)) for row in files.read_json_lines(path)], "task"
    table = parquet.read_table(path, None, "task table")
    if "task_index" not in table.column_names:
        raise DatasetError(f"{path} has the columns {table.column_names}; task_index is not among them")
    index = parquet.numeric(table["task_index"], (1,), f"{path}: task_index")
    index = parquet.as_declared(index, np.dtype(np.int64), f"{path}: task_index").tolist()
    name = _text_column(table, path)
    rows = [{"task_index": i, "task": text} for i, text in zip(index, table[name].to_pylist())]
    return [_checked_row(row, str(path)) for row in rows], f"column {name!r} of {table.column_names}"


def _checked_row(row: dict, where: str) -> tuple[int, str]:
    number, text = integer(row, "task_index", where, 0), row.get("task")
    if not isinstance(text, str):
        said = f"is {text!r}" if "task" in row else f"is not among {sorted(row)}"
        raise DatasetError(f"{where}: the task of task_index {number} {said}; expected a text")
    return number, text


def _text_column(table: pa.Table, path: AnyPath) -> str:
    """Return the column of the texts. Pandas wrote them as an index, whose name writers choose."""
    found = [field.name for field in table.schema if parquet.is_text(field.type)]
    index = [name for name in _pandas_index(table) if name in found]
    names = index or [name for name in ("task", "__index_level_0__") if name in found]
    if len(names) > 1 and "task" in names and all(table[name].equals(table["task"]) for name in names):
        return "task"
    if len(names) == 1:
        return names[0]
    raise DatasetError(
        f"{path} has the columns {table.column_names}; which holds the task texts is not clear: name it task and write "
        "the file without a pandas index"
    )


def _pandas_index(table: pa.Table) -> list[str]:
    try:
        index = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))["index_columns"]
        return [name for name in index if isinstance(name, str)]
    except (ValueError, KeyError, TypeError):
        return []
