"""Writer of LeRobot v3.0 datasets (parquet + AV1 mp4 + metadata), without the lerobot library.

Axes: N frames of one episode, H height, W width.
Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mem0_jax.data import lerobot_stats
from mem0_jax.data.layout import JOINT_NAMES, MODEL_DIM
from mem0_jax.data.video_encode import VideoFile, lerobot_video_info

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
CHUNKS_SIZE, DATA_MB, VIDEO_MB = 1000, 100, 200
_AUTOMATIC = {"timestamp": "float32"} | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")


def mem0_features(
    height: int, width: int, *, camera: str = "observation.image.head_camera", global_task: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the features of a Mem-0 dataset: 16-D state and action, one camera, subtask text and end flag."""
    vector = {"dtype": "float32", "shape": [MODEL_DIM], "names": list(JOINT_NAMES)}
    features: dict[str, dict[str, Any]] = {
        "observation.state": vector,
        "action": dict(vector),
        camera: {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]},
        "subtask": {"dtype": "string", "shape": [1], "names": ["subtask_annotation"]},
        "subtask_end": {"dtype": "int32", "shape": [1], "names": ["subtask_end_flag"]},
        "episode_id": {"dtype": "int32", "shape": [1], "names": ["episode_id"]},
    }
    if global_task:
        features["global_task"] = {"dtype": "string", "shape": [1], "names": ["global_task"]}
    return features


