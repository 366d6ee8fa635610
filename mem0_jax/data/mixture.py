"""Several datasets as one, with weights.

Axes: F frames of all datasets together, dataset after dataset; N episodes likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mem0_jax.data.pictures import Episode, EpisodeDataset, FrameReader, open_frames


@dataclass(frozen=True)
class MixedEpisode:
    """An episode of one of the datasets; `index` and `start` count over all of them."""

    index: int
    start: int
    dataset: int
    episode: Episode
    name: str

    @property
    def length(self) -> int:
        """Its frames."""
        return self.episode.length


class Mixture:
    """Datasets that lanes play together, drawing a dataset for each episode to play.

    Args:
        datasets: anything `LaneSource` plays, with the same fps and vector dimensions.
        weights: of each dataset: the share of episodes (not frames) drawn from it, on any scale. Default: as many as it
            has, so that each is drawn in proportion to its size.

    Attributes:
        weights: of each dataset, summing to 1.
        group: number of the dataset of each episode, int64 [N].

    Columns are those that all datasets have; `subtask_end` is 0 in datasets without it.

    Raises:
        ValueError: naming the datasets that do not fit together.
    """

    def __init__(self, datasets: Sequence[EpisodeDataset], weights: Sequence[float] | None = None):
        if not datasets:
            raise ValueError("a mixture needs at least one dataset")
        self.datasets = list(datasets)
        self.root = " + ".join(str(dataset.root) for dataset in datasets)
        counts = [len(dataset.episodes) for dataset in datasets]
        chosen = np.asarray(counts if weights is None else weights, float)
        if chosen.shape != (len(datasets),) or not np.isfinite(chosen).all() or (chosen <= 0).any():
            raise ValueError(
                f"weights are {list(chosen.tolist())}; expected {len(datasets)} positive numbers, one a dataset"
            )
        self.weights = tuple((chosen / chosen.sum()).tolist())
        self.group = np.repeat(np.arange(len(datasets)), counts)
        self.fps = self._common("fps", [dataset.fps for dataset in datasets])
        shared = set.intersection(*(set(dataset.features) for dataset in datasets))
        self.features = {key: value for key, value in datasets[0].features.items() if key in shared}
        for dataset in datasets:
            if "subtask_end" in dataset.features:
                self.features["subtask_end"] = dataset.features["subtask_end"]
        self.episodes = self._list_episodes()

    def column(self, key: str) -> np.ndarray:
        """Return a numeric feature of every frame, [F, ...]."""
        columns = []
        for dataset in self.datasets:
            if key == "subtask_end" and key not in dataset.features:
                columns.append(np.zeros(sum(episode.length for episode in dataset.episodes), np.int32))
            else:
                columns.append(dataset.column(key))
        self._common(f"the shape of {key}", [column.shape[1:] for column in columns])
        return np.concatenate(columns)

    def texts(self, key: str) -> tuple[np.ndarray, list[str]]:
        """Return a string feature as (ids int32 [F], the distinct texts of all datasets)."""
        known: dict[str, int] = {}
        ids = []
        for dataset in self.datasets:
            own, texts = dataset.texts(key)
            ids.append(np.array([known.setdefault(text, len(known)) for text in texts], np.int32)[own])
        return np.concatenate(ids), list(known)

    def image_shape(self, camera: str) -> tuple[int, int]:
        """Return (height, width) of a camera's pictures, the same in all datasets."""
        shapes = [dataset.image_shape(camera) for dataset in self.datasets]
        return self._common(f"the picture size of {camera} (set camera_size to resize them)", shapes)

    def open_frames(self, camera: str) -> FrameReader:
        """Return a reader of the pictures, see `FrameReader`."""
        return _MixedFrames(self, camera)

    def _list_episodes(self) -> list[MixedEpisode]:
        episodes, first = [], 0
        for number, dataset in enumerate(self.datasets):
            for episode in dataset.episodes:
                name = f"{episode.name} of {dataset.root}"
                episodes.append(MixedEpisode(len(episodes), first + episode.start, number, episode, name))
            first += sum(episode.length for episode in dataset.episodes)
        return episodes

    def _common(self, what: str, values: Sequence[Any]) -> Any:
        if any(value != values[0] for value in values):
            listing = ", ".join(f"{value} in {dataset.root}" for value, dataset in zip(values, self.datasets))
            raise ValueError(f"datasets of a mixture must agree in {what}: {listing}")
        return values[0]


class _MixedFrames:
    """Hands each episode to its own dataset's reader."""

    def __init__(self, mixture: Mixture, camera: str):
        self._mixture, self._camera = mixture, camera
        self._readers: dict[int, FrameReader] = {}

    def read_frames(self, episode: MixedEpisode, frames: np.ndarray) -> np.ndarray:
        if episode.dataset not in self._readers:
            self._readers[episode.dataset] = open_frames(self._mixture.datasets[episode.dataset], self._camera)
        return self._readers[episode.dataset].read_frames(episode.episode, frames)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers = {}
