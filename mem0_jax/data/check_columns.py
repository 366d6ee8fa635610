"""Check of one parquet file: columns, rows, index columns, values, subtask ends.

Axes: R rows of the file, N frames of an episode, D numbers of a feature in one frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mem0_jax.data import parquet
from mem0_jax.data.check_meta import Metadata, feature_names, severity
from mem0_jax.data.files import AnyPath, DatasetError, MissingFile
from mem0_jax.data.findings import Findings, runs
from mem0_jax.data.joint_names import VECTORS
from mem0_jax.data.lerobot_features import AUTOMATIC, COMMON
from mem0_jax.data.lerobot_meta import Episode
from mem0_jax.data.needed import NO_FLAG, not_flags
from mem0_jax.data.normalize import not_numbers

TIME_TOLERANCE = 1e-4  # seconds, LeRobot's
NULL_TEXT = "null"  # Mem-0 marks frames without a subtask by this text


@dataclass(frozen=True)
class Moments:
    """Statistics of a feature over some frames, float64 [D] each; `square` is the sum of squared deviations."""

    count: int
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Measure numbers [N, D]."""
        with np.errstate(over="ignore", invalid="ignore"):  # numbers near the largest, which no statistics fit
            mean = values.mean(0)
            return cls(len(values), values.min(0), values.max(0), mean, ((values - mean) ** 2).sum(0))

    def join(self, other: Moments) -> Moments:
        """Return the moments of both sets of frames together (Chan et al. 1979)."""
        count, shift = self.count + other.count, other.mean - self.mean
        mean = self.mean + shift * other.count / count
        square = self.square + other.square + shift**2 * self.count * other.count / count
        return Moments(count, np.minimum(self.low, other.low), np.maximum(self.high, other.high), mean, square)

    def fold(self, width: int) -> Moments:
        """Treat the D numbers of a frame as D / width rows of their own, as LeRobot does from 0.4 on: [width] each."""
        low, high, mean, square = (x.reshape(-1, width) for x in (self.low, self.high, self.mean, self.square))
        center = mean.mean(0)
        square = square.sum(0) + self.count * ((mean - center) ** 2).sum(0)
        return Moments(self.count * len(mean), low.min(0), high.max(0), center, square)


@dataclass
class DataReport:
    """What one file holds: findings, moments by episode and feature, and the episode ids recorded in it."""

    findings: Findings
    moments: dict[int, dict[str, Moments]] = field(default_factory=dict)
    ids: dict[int, int] = field(default_factory=dict)


def check_data_file(meta: Metadata, path: AnyPath, episodes: Sequence[Episode]) -> DataReport:
    """Check the file that is to hold the rows of `episodes`, in order."""
    report = DataReport(Findings(path))
    found, info = report.findings, meta.info
    wanted = info.numbers + info.texts
    try:
        with parquet.opened(path, "data") as file:
            names = file.schema_arrow.names
        columns = [key for key in wanted if key in names]
        table = parquet.read_table(path, columns, "data", texts=info.texts)
    except (DatasetError, MissingFile) as error:
        kind = "missing-file" if isinstance(error, MissingFile) else "unreadable-file"
        for episode in episodes:
            found.error(kind, str(error), episode=episode.index)
        return report
    for key, feature in info.features.items():
        if key not in names and feature["dtype"] not in ("video", "language"):
            severity(found, key, feature)("missing-column", "the column is missing", feature=key)
    for key in names:
        if key not in info.features:
            found.warning("extra-column", "the column is not among info.json's features", feature=key)
    rows = _episode_rows(table, episodes, found)
    fit = [key for key in info.numbers if key in columns and info.fits(key)]
    values = {key: _numbers(table[key], meta, key, rows, found) for key in fit}
    texts = {key: _texts(table[key], key, rows, found) for key in info.texts if key in columns}
    for episode in episodes:
        mine = rows[episode.index]
        if len(mine):
            numbers = {key: value[mine] for key, value in values.items() if value is not None}
            words = {key: (ids[mine], text) for key, (ids, text) in texts.items()}
            _check_episode(meta, episode, numbers, words, report)
    return report


def _episode_rows(table: pa.Table, episodes: Sequence[Episode], found: Findings) -> dict[int, np.ndarray]:
    """Return each episode's rows, and say where they are not those that the episode table promises."""
    lengths = [episode.length for episode in episodes]
    where = np.arange(len(table))
    try:
        index = parquet.numeric(table["episode_index"], (1,), "episode_index")
    except (DatasetError, KeyError):
        index = np.full(len(table), -1)  # reported with the other columns; rows then follow the lengths
        if sum(lengths) == len(table):
            index = np.repeat([episode.index for episode in episodes], lengths)
    rows = {episode.index: where[index == episode.index] for episode in episodes}
    complete = all(len(rows[episode.index]) == episode.length for episode in episodes)
    place = np.cumsum(np.isin(index, list(rows))) - 1  # of a row among those that belong here
    for episode in episodes:
        mine = rows[episode.index]
        if len(mine) != episode.length:
            message = f"the episode table says {episode.length} frames, but the file holds {len(mine)}"
            found.error("frame-count", message, episode=episode.index)
        elif complete and (place[mine[0]] != episode.data_row or place[mine[-1]] - place[mine[0]] + 1 != len(mine)):
            message = f"rows {mine[0]} to {mine[-1]} of the file hold it; expected rows from {episode.data_row} on"
            found.error("episode-order", message, episode=episode.index)
    for other in sorted(set(index.tolist()) - rows.keys()):
        count = int((index == other).sum())
        found.error("episode-index", f"{count} rows have this episode_index, which does not belong here", episode=other)
    return rows