class LeRobotWriter:
    """Record episodes into a new dataset, which appears at `root` only when it is complete.

    Everything is written into a hidden folder beside `root` and renamed by `finalize`. As a context manager it
    finalizes on success and removes the unfinished folder when the block raises.

    Args:
        root: folder of the dataset; must not exist.
        fps: frames per second, a positive integer.
        features: info.json's entries by key: `dtype` (NumPy name, "string" or "video"), `shape`, `names`.
            The five automatic features (timestamp, frame_index, episode_index, index, task_index) are added.
        robot_type: recorded in info.json.
        data_mb, video_mb: a parquet or mp4 file that has reached this size is followed by a new one.

    Raises:
        FileExistsError: `root` exists.
        ValueError: bad fps or features.
    """

    def __init__(
        self,
        root: str | Path,
        fps: int,
        features: Mapping[str, Mapping[str, Any]],
        robot_type: str,
        *,
        data_mb: float = DATA_MB,
        video_mb: float = VIDEO_MB,
    ):
        self.root, self.fps, self.robot_type = Path(root), fps, robot_type
        if self.root.exists():
            raise FileExistsError(f"{self.root} exists; choose another folder or remove it first")
        if not isinstance(fps, int) or fps < 1:
            raise ValueError(f"fps is {fps!r}; expected a positive integer")
        self.features = _checked_features(features)
        self._cameras = [key for key, value in self.features.items() if value["dtype"] == "video"]
        self._limits = {"data_mb": data_mb, "video_mb": video_mb}
        self._partial = self.root.parent / f".{self.root.name}.partial"
        if self._partial.exists():
            raise FileExistsError(f"{self._partial} is left from an unfinished recording; remove it first")
        self._partial.mkdir(parents=True)
        self._schema = pa.schema([(key, _arrow_type(value)) for key, value in self._columns().items()])
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._values: dict[str, list[np.ndarray]] = {}
        self._histograms: dict[str, list[tuple[np.ndarray, int]]] = {key: [] for key in self._cameras}
        self._data: pq.ParquetWriter | None = None
        self._data_file = -1
        self._videos: dict[str, VideoFile] = {}
        self._video_file = dict.fromkeys(self._cameras, -1)
        self._rows = 0

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finalize()
        else:
            self.discard()

    def add_episode(self, frames: Mapping[str, Any], task: str) -> None:
        """Append one episode.

        Args:
            frames: an array with N rows for every feature: numbers [N] or [N, *shape] (shape (1,) takes both [N] and
                [N, 1]), strings as a sequence of N texts, pictures uint8 [N, H, W, 3] RGB.
            task: the task's text.

        Raises:
            ValueError: naming the feature that is missing, unknown, of another shape or dtype, or not finite. Nothing
                of the episode has been written then.
        """
        columns, pictures, length = self._checked_frames(frames)
        if not task:
            raise ValueError(f"episode {len(self._episodes)}: task is empty")
        index = len(self._episodes)
        counter = np.arange(length)
        columns |= {
            "timestamp": (counter / self.fps).astype(np.float32),
            "frame_index": counter,
            "episode_index": np.full(length, index),
            "index": self._rows + counter,
            "task_index": np.full(length, self._tasks.setdefault(task, len(self._tasks))),
        }
        row: dict[str, Any] = {"episode_index": index, "tasks": [task], "length": length}
        row |= {"dataset_from_index": self._rows, "dataset_to_index": self._rows + length}
        row |= self._write_columns(columns)
        for camera, value in pictures.items():
            row |= self._write_video(camera, value)
            self._histograms[camera].append(lerobot_stats.picture_histogram(value))
        for key, value in columns.items():
            if self._columns()[key]["dtype"] != "string":
                self._values.setdefault(key, []).append(value)
        row["stats"] = {key: lerobot_stats.vector_stats(values[-1]) for key, values in self._values.items()}
        row["stats"] |= {key: lerobot_stats.picture_stats([value[-1]]) for key, value in self._histograms.items()}
        self._episodes.append(row)
        self._rows += length

    def finalize(self) -> Path:
        """Complete the metadata, move the dataset to `root` and return that path."""
        if not self._episodes:
            raise ValueError(f"{self.root}: no episode was added; a dataset needs at least one")
        self._close_files()
        meta = self._partial / "meta"
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        pq.write_table(self._episode_table(), self._partial / EPISODES_PATH, compression="snappy")
        pq.write_table(_task_table(self._tasks), meta / "tasks.parquet", compression="snappy")
        stats = {key: lerobot_stats.vector_stats(np.concatenate(value)) for key, value in self._values.items()}
        stats |= {key: lerobot_stats.picture_stats(value) for key, value in self._histograms.items()}
        for name, value in (("stats.json", stats), ("info.json", self._info())):
            (meta / name).write_text(json.dumps(value, indent=4, ensure_ascii=False), "utf-8")
        self._partial.rename(self.root)
        return self.root

    def discard(self) -> None:
        """Remove what has been written so far."""
        self._close_files()
        shutil.rmtree(self._partial, ignore_errors=True)

    # Checks

    def _columns(self) -> dict[str, Any]:
        """The features that are parquet columns."""
        return {key: value for key, value in self.features.items() if value["dtype"] != "video"}

    def _checked_frames(self, frames: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray], int]:
        where = f"episode {len(self._episodes)}"
        expected = self.features.keys() - _AUTOMATIC.keys()
        missing, unknown = sorted(expected - frames.keys()), sorted(frames.keys() - expected)
        if missing or unknown:
            raise ValueError(f"{where}: missing features {missing}, unknown features {unknown}")
        lengths = {key: len(frames[key]) for key in frames}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"{where}: features must all have the same, positive number of frames; got {lengths}")
        columns: dict[str, Any] = {}
        pictures: dict[str, np.ndarray] = {}
        for key in frames:
            feature, name = self.features[key], f"{where}, feature {key!r}"
            if feature["dtype"] == "string":
                columns[key] = _checked_texts(frames[key], name)
            elif feature["dtype"] == "video":
                pictures[key] = _checked_pictures(frames[key], tuple(feature["shape"]), name)
            else:
                columns[key] = _checked_numbers(frames[key], feature, name)
        return columns, pictures, next(iter(lengths.values()))

    # Files

    def _write_columns(self, columns: dict[str, Any]) -> dict[str, int]:
        path = self._partial / DATA_PATH.format(**_place(max(self._data_file, 0)))
        if self._data is not None and path.stat().st_size >= self._limits["data_mb"] * 2**20:
            self._data.close()
            self._data = None
        if self._data is None:
            self._data_file += 1
            path = self._partial / DATA_PATH.format(**_place(self._data_file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(path, self._schema, compression="snappy")
        arrays = [_arrow_array(columns[field.name], field.type) for field in self._schema]
        # One row group an episode, so that a reader can fetch a single episode.
        self._data.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        return {f"data/{key}": value for key, value in _place(self._data_file).items()}

    def _write_video(self, camera: str, pictures: np.ndarray) -> dict[str, Any]:
        video = self._videos.get(camera)
        if video is not None and video.bytes >= self._limits["video_mb"] * 2**20:
            video.close()
            video = None
        if video is None:
            self._video_file[camera] += 1
            place = _place(self._video_file[camera])
            path = self._partial / VIDEO_PATH.format(video_key=camera, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width, _ = self.features[camera]["shape"]
            video = self._videos[camera] = VideoFile(path, fps=self.fps, height=height, width=width)
        first = video.append(pictures)
        times = {"from_timestamp": first / self.fps, "to_timestamp": video.frames / self.fps}
        place = _place(self._video_file[camera])
        return {f"videos/{camera}/{key}": value for key, value in (place | times).items()}

    def _close_files(self) -> None:
        if self._data is not None:
            self._data.close()
        for video in self._videos.values():
            video.close()
        self._data, self._videos = None, {}

    # Metadata

    def _episode_table(self) -> pa.Table:
        rows = []
        for episode in self._episodes:
            row = {key: value for key, value in episode.items() if key != "stats"}
            for feature, stats in episode["stats"].items():
                row |= {f"stats/{feature}/{name}": stats[name] for name in lerobot_stats.NAMES}
            rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        return pa.Table.from_pylist(rows)

    def _info(self) -> dict[str, Any]:
        features = {}
        for key, value in self.features.items():
            features[key] = value
            if value["dtype"] == "video":
                height, width, _ = value["shape"]
                features[key] = value | {"info": lerobot_video_info(self.fps, height, width)}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._cameras else None,
            "features": features,
        }


def _place(file_number: int) -> dict[str, int]:
    return {"chunk_index": file_number // CHUNKS_SIZE, "file_index": file_number % CHUNKS_SIZE}


def _checked_features(features: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    checked = {}
    for key, value in features.items():
        if key in _AUTOMATIC or "/" in key or key.startswith("."):
            raise ValueError(f"feature {key!r}: the name is reserved or holds a slash or a leading dot")
        shape = [int(n) for n in value["shape"]]
        if value["dtype"] == "video":
            valid = len(shape) == 3 and shape[2] == 3 and shape[0] % 2 == shape[1] % 2 == 0 and min(shape) > 0
            expected = "(even height, even width, 3)"
        else:
            valid, expected = len(shape) == 1 and shape[0] > 0, "(n,)"
            if value["dtype"] != "string" and np.dtype(value["dtype"]).kind not in "biuf":
                raise ValueError(f"feature {key!r}: dtype {value['dtype']!r} is not a number type, string or video")
        if not valid:
            raise ValueError(f"feature {key!r}: shape {shape} does not fit {value['dtype']!r}; expected {expected}")
        checked[key] = dict(value) | {"shape": shape, "names": value.get("names")}
    automatic = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _AUTOMATIC.items()}
    return checked | automatic


def _checked_texts(value: Any, name: str) -> list[str]:
    if isinstance(value, str) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: expected a sequence of texts, one a frame")
    return [str(text) for text in value]


def _checked_pictures(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    pictures = np.asarray(value)
    if pictures.dtype != np.uint8 or pictures.shape[1:] != shape:
        raise ValueError(f"{name}: expected uint8 [N, {shape}], got {pictures.dtype} {list(pictures.shape)}")
    return pictures


def _checked_numbers(value: Any, feature: dict[str, Any], name: str) -> np.ndarray:
    numbers, shape = np.asarray(value), tuple(feature["shape"])
    if shape == (1,) and numbers.ndim == 2:
        numbers = numbers[:, 0] if numbers.shape[1] == 1 else numbers
    if numbers.shape[1:] != (() if shape == (1,) else shape):
        raise ValueError(f"{name}: expected [N, {shape[0]}], got {list(numbers.shape)}")
    if not np.can_cast(numbers.dtype, feature["dtype"], "same_kind") or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected finite {feature['dtype']}, got {numbers.dtype} (NaN or infinite included?)")
    return numbers.astype(feature["dtype"])


def _arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    if feature["dtype"] == "string":
        return pa.string()
    element = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    (size,) = feature["shape"]
    return element if size == 1 else pa.list_(pa.field("element", element), size)


def _arrow_array(value: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(value).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(value, kind)


def _task_table(tasks: dict[str, int]) -> pa.Table:
    """The task texts are the pandas index of this table, which is how lerobot looks a task up."""
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
