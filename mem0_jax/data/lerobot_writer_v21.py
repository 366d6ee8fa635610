"""Writer of LeRobot v2.1 datasets: one parquet file and one mp4 a camera for every episode, metadata as JSON lines.

Axes: as in `lerobot_writer`. Version 2.1 is what lerobot 0.1 to 0.3, and with them Mem-0's reference and openpi, read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mem0_jax.data.lerobot_columns import arrow_table
from mem0_jax.data.lerobot_writer import CHUNKS_SIZE, LeRobotWriter
from mem0_jax.data.video_join import EncodedVideo

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_STATS = ("min", "max", "mean", "std", "count")  # version 2.1 knows no quantiles
_ENCODER = ("video.g", "video.crf", "video.preset")  # nor how a video was encoded


class LeRobotWriterV21(LeRobotWriter):
    """`LeRobotWriter` for version 2.1: same arguments (sizes in MB have no meaning here), same guarantees."""

    def _write_columns(self, index: int, columns: dict[str, Any]) -> dict[str, int]:
        path = self._partial / DATA_PATH.format(**_place(index))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(arrow_table(columns, self._schema), path, compression="snappy")
        return {}

    def _write_video(self, index: int, camera: str, pictures: np.ndarray | EncodedVideo) -> dict[str, Any]:
        name = VIDEO_PATH.format(video_key=camera, **_place(index))
        if isinstance(pictures, EncodedVideo):
            (self._partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pictures.path, self._partial / name)
        else:
            video = self._open_video(name, camera, pictures)
            try:
                video.append(pictures)  # pyright: ignore[reportArgumentType]
            finally:
                video.close()
        return {}

    def _write_metadata(self, meta: Path) -> None:
        keys = ("episode_index", "tasks", "length")
        _write_lines(meta / "episodes.jsonl", ({key: row[key] for key in keys} for row in self._episodes))
        tasks = ({"task_index": index, "task": task} for task, index in self._tasks.items())
        _write_lines(meta / "tasks.jsonl", tasks)
        stats = ({"episode_index": row["episode_index"], "stats": _without_quantiles(row)} for row in self._episodes)
        _write_lines(meta / "episodes_stats.jsonl", stats)

    def _info(self) -> dict[str, Any]:
        info, episodes = super()._info(), len(self._episodes)
        for camera in self._cameras:
            video = info["features"][camera]["info"]
            info["features"][camera]["info"] = {key: value for key, value in video.items() if key not in _ENCODER}
        sizes = {"total_videos": episodes * len(self._cameras), "total_chunks": -(-episodes // CHUNKS_SIZE)}
        paths = {"data_path": DATA_PATH, "video_path": VIDEO_PATH if self._cameras else None}
        info = info | {"codebase_version": "v2.1"} | sizes | paths
        return {key: value for key, value in info.items() if not key.endswith("_files_size_in_mb")}


def _place(episode: int) -> dict[str, int]:
    return {"episode_chunk": episode // CHUNKS_SIZE, "episode_index": episode}


def _without_quantiles(row: Mapping[str, Any]) -> dict[str, Any]:
    return {feature: {name: stats[name] for name in _STATS} for feature, stats in row["stats"].items()}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