def _numbers(
    column: pa.ChunkedArray, meta: Metadata, key: str, rows: dict[int, np.ndarray], found: Findings
) -> np.ndarray | None:
    """Return a numeric column as [R, D], or None when it cannot be laid out as declared."""
    feature = meta.info.features[key]
    shape = feature["shape"]
    try:
        values = parquet.numeric(column, shape, "the column")
    except DatasetError as error:
        _locate_bad_cells(column, math.prod(shape) if len(shape) == 1 else None, str(error), key, rows, found)
        return None
    dtype = np.dtype(feature["dtype"])
    try:
        parquet.as_declared(values, dtype, "the column")
    except DatasetError as error:
        severity(found, key)("dtype", str(error), feature=key)
        return None
    else:
        if values.dtype != dtype:
            severe = (values.dtype.kind in "f") != (dtype.kind in "f")
            message = f"holds {values.dtype}, info.json declares {dtype}"
            (severity(found, key) if severe else found.warning)("dtype", message, feature=key)
    return values.reshape(len(values), -1)


def _locate_bad_cells(
    column: pa.ChunkedArray, length: int | None, message: str, key: str, rows: dict[int, np.ndarray], found: Findings
) -> None:
    """Name the frames whose cell is empty or has another number of values; if none stands out, the whole column.

    So it is with features that no command reads.
    """
    array: Any = column.combine_chunks()
    bad = array.is_null().to_numpy(zero_copy_only=False)
    if any(is_list(array.type) for is_list in parquet.LISTS):
        sizes = np.array([-1 if cell is None else len(cell) for cell in array.to_pylist()])
        bad |= sizes != (length if length is not None else np.bincount(np.maximum(sizes, 0)).argmax())
        bad |= np.array([cell is not None and None in cell for cell in array.to_pylist()], bool)
    if 0 < array.null_count == len(array):
        message = "all cells are empty"
    located = False
    for episode, mine in rows.items() if key in COMMON else ():
        if bad[mine].any():
            located = True
            text = f"{message}; here are the frames with an empty or misshapen cell"
            severity(found, key)("shape", text, episode=episode, frames=runs(bad[mine]), feature=key)
    if not located:
        severity(found, key)("shape", message, feature=key)


def _texts(
    column: pa.ChunkedArray, key: str, rows: dict[int, np.ndarray], found: Findings
) -> tuple[np.ndarray, list[str]]:
    """Return a text column as (ids [R], texts); empty cells become "" and are reported."""
    missing = column.is_null().to_numpy()
    try:
        if len(missing) and missing.all():
            raise DatasetError("all cells are empty")
        if missing.any() and parquet.is_text(column.type):
            column = pa.chunked_array([pa.array([str(text or "") for text in column.to_pylist()], pa.string())])
        ids, texts = parquet.text(column, "the column")
    except DatasetError as error:
        severity(found, key)("dtype", str(error), feature=key)
        return np.zeros(len(column), np.int32), [NULL_TEXT]
    empty = np.array([not text.strip() for text in texts], bool)[ids]
    for episode, mine in rows.items():
        if missing[mine].any():
            frames = runs(missing[mine])
            severity(found, key)("empty-text", "has empty cells", episode=episode, frames=frames, feature=key)
        elif empty[mine].any():
            found.warning("empty-text", "the text is empty", episode=episode, frames=runs(empty[mine]), feature=key)
    return ids, texts


def _check_episode(
    meta: Metadata,
    episode: Episode,
    numbers: dict[str, np.ndarray],
    texts: dict[str, tuple[np.ndarray, list[str]]],
    report: DataReport,
) -> None:
    found, flags = report.findings, numbers.get("subtask_end")
    for key, values in list(numbers.items()):
        wrong: Any = not_numbers(values) if key in VECTORS else ~np.isfinite(values)
        if wrong.any():
            del numbers[key]  # whose other checks would only say it again
            if values is flags:
                continue
            names = feature_names(meta.info.features[key])
            dims = ", ".join(names[d] for d in np.flatnonzero(wrong.any(0)))
            frames = runs(wrong.any(axis=1))
            message = f"{'numbers beyond float32' if np.isfinite(values).all() else 'NaN or infinity'} in {dims}"
            severity(found, key)("not-finite", message, episode=episode.index, frames=frames, feature=key)
        elif key not in AUTOMATIC and not (values is flags and not_flags(values).any()):
            report.moments.setdefault(episode.index, {})[key] = Moments.of(values.astype(np.float64))
    _check_counters(meta, episode, numbers, found)
    _check_task(meta, episode, numbers, found)
    if "episode_id" in numbers:
        ids = numbers["episode_id"].ravel()
        report.ids[episode.index] = int(ids[0])
        if (ids != ids[0]).any():
            message = f"changes within the episode; its first frame has {ids[0]}"
            found.error("episode-id", message, episode=episode.index, frames=runs(ids != ids[0]), feature="episode_id")
    if flags is not None:
        _check_subtask_ends(episode, flags.ravel(), texts.get("subtask"), found)


