"""Reader of LeRobot datasets, versions 2.1 and 3.0, without the lerobot library.

Axes: F frames of the whole dataset, in episode order. Low-dimensional columns are held in RAM (about 140 bytes a frame
for a 16-D state and action); pictures stay in their mp4 files.
Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mem0_jax.data.video import EpisodeVideo

VERSIONS = ("v2.1", "v3.0")
_TEMPLATE_FIELDS = {"episode_chunk", "episode_index", "chunk_index", "file_index", "video_key"}


class DatasetError(ValueError):
    """A dataset folder that is damaged, incomplete or of an unknown kind."""


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's pictures lie: `path` (mp4) and the number of its first frame in that file."""

    path: Path
    first_frame: int


@dataclass(frozen=True)
class Episode:
    """One episode: its frames are rows `start` to `start + length - 1` of every column."""

    index: int
    start: int
    length: int
    tasks: tuple[str, ...]
    data_path: Path
    videos: dict[str, VideoSpan]

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"episode {self.index}"


class LeRobotDataset:
    """A LeRobot dataset on disk.

    Attributes:
        version: "v2.1" or "v3.0".
        fps: frames per second.
        features: info.json's features by key.
        cameras: keys of the video features.
        episodes: all episodes, ordered by index.
        num_frames: F.

    Raises:
        FileNotFoundError, DatasetError: naming the file, and the episode where there is one.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        info = self._read_json("meta/info.json")
        self.version = info.get("codebase_version")
        if self.version not in VERSIONS:
            raise DatasetError(
                f"{self.root}/meta/info.json: codebase_version {self.version!r} is unknown; this reader knows "
                f"{' and '.join(VERSIONS)}. Convert the dataset with lerobot's conversion scripts"
            )
        try:
            self.fps, self.features = float(info["fps"]), dict(info["features"])
            self.robot_type = info.get("robot_type")
            self._data_template = _checked_template(info["data_path"])
            self._video_template = _checked_template(info["video_path"]) if info.get("video_path") else ""
            self._chunks_size = int(info.get("chunks_size", 1000))
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{self.root}/meta/info.json: missing or malformed field {error}") from error
        if not self.fps > 0 or self._chunks_size < 1:
            raise DatasetError(f"{self.root}/meta/info.json: fps and chunks_size must be positive")
        self.cameras = [key for key, value in self.features.items() if value["dtype"] == "video"]
        self.episodes = self._episodes_v21() if self.version == "v2.1" else self._episodes_v30()
        self.num_frames = sum(episode.length for episode in self.episodes)
        declared = info.get("total_episodes"), info.get("total_frames")
        if declared != (len(self.episodes), self.num_frames):
            raise DatasetError(
                f"{self.root}/meta/info.json declares {declared[0]} episodes and {declared[1]} frames, but the episode "
                f"table holds {len(self.episodes)} and {self.num_frames}; the recording may not have been finished"
            )
        self._columns = self._load_columns()

    def __repr__(self) -> str:
        return f"LeRobotDataset({str(self.root)!r}, {len(self.episodes)} episodes, {self.num_frames} frames)"

    def column(self, key: str) -> np.ndarray:
        """Return a numeric feature of every frame: [F] for shape (1,), else [F, *shape], in the file's dtype."""
        value = self._column(key)
        if isinstance(value, tuple):
            raise DatasetError(f"{self.root}: feature {key!r} is text; read it with texts({key!r})")
        return value

    def texts(self, key: str) -> tuple[np.ndarray, list[str]]:
        """Return a string feature as (ids int32 [F], the distinct texts); `key` may also be "task"."""
        if key == "task":
            table = self.tasks()
            index = self.column("task_index")
            unknown = sorted(set(index.tolist()) - table.keys())
            if unknown:
                raise DatasetError(f"{self.root}: task_index {unknown} has no entry in the task table")
            order = sorted(table)
            return np.searchsorted(order, index).astype(np.int32), [table[i] for i in order]
        value = self._column(key)
        if not isinstance(value, tuple):
            raise DatasetError(f"{self.root}: feature {key!r} is numeric; read it with column({key!r})")
        return value

    def tasks(self) -> dict[int, str]:
        """Return the task texts by task_index."""
        if self.version == "v2.1":
            return {int(row["task_index"]): str(row["task"]) for row in self._read_json_lines("meta/tasks.jsonl")}
        table = _read_parquet(self.root / "meta/tasks.parquet", None, "task table")
        # Writers disagree on the name of the text's column: it was a pandas index.
        text = next((name for name in table.column_names if name != "task_index"), None)
        if text is None or "task_index" not in table.column_names:
            raise DatasetError(f"{self.root}/meta/tasks.parquet: expected the columns task_index and task")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist())))

    def image_shape(self, camera: str) -> tuple[int, int]:
        """Return (height, width) of a camera's pictures."""
        if camera not in self.cameras:
            raise DatasetError(f"{self.root}: no video feature {camera!r}; cameras are {self.cameras}")
        height, width, channels = self.features[camera]["shape"]
        if channels != 3:
            raise DatasetError(f"{self.root}: {camera} has {channels} channels; only RGB video can be read")
        return int(height), int(width)

    def open_video(self, episode: Episode, camera: str) -> EpisodeVideo:
        """Open the decoder of one episode's pictures."""
        shape = self.image_shape(camera)
        span = episode.videos[camera]
        return EpisodeVideo(
            span.path,
            fps=self.fps,
            first_frame=span.first_frame,
            length=episode.length,
            shape=shape,
            name=f"{episode.name} ({camera})",
        )

    # Metadata

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.root / name
        try:
            value = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is missing; is {self.root} the root of a LeRobot dataset?") from error
        except ValueError as error:
            raise DatasetError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise DatasetError(f"{path}: expected a JSON object")
        return value

    def _read_json_lines(self, name: str) -> list[dict[str, Any]]:
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; a v2.1 dataset needs it")
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        except ValueError as error:
            raise DatasetError(f"{path} is not valid JSON lines: {error}") from error

    def _path(self, template: str, **fields: Any) -> Path:
        try:
            path = self.root / template.format(**fields)
        except KeyError as error:
            raise DatasetError(
                f"{self.root}/meta/info.json: {template!r} uses {error}, which {self.version} lacks"
            ) from error
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DatasetError(f"{self.root}/meta/info.json: path template {template!r} leads outside the dataset")
        return path

    def _episodes_v21(self) -> list[Episode]:
        rows = sorted(self._read_json_lines("meta/episodes.jsonl"), key=lambda row: row["episode_index"])
        episodes, start = [], 0
        for row in rows:
            index, length = int(row["episode_index"]), int(row["length"])
            place = {"episode_chunk": index // self._chunks_size, "episode_index": index}
            videos = {
                key: VideoSpan(self._path(self._video_template, video_key=key, **place), 0) for key in self.cameras
            }
            data = self._path(self._data_template, **place)
            episodes.append(Episode(index, start, length, tuple(row.get("tasks", ())), data, videos))
            start += length
        return self._checked(episodes)

    def _episodes_v30(self) -> list[Episode]:
        files = sorted((self.root / "meta/episodes").glob("chunk-*/file-*.parquet"))
        if not files:
            raise FileNotFoundError(f"{self.root}/meta/episodes holds no parquet file; a v3.0 dataset needs it")
        keys = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
        for camera in self.cameras:
            keys += [f"videos/{camera}/{field}" for field in ("chunk_index", "file_index", "from_timestamp")]
        rows = [row for file in files for row in _read_parquet(file, keys, "episode table").to_pylist()]
        episodes, start = [], 0
        for row in sorted(rows, key=lambda row: row["episode_index"]):
            place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            videos = {camera: self._span_v30(row, camera) for camera in self.cameras}
            data = self._path(self._data_template, **place)
            episode = Episode(row["episode_index"], start, row["length"], tuple(row["tasks"] or ()), data, videos)
            episodes.append(episode)
            start += episode.length
        return self._checked(episodes)

    def _span_v30(self, row: dict[str, Any], camera: str) -> VideoSpan:
        chunk, file, seconds = (
            row[f"videos/{camera}/{field}"] for field in ("chunk_index", "file_index", "from_timestamp")
        )
        if chunk is None or file is None or seconds is None:
            raise DatasetError(f"episode {row['episode_index']}: no video of {camera}; the recording was not finished")
        path = self._path(self._video_template, video_key=camera, chunk_index=chunk, file_index=file)
        # from_timestamp is a running sum of floats, a hair below or above the frame's time: floor would be wrong.
        return VideoSpan(path, round(seconds * self.fps))

    def _checked(self, episodes: list[Episode]) -> list[Episode]:
        indices = [episode.index for episode in episodes]
        if len(set(indices)) != len(indices):
            raise DatasetError(f"{self.root}: the episode table names an episode twice")
        for episode in episodes:
            if episode.length < 1:
                raise DatasetError(f"{self.root}: {episode.name} has length {episode.length}; expected at least 1")
        return episodes

    # Columns

    def _column(self, key: str) -> Any:
        if key not in self._columns:
            raise DatasetError(f"{self.root}: no low-dimensional feature {key!r}; there are {sorted(self._columns)}")
        return self._columns[key]

    def _load_columns(self) -> dict[str, Any]:
        keys = [key for key, value in self.features.items() if _is_low_dimensional(value)]
        files: dict[Path, list[Episode]] = {}
        for episode in self.episodes:
            files.setdefault(episode.data_path, []).append(episode)
        tables = [self._read_data_file(path, episodes, keys) for path, episodes in files.items()]
        columns: dict[str, Any] = {}
        for key in keys:
            chunked = pa.chunked_array([chunk for table in tables for chunk in table[key].chunks])
            where = f"{self.root}: feature {key!r}"
            if self.features[key]["dtype"] == "string":
                columns[key] = _text_column(chunked, where)
            else:
                columns[key] = _numeric_column(chunked, tuple(self.features[key]["shape"]), where)
        return columns

    def _read_data_file(self, path: Path, episodes: list[Episode], keys: list[str]) -> pa.Table:
        """Read the rows of `episodes` (in order) from one file and check that they are all there."""
        table = _read_parquet(path, keys, f"data of {_span_name(episodes)}")
        found_episode = table["episode_index"].to_numpy()
        expected_episode = np.repeat([e.index for e in episodes], [e.length for e in episodes])
        if not np.array_equal(found_episode, expected_episode):
            for episode in episodes:
                found = int((found_episode == episode.index).sum())
                if found != episode.length:
                    raise DatasetError(
                        f"{episode.name}: the episode table says {episode.length} frames, but {path} holds {found}"
                    )
            raise DatasetError(f"{path}: rows are not those of {_span_name(episodes)} in order")
        expected_frame = np.concatenate([np.arange(e.length) for e in episodes])
        wrong = np.flatnonzero(table["frame_index"].to_numpy() != expected_frame)
        if wrong.size:
            raise DatasetError(
                f"episode {expected_episode[wrong[0]]}: frame_index in {path} does not count 0, 1, 2, ... at its row "
                f"{expected_frame[wrong[0]]}"
            )
        return table


def _checked_template(template: str) -> str:
    """Let through only plain integer and name fields: a format string from a file could otherwise ask for gigabytes."""
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is None:
            continue
        if field not in _TEMPLATE_FIELDS or conversion or not re.fullmatch(r"(0?\d{1,2}d)?", spec or ""):
            raise DatasetError(f"info.json: path template {template!r} has the unexpected field {field!r}:{spec!r}")
    return template


def _is_low_dimensional(feature: dict[str, Any]) -> bool:
    if feature["dtype"] == "string":
        return True
    try:
        return np.dtype(feature["dtype"]).kind in "biuf"
    except TypeError:
        return False  # video, image, language


def _span_name(episodes: list[Episode]) -> str:
    first, last = episodes[0].index, episodes[-1].index
    return f"episode {first}" if first == last else f"episodes {first} to {last}"


def _read_parquet(path: Path, columns: Iterable[str] | None, what: str) -> pa.Table:
    if not path.is_file():
        raise FileNotFoundError(f"{what}: {path} is missing")
    try:
        file = pq.ParquetFile(path)
        wanted = None if columns is None else list(columns)
        missing = [] if wanted is None else [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            raise DatasetError(f"{what}: {path} lacks the columns {missing}")
        return file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{what}: {path} is not a readable parquet file ({error}); it may be unfinished") from error


def _numeric_column(chunked: pa.ChunkedArray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Lay a scalar, list or fixed-size-list column out as [F] or [F, *shape]."""
    rows, flat = len(chunked), chunked.combine_chunks()
    nulls = flat.null_count
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type) or pa.types.is_large_list(flat.type):
        flat = flat.flatten()
        nulls += flat.null_count
    values = flat.to_numpy(zero_copy_only=False)
    if nulls:
        raise DatasetError(f"{where} has {nulls} empty cells")
    if values.size != rows * int(np.prod(shape)):
        raise DatasetError(f"{where} holds {values.size} numbers in {rows} frames; info.json declares shape {shape}")
    return values if shape == (1,) else values.reshape(rows, *shape)


def _text_column(chunked: pa.ChunkedArray, where: str) -> tuple[np.ndarray, list[str]]:
    if chunked.null_count:
        raise DatasetError(f"{where} has {chunked.null_count} empty cells")
    encoded = chunked.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32), encoded.dictionary.to_pylist()
