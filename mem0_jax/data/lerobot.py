"""Reader of LeRobot datasets, versions 2.0, 2.1 and 3.0, local or remote, without the lerobot library.

Axes: F frames of the whole dataset, in episode order. Low-dimensional columns are held in RAM (about 140 bytes a frame
for a 16-D state and action); pictures stay in their mp4 or parquet files.
Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mem0_jax.data import lerobot_meta, parquet
from mem0_jax.data.camera_shape import is_depth_map, picture_shape
from mem0_jax.data.files import AnyPath, DatasetError, MissingFile, RemotePath, check_fits, dataset_path
from mem0_jax.data.images import EpisodeImages
from mem0_jax.data.lerobot_features import COMMON, unfit, unreadable
from mem0_jax.data.lerobot_meta import VERSIONS, Episode, Statistics, VideoSpan
from mem0_jax.data.lerobot_tasks import read_tasks, task_texts
from mem0_jax.data.lerobot_values import Numbers, Texts
from mem0_jax.data.video import EpisodeVideo

__all__ = ["VERSIONS", "DatasetError", "Episode", "LeRobotDataset", "MissingFile", "VideoSpan"]


class LeRobotDataset:
    """A LeRobot dataset in a folder, on this machine or behind an fsspec address such as gs://bucket/dataset.

    Remote parquet files and videos are read piece by piece as they are needed. The common features are read at once,
    others when they are first asked for: whatever is wrong with one that nobody asks for does not matter.

    Attributes:
        root: the folder.
        version: "v2.0", "v2.1" or "v3.0".
        fps: frames per second.
        info: all of info.json.
        features: info.json's features by key.
        cameras: keys of the video and image features; depth maps are none.
        episodes: all episodes, ordered by index.
        num_frames: F.

    Raises:
        FileNotFoundError, DatasetError: naming the file, and the episode where there is one.
    """

    def __init__(self, root: str | Path | RemotePath):
        self.root: AnyPath = dataset_path(root)
        self._info = lerobot_meta.read_info(self.root)
        self.version, self.fps, self.info = self._info.version, self._info.fps, self._info.raw
        self.features, self.robot_type = self._info.features, self.info.get("robot_type")
        pictures = [*self._info.videos, *self._info.images]
        self.cameras = [key for key in self.features if key in pictures and not is_depth_map(self.features[key])]
        self.episodes = self._read_episodes()
        self.num_frames = sum(episode.length for episode in self.episodes)
        declared = self.info.get("total_episodes"), self.info.get("total_frames")
        if declared != (len(self.episodes), self.num_frames):
            raise DatasetError(
                f"{self.root}/meta/info.json declares {declared[0]} episodes and {declared[1]} frames, but the episode "
                f"table holds {len(self.episodes)} and {self.num_frames}; the recording may not have been finished. If "
                "it was, correct total_episodes and total_frames there"
            )
        known = self._info.numbers + self._info.texts
        fit = [key for key in COMMON if key in known and self._info.fits(key)]
        self._columns = self._load(fit)

    def __repr__(self) -> str:
        return f"LeRobotDataset({str(self.root)!r}, {len(self.episodes)} episodes, {self.num_frames} frames)"

    def column(self, key: str) -> np.ndarray:
        """Return a numeric feature of every frame: [F] for shape (1,), else [F, *shape], in the declared dtype."""
        value = self._column(key)
        if isinstance(value, tuple):
            raise DatasetError(f"{self.root}: feature {key!r} is text; read it with texts({key!r})")
        return value

    def texts(self, key: str) -> tuple[np.ndarray, list[str]]:
        """Return a string feature as (ids int32 [F], the distinct texts); `key` may also be "task"."""
        if key == "task":
            return task_texts(self.root, self._info, self.episodes, self.column("task_index"))
        value = self._column(key)
        if not isinstance(value, tuple):
            raise DatasetError(f"{self.root}: feature {key!r} is numeric; read it with column({key!r})")
        return value

    def tasks(self) -> dict[int, str]:
        """Return the task texts by task_index."""
        return dict(read_tasks(self.root, self._info))

    def statistics(self) -> Statistics:
        """Return the stored statistics of the whole dataset: feature -> min, max, mean, std, count, ... as float64.

        Those of pictures have shape [3, 1, 1] and are scaled to [0, 1]. In v2.1 they are joined from the episodes'.
        """
        return lerobot_meta.read_statistics(self.root, self._info)

    def episode_statistics(self) -> dict[int, Statistics]:
        """Return the stored statistics by episode index; v2.0 has none."""
        return dict(lerobot_meta.read_episode_statistics(self.root, self._info))

    def image_shape(self, camera: str) -> tuple[int, int]:
        """Return (height, width) of a camera's pictures."""
        if camera not in self.cameras:
            raise DatasetError(
                f"{self.root}: no video feature {camera!r} and no such image; cameras are {self.cameras}, depth maps "
                "are none"
            )
        try:
            return picture_shape(self.features[camera])
        except DatasetError as error:
            raise DatasetError(f"{self.root}: {camera}: {error}") from error

    def open_video(self, episode: Episode, camera: str) -> EpisodeVideo | EpisodeImages:
        """Open one episode's pictures of a camera: `read(start, count)` gives uint8 [N, H, W, 3], then `close()`.

        Frame k is the picture that LeRobot's own reader gives for it.
        """
        shape, name = self.image_shape(camera), f"{episode.name} ({camera})"
        if self.features[camera]["dtype"] == "image":
            return EpisodeImages(
                episode.data_path,
                key=camera,
                root=self.root,
                first_row=episode.data_row,
                length=episode.length,
                shape=shape,
                name=name,
            )
        if camera in episode.lost:
            raise DatasetError(episode.lost[camera])
        span = episode.videos[camera]
        return EpisodeVideo(
            span.path, fps=self.fps, first_frame=span.first_frame, length=episode.length, shape=shape, name=name
        )

    # Loading

    def _read_episodes(self) -> list[Episode]:
        rows = lerobot_meta.episode_rows(self.root, self._info)
        found = [lerobot_meta.make_episode(self.root, self._info, row, 0) for row in rows]
        found.sort(key=lambda episode: episode.index)
        for before, after in itertools.pairwise(found):
            if before.index == after.index:
                raise DatasetError(f"{self.root}: the episode table names {after.name} twice")
        start, rows_of_file = 0, {}
        episodes = []
        for episode in found:
            row = rows_of_file.get(episode.data_path, 0)
            episodes.append(replace(episode, start=start, data_row=row))
            start += episode.length
            rows_of_file[episode.data_path] = row + episode.length
        return episodes

    def _column(self, key: str) -> Any:
        if key not in self._columns:
            self._check_fit(key)
            known = self._info.numbers + self._info.texts
            if key not in known:
                problem = unreadable(self.features[key]) if key in self.features else ""
                why = f" ({problem})" if problem else ""
                raise DatasetError(f"{self.root}: no low-dimensional feature {key!r}{why}; there are {sorted(known)}")
            self._columns |= self._load([key])
        value = self._columns[key]
        if isinstance(value, DatasetError):
            raise value
        return value

    def _check_fit(self, *keys: str) -> None:
        for key in keys:
            if key in COMMON and key in self.features and (problem := unfit(key, self.features[key])):
                raise DatasetError(f"{self.root}: {key}: {problem}")

    def _load(self, keys: Sequence[str]) -> dict[str, Any]:
        """Read features from all files: numbers, (ids, texts), or the error that they end in."""
        texts = [key for key in keys if key in self._info.texts]
        numbers = {key: self.features[key] for key in keys if key not in texts}
        size = sum(Numbers.frame_bytes(feature) for feature in numbers.values())
        check_fits(self.num_frames * size, f"{self.root}: the numbers of {self.num_frames} frames")
        columns = {key: Numbers(feature, self.num_frames) for key, feature in numbers.items()}
        columns |= {key: Texts(self.num_frames) for key in texts}
        failed: dict[str, DatasetError] = {}
        for path, episodes in self._by_file():
            table = self._read_data_file(path, episodes, keys, texts)
            rows = np.concatenate([np.arange(e.start, e.start + e.length) for e in episodes])
            for key in columns.keys() - failed.keys():
                try:
                    if key not in table.column_names:
                        raise DatasetError(f"data of {_span_name(episodes)}: {path} lacks the columns {[key]}")
                    columns[key].put(rows, table[key], f"{path}: feature {key!r}")
                except DatasetError as error:
                    failed[key] = error
        return {key: failed.get(key) or column.result() for key, column in columns.items()}

    def _by_file(self) -> Iterable[tuple[AnyPath, list[Episode]]]:
        files: dict[AnyPath, list[Episode]] = {}
        for episode in self.episodes:
            files.setdefault(episode.data_path, []).append(episode)
        return files.items()

    def _read_data_file(
        self, path: AnyPath, episodes: Sequence[Episode], keys: Sequence[str], texts: Sequence[str]
    ) -> pa.Table:
        """Read the rows of `episodes` (in order) from one file and check that they are all there."""
        self._check_fit("episode_index", "frame_index")
        what = f"data of {_span_name(episodes)}"
        table = parquet.read_table(path, ("episode_index", "frame_index"), what, optional=keys, texts=texts)
        found_episode = parquet.numeric(table["episode_index"], (1,), f"{path}: episode_index")
        lengths = [episode.length for episode in episodes]
        expected_episode = np.repeat([e.index for e in episodes], lengths) if sum(lengths) == len(table) else None
        if expected_episode is None or not np.array_equal(found_episode, expected_episode):
            for episode in episodes:
                found = int((found_episode == episode.index).sum())
                if found != episode.length:
                    raise DatasetError(
                        f"{episode.name}: the episode table says {episode.length} frames, but {path} holds {found}"
                    )
            raise DatasetError(f"{path}: rows are not those of {_span_name(episodes)} in order")
        expected_frame = np.concatenate([np.arange(length) for length in lengths])
        wrong = np.flatnonzero(parquet.numeric(table["frame_index"], (1,), f"{path}: frame_index") != expected_frame)
        if wrong.size:
            raise DatasetError(
                f"episode {expected_episode[wrong[0]]}: frame_index in {path} does not count 0, 1, 2, ... at its row "
                f"{expected_frame[wrong[0]]}"
            )
        return table


def _span_name(episodes: Sequence[Episode]) -> str:
    first, last = episodes[0].index, episodes[-1].index
    return f"episode {first}" if first == last else f"episodes {first} to {last}"
