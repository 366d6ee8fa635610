"""Pictures of a dataset by episode and frame, from decoders or from RAM.

Axes: T frames asked for, H, W picture height and width.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np

from mem0_jax.data.lerobot import Episode, LeRobotDataset
from mem0_jax.data.transforms import resize
from mem0_jax.data.video import EpisodeVideo


class PictureStore:
    """Resized pictures by (episode, frame): from one forward-walking decoder a lane, or from whole episodes in RAM.

    Safe to use from many threads: a lane's decoder, or an episode's first decoding, is held by one at a time.

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
        dataset: LeRobotDataset,
        camera: str,
        size: tuple[int, int] | None,
        resample: str,
        episodes: list[Episode],
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
        self._decoders: dict[int, tuple[int, EpisodeVideo]] = {}  # by lane: (episode, decoder)

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
        """Release decoders and cached pictures."""
        for _, decoder in self._decoders.values():
            decoder.close()
        self._decoders, self._decoded = {}, {}

    def _episode(self, episode: int) -> np.ndarray:
        pictures = self._decoded.get(episode)
        if pictures is not None:
            return pictures
        with self._key_lock(episode):
            if episode not in self._decoded:
                length = self._episodes[episode].length
                pictures = np.empty((length, *self._size, 3), np.uint8)
                decoder = self._dataset.open_video(self._episodes[episode], self._camera)
                try:
                    self._read_resized(decoder, np.arange(length), pictures)
                finally:
                    decoder.close()
                self._decoded[episode] = pictures
            return self._decoded[episode]

    def _decode(self, lane: int, episode: int, frame: np.ndarray, out: np.ndarray) -> None:
        with self._key_lock(lane):
            current, decoder = self._decoders.get(lane, (-1, None))
            if decoder is None or current != episode:
                if decoder is not None:
                    decoder.close()
                decoder = self._dataset.open_video(self._episodes[episode], self._camera)
                self._decoders[lane] = (episode, decoder)
            self._read_resized(decoder, frame, out)

    def _read_resized(self, decoder: EpisodeVideo, frame: np.ndarray, out: np.ndarray) -> None:
        for i, number in enumerate(frame.tolist()):
            out[i] = resize(decoder.read(number, 1)[0], self._size, self._resample)

    def _key_lock(self, key: int) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())
