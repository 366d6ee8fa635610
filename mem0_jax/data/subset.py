"""Some episodes of a dataset as a dataset of its own, and the split into training and held-out episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mem0_jax.data.files import DatasetError
from mem0_jax.data.pictures import EpisodeDataset, FrameReader, open_frames


@dataclass(frozen=True)
class SubsetEpisode:
    """An episode of the subset; `index` is the dataset's own, `start` counts the subset's rows."""

    index: int
    start: int
    whole: Any

    @property
    def length(self) -> int:
        """Its frames."""
        return self.whole.length

    @property
    def name(self) -> str:
        """How errors call it."""
        return self.whole.name


class Subset:
    """The episodes of `dataset` at `positions` of its list, in ascending order; lanes and mixtures play it."""

    def __init__(self, dataset: EpisodeDataset, positions: Sequence[int]):
        self.dataset, self.root, self.fps, self.features = dataset, dataset.root, dataset.fps, dataset.features
        chosen = [dataset.episodes[i] for i in sorted(positions)]
        starts = np.cumsum([0, *(episode.length for episode in chosen)])
        self.episodes = [SubsetEpisode(e.index, int(start), e) for e, start in zip(chosen, starts)]
        ranges = [np.arange(e.start, e.start + e.length) for e in chosen]
        self._rows = np.concatenate(ranges) if ranges else np.empty(0, np.int64)

    def column(self, key: str) -> np.ndarray:
        """Return a numeric feature of the subset's frames."""
        return self.dataset.column(key)[self._rows]

    def texts(self, key: str) -> tuple[np.ndarray, list[str]]:
        """Return a string feature as (ids int32, the distinct texts of the whole dataset)."""
        ids, texts = self.dataset.texts(key)
        return ids[self._rows], texts

    def image_shape(self, camera: str) -> tuple[int, int]:
        """Return (height, width) of a camera's pictures."""
        return self.dataset.image_shape(camera)

    def open_frames(self, camera: str) -> FrameReader:
        """Return a reader of the pictures, see `FrameReader`."""
        return _SubsetFrames(open_frames(self.dataset, camera))


class _SubsetFrames:
    """Asks the dataset's own reader for the dataset's own episode."""

    def __init__(self, reader: FrameReader):
        self._reader = reader

    def read_frames(self, episode: SubsetEpisode, frames: np.ndarray) -> np.ndarray:
        return self._reader.read_frames(episode.whole, frames)

    def close(self) -> None:
        self._reader.close()


def hold_out(dataset: EpisodeDataset, count: int, seed: int) -> tuple[EpisodeDataset, Subset]:
    """Split a dataset into episodes to train on and `count` episodes drawn with `seed` to validate on.

    Raises:
        DatasetError: the dataset has no more than `count` episodes.
    """
    total = len(dataset.episodes)
    if not 0 <= count < total:
        raise DatasetError(f"{dataset.root}: cannot hold out {count} of {total} episodes; at least one must be left")
    order = np.random.default_rng(seed).permutation(total).tolist()
    training = dataset if count == 0 else Subset(dataset, order[count:])
    return training, Subset(dataset, order[:count])
