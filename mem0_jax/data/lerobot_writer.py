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
from mem0_jax.data.lerobot_columns import arrow_schema, arrow_table, checked_features, checked_frames
from mem0_jax.data.robot import RMBENCH
from mem0_jax.data.video_encode import VideoFile, lerobot_video_info
from mem0_jax.data.video_join import EncodedVideo, JoinedVideo

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
CHUNKS_SIZE, DATA_MB, VIDEO_MB = 1000, 100, 200


def staged_features(
    height: int, width: int, *, camera: str = "observation.image.head_camera"
) -> dict[str, dict[str, Any]]:
    """Return the features of a dataset of RMBench's robot whose episodes have subtasks: their texts and ends."""
    names = list(RMBENCH.state.names)
    vector = {"dtype": "float32", "shape": [len(names)], "names": names}
    return {
        "observation.state": vector,
        "action": dict(vector),
        camera: {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]},
        "subtask": {"dtype": "string", "shape": [1], "names": ["subtask_annotation"]},
        "subtask_end": {"dtype": "int32", "shape": [1], "names": ["subtask_end_flag"]},
        "episode_id": {"dtype": "int32", "shape": [1], "names": ["episode_id"]},
    }


class LeRobotWriter:
    """Record episodes into a new v3.0 dataset, which appears at `root` only when it is complete.

    Everything is written into a hidden folder beside `root` and renamed by `finalize`. As a context manager it
    finalizes on success and removes the unfinished folder when the block raises.

    Args:
        root: folder of the dataset; must not exist.
        fps: frames per second, a positive integer.
        features: info.json's entries by key: `dtype` (NumPy name, "string" or "video"), `shape`, `names`.
            The five automatic features (timestamp, frame_index, episode_index, index, task_index) are added.
        robot_type: recorded in info.json; None if unknown.
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
        robot_type: str | None,
        *,
        data_mb: float = DATA_MB,
        video_mb: float = VIDEO_MB,
    ):
        self.root, self.fps, self.robot_type = Path(root), fps, robot_type
        if self.root.exists():
            raise FileExistsError(f"{self.root} exists; choose another folder or remove it first")
        if not isinstance(fps, int) or fps < 1:
            raise ValueError(f"fps is {fps!r}; expected a positive integer")
        self.features = checked_features(features)
        self._cameras = [key for key, value in self.features.items() if value["dtype"] == "video"]
        self._limits = {"data_mb": data_mb, "video_mb": video_mb}
        # Absolute: of a bare name pyarrow takes what comes before a colon for a scheme.
        self._partial = (self.root.parent / f".{self.root.name}.partial").absolute()
        if self._partial.exists():
            raise FileExistsError(f"{self._partial} is left from an unfinished recording; remove it first")
        self._partial.mkdir(parents=True)
        self._schema = arrow_schema(self.features)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._values: dict[str, list[np.ndarray]] = {}
        self._histograms: dict[str, list[tuple[np.ndarray, int]]] = {key: [] for key in self._cameras}
        self._data: pq.ParquetWriter | None = None
        self._data_file = -1
        self._videos: dict[str, VideoFile | JoinedVideo] = {}
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
                [N, 1]), strings as a sequence of N texts, pictures uint8 [N, H, W, 3] RGB or an `EncodedVideo` of
                N pictures, whose packets are copied.
            task: the task's text.

        Raises:
            ValueError: naming the feature that is missing, unknown, of another shape or dtype, or not finite. Nothing
                of the episode has been written then.
        """
        index = len(self._episodes)
        columns, pictures, length = checked_frames(frames, self.features, self.fps, f"episode {index}")
        if not task:
            raise ValueError(f"episode {index}: task is empty")
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
        row |= self._write_columns(index, columns)
        for camera, value in pictures.items():
            row |= self._write_video(index, camera, value)
            counted = isinstance(value, EncodedVideo)
            histogram = (value.histogram, value.sampled) if counted else lerobot_stats.picture_histogram(value)
            self._histograms[camera].append(histogram)
        for key, value in columns.items():
            if self.features[key]["dtype"] != "string":
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
        meta.mkdir()
        self._write_metadata(meta)
        (meta / "info.json").write_text(json.dumps(self._info(), indent=4, ensure_ascii=False), "utf-8")
        self._partial.rename(self.root)
        return self.root

    def discard(self) -> None:
        """Remove what has been written so far."""
        self._close_files()
        shutil.rmtree(self._partial, ignore_errors=True)

    # Files

    def _write_columns(self, index: int, columns: dict[str, Any]) -> dict[str, int]:
        """Append to the current parquet file, or the next one if that is full; where the episode's rows are."""
        path = self._partial / DATA_PATH.format(**_place(max(self._data_file, 0)))
        if self._data is not None and path.stat().st_size >= self._limits["data_mb"] * 2**20:
            self._data.close()
            self._data = None
        if self._data is None:
            self._data_file += 1
            path = self._partial / DATA_PATH.format(**_place(self._data_file))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(path, self._schema, compression="snappy")
        # One row group an episode, so that a reader can fetch a single episode.
        self._data.write_table(arrow_table(columns, self._schema))
        return {f"data/{key}": value for key, value in _place(self._data_file).items()}

    def _write_video(self, index: int, camera: str, pictures: np.ndarray | EncodedVideo) -> dict[str, Any]:
        """Append to the camera's current mp4, or the next one if that is full; where the episode's pictures are."""
        kind = JoinedVideo if isinstance(pictures, EncodedVideo) else VideoFile
        video = self._videos.get(camera)
        if video is not None and (video.bytes >= self._limits["video_mb"] * 2**20 or not isinstance(video, kind)):
            video.close()
            video = None
        if video is None:
            self._video_file[camera] += 1
            place = _place(self._video_file[camera])
            video = self._open_video(VIDEO_PATH.format(video_key=camera, **place), camera, pictures)
            self._videos[camera] = video
        first = video.append(pictures)  # pyright: ignore[reportArgumentType]
        times = {"from_timestamp": first / self.fps, "to_timestamp": video.frames / self.fps}
        place = _place(self._video_file[camera])
        return {f"videos/{camera}/{key}": value for key, value in (place | times).items()}

    def _open_video(self, name: str, camera: str, pictures: np.ndarray | EncodedVideo) -> VideoFile | JoinedVideo:
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(pictures, EncodedVideo):
            return JoinedVideo(path)
        height, width, _ = self.features[camera]["shape"]
        return VideoFile(path, fps=self.fps, height=height, width=width)

    def _close_files(self) -> None:
        if self._data is not None:
            self._data.close()
        for video in self._videos.values():
            video.close()
        self._data, self._videos = None, {}

    # Metadata

    def _write_metadata(self, meta: Path) -> None:
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        pq.write_table(self._episode_table(), self._partial / EPISODES_PATH, compression="snappy")
        pq.write_table(_task_table(self._tasks), meta / "tasks.parquet", compression="snappy")
        stats = {key: lerobot_stats.vector_stats(np.concatenate(value)) for key, value in self._values.items()}
        stats |= {key: lerobot_stats.picture_stats(value) for key, value in self._histograms.items()}
        (meta / "stats.json").write_text(json.dumps(stats, indent=4, ensure_ascii=False), "utf-8")

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


def _task_table(tasks: dict[str, int]) -> pa.Table:
    """The task texts are the pandas index of this table, which is how lerobot looks a task up."""
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