def _check_counters(meta: Metadata, episode: Episode, numbers: dict[str, np.ndarray], found: Findings) -> None:
    """Compare frame_index, index and timestamp with what they count."""
    count = np.arange(len(next(iter(numbers.values()), ())))
    for key, expected in {"frame_index": count, "index": episode.start + count}.items():
        if key in numbers:
            values = numbers[key].ravel()
            wrong = np.not_equal(values, expected)
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                message = f"is {values[first]} where {expected[first]} was expected"
                if wrong.all() and not np.ptp(values - expected):  # as in the episodes behind one that was left out
                    message = f"is {values[0] - expected[0]:+g} beside what was expected"
                found.error(key.replace("_", "-"), message, episode=episode.index, frames=runs(wrong), feature=key)
    if "timestamp" in numbers:
        times, expected = numbers["timestamp"].ravel().astype(np.float64), count / meta.info.fps
        # Stored as float32, whose steps are coarser than the tolerance in long episodes.
        allowed = np.maximum(TIME_TOLERANCE, 2 * np.spacing(expected.astype(np.float32)))
        wrong = np.greater(np.abs(times - expected), allowed)
        if wrong.any():
            where: dict[str, Any] = {"episode": episode.index, "feature": "timestamp"}
            first, step = int(np.flatnonzero(wrong)[0]), times[-1] / max(1, len(times) - 1)
            if len(times) > 2 and step > 0 and (np.abs(times - count * step) <= allowed).all():
                found.error("fps", f"counts {1 / step:.4g} frames a second, the dataset {meta.info.fps:g}", **where)
                return
            message = f"is {times[first]:.4f} s where {expected[first]:.4f} s was expected at {meta.info.fps:g} fps"
            found.error("timestamp", message, frames=runs(wrong), **where)


def _check_task(meta: Metadata, episode: Episode, numbers: dict[str, np.ndarray], found: Findings) -> None:
    if meta.tasks is None or "task_index" not in numbers:
        return
    index = numbers["task_index"].ravel()
    where: dict[str, Any] = {"episode": episode.index, "feature": "task_index"}
    unknown = ~np.isin(index, list(meta.tasks))
    if unknown.any():
        listed = sorted(set(index[unknown].tolist()))
        found.error("task", f"{listed} is not in the task table", frames=runs(unknown), **where)
        return
    texts, listed = {meta.tasks[int(i)] for i in np.unique(index)}, set(episode.tasks)
    if listed and texts != listed and listed <= set(meta.tasks.values()):  # else it is said of the tables
        message = f"the rows' tasks are {sorted(texts)}, the episode table's {sorted(listed)}"
        (found.warning if texts <= listed else found.error)("task", message, **where)


def _check_subtask_ends(
    episode: Episode, flags: np.ndarray, subtask: tuple[np.ndarray, list[str]] | None, found: Findings
) -> None:
    """A subtask ends with flagged frames: a run of flags closes a segment, and does not reach into the next."""
    where: dict[str, Any] = {"episode": episode.index, "feature": "subtask_end"}
    strange = not_flags(flags)
    if strange.any():
        found.error("subtask-end", NO_FLAG, frames=runs(strange), **where)
        return
    flagged = flags.astype(bool)
    if not flagged.any():
        found.warning("subtask-end", "no frame is flagged: the end of a subtask cannot be learned from it", **where)
        return
    ids, texts = subtask or (np.zeros(len(flags), np.int32), ["subtask"])
    played = np.array([text.strip() != NULL_TEXT for text in texts], bool)[ids]
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    unmarked, early, outside = (np.zeros(len(flags), bool) for _ in range(3))
    for start, end in zip(starts, [*starts[1:], len(flags)]):
        segment = flagged[start:end]
        if not played[start]:
            outside[start:end] = segment
            continue
        unmarked[end - 1] = not segment[-1]
        early[start] = segment[0] and not segment.all() and start > 0
    if unmarked.any():
        found.warning("subtask-end", "the subtask ends here without a flag", frames=runs(unmarked), **where)
    if early.any():
        found.warning("subtask-end", "a new subtask starts with the flag set", frames=runs(early), **where)
    if outside.any():
        found.warning("subtask-end", 'flagged although the subtask is "null"', frames=runs(outside), **where)
