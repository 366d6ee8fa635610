"""Pictures of a dataset by episode and frame: the seam between storage and lanes, and a store over it.

Axes: n frames asked for, T frames of a window, H, W picture height and width.

A dataset brings its own way to read pictures: video files, JPEGs in packed shards or in parquet. Lanes know only
`FrameReader`, which `EpisodeDataset.open_frames` makes; `VideoFrames` serves datasets that only have `open_video`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mem0_jax.data.transforms import resize
from mem0_jax.data.video import EpisodeVideo


class FrameReader(Protocol):
    """Pictures of one camera. A lane owns its reader: calls never overlap, and mostly ask for the next frames in order.

    `read_frames` gives uint8 [n, H, W, 3] RGB for `frames`, int64 [n] ascending numbers within `episode`, which is one
    of the dataset's `episodes`. Pictures that are missing, damaged or unreadable raise an OSError or a ValueError that
    names the episode and the file; the reader stays usable for other episodes. Reading must not depend on what was read
    before. Opening a reader must be cheap: files are opened by the first read.
    """

    def read_frames(self, episode: Any, frames: np.ndarray) -> np.ndarray: ...
    def close(self) -> None: ...


class Episode(Protocol):
    """One episode: its frames are rows `start` to `start + length - 1` of every column."""

    @property
    def index(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def name(self) -> str: ...


class EpisodeDataset(Protocol):
    """What lanes play: `LeRobotDataset` and everything shaped like it.

    `column(key)` gives the numbers of all frames, `texts(key)` ids and distinct texts, `image_shape(camera)` (H, W).
    A dataset has `open_frames(camera) -> FrameReader`, or `open_video(episode, camera)` where pictures are mp4 files.
    """

    root: Any
    features: Any

    @property
    def episodes(self) -> Sequence[Any]: ...
    def column(self, key: str) -> np.ndarray: ...
    def texts(self, key: str) -> tuple[np.ndarray, list[str]]: ...
    def image_shape(self, camera: str) -> tuple[int, int]: ...


def open_frames(dataset: Any, camera: str) -> FrameReader:
    """Return a reader of a dataset's pictures, for one lane."""
    make = getattr(dataset, "open_frames", None)
    return VideoFrames(dataset, camera) if make is None else make(camera)


class VideoFrames:
    """Pictures from mp4 files, by one decoder that walks forward; a new episode opens a new one."""

    def __init__(self, dataset: Any, camera: str):
        self._dataset, self._camera = dataset, camera
        self._open: tuple[Any, EpisodeVideo] | None = None

    def read_frames(self, episode: Any, frames: np.ndarray) -> np.ndarray:
        """Return uint8 [n, H, W, 3]; see `FrameReader`."""
        if self._open is None or self._open[0] is not episode:
            self.close()
            self._open = (episode, self._dataset.open_video(episode, self._camera))
        decoder = self._open[1]
        cuts = [0, *(np.flatnonzero(np.diff(frames) != 1) + 1).tolist(), len(frames)]
        runs = [decoder.read(int(frames[a]), b - a) for a, b in itertools.pairwise(cuts)]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def close(self) -> None:
        """Release the decoder."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


class PictureStore:
    """Resized pictures by (episode, frame): from one forward-walking reader a lane, or from whole episodes in RAM.

    Safe to use from many threads: a lane's reader, or an episode's first decoding, is held by one at a time.

    Args:
        dataset, camera, episodes: where pictures come from; numbers of episodes count in this list.
        size: (height, width), or None for the camera's own.
        resample: "bilinear" or "bicubic".
        cache_bytes: keep decoded episodes, in at most that much RAM; None keeps nothing.

    Raises:
        ValueError: the pictures do not fit into `cache_bytes`.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        camera: str,
        size: tuple[int, int] | None,
        resample: str,
        episodes: Sequence[Episode],
        cache_bytes: int | None,
    ):
        self._dataset, self._camera, self._episodes = dataset, camera, episodes
        self._size, self._resample = size or dataset.image_shape(camera), resample
        self._cached = cache_bytes is not None
        needed = sum(episode.length for episode in episodes) * self._size[0] * self._size[1] * 3
        if cache_bytes is not None and needed > cache_bytes:
            raise ValueError(
                f"cache_frames: {dataset.root} needs {needed / 2**20:.1f} MiB at {self._size[0]}x{self._size[1]}, but "
                f"cache_bytes is {cache_bytes / 2**20:.1f} MiB; raise it, shrink image_size, or set cache_frames=False"
            )
        self._lock = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}  # by episode when cached, by lane otherwise
        self._decoded: dict[int, np.ndarray] = {}
        self._readers: dict[int, FrameReader] = {}  # by lane

    def read(self, lane: int, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Return uint8 [T, H, W, 3] for a lane's consecutive (episode, frame) pairs."""
        if self._cached and (episode == episode[0]).all():
            return self._episode(int(episode[0]))[frame]
        out = np.empty((len(frame), *self._size, 3), np.uint8)
        cuts = [0, *(np.flatnonzero((np.diff(episode) != 0) | (np.diff(frame) <= 0)) + 1), len(frame)]
        for a, b in itertools.pairwise(cuts):
            if self._cached:
                out[a:b] = self._episode(int(episode[a]))[frame[a:b]]
            else:
                self._decode(lane, int(episode[a]), frame[a:b], out[a:b])
        return out

    def close(self) -> None:
        """Release readers and cached pictures."""
        for reader in self._readers.values():
            reader.close()
        self._readers, self._decoded = {}, {}

    def _episode(self, episode: int) -> np.ndarray:
        pictures = self._decoded.get(episode)
        if pictures is not None:
            return pictures
        with self._key_lock(episode):
            if episode not in self._decoded:
                length = self._episodes[episode].length
                pictures = np.empty((length, *self._size, 3), np.uint8)
                reader = open_frames(self._dataset, self._camera)
                try:
                    self._read_resized(reader, episode, np.arange(length), pictures)
                finally:
                    reader.close()
                self._decoded[episode] = pictures
            return self._decoded[episode]

    def _decode(self, lane: int, episode: int, frame: np.ndarray, out: np.ndarray) -> None:
        with self._key_lock(lane):
            if lane not in self._readers:
                self._readers[lane] = open_frames(self._dataset, self._camera)
            self._read_resized(self._readers[lane], episode, frame, out)

    def _read_resized(self, reader: FrameReader, episode: int, frame: np.ndarray, out: np.ndarray) -> None:
        for a in range(0, len(frame), 16):  # a few at a time: pictures of the camera's size may be large
            pictures = reader.read_frames(self._episodes[episode], frame[a : a + 16])
            for i, picture in enumerate(pictures, start=a):
                out[i] = resize(picture, self._size, self._resample)

    def _key_lock(self, key: int) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())
