"""Pictures of a dataset by episode and frame: the seam between storage and lanes, and a store over it.

Axes: n frames asked for, H, W picture height and width.

A dataset brings its own way to read pictures. Lanes know only `FrameReader`, which a dataset's `open_frames` makes
(packed shards), or which wraps its `open_video` (mp4 files and image columns of LeRobot datasets).
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mem0_jax.resize import resize

_AT_ONCE = 4  # frames read at once: pictures of the camera's size, that shall stay in the cache of the processor
_log = logging.getLogger(__name__)


class FrameReader(Protocol):
    """Pictures of one camera. A lane owns its reader: calls never overlap, and mostly ask for the next frames in order.

    Opening a reader must be cheap: files are opened by the first read.
    """

    def read_frames(self, episode: Any, frames: np.ndarray) -> np.ndarray:
        """Return uint8 [n, H, W, 3] RGB, whatever was read before.

        Args:
            episode: one of the dataset's `episodes`.
            frames: int64 [n], ascending numbers within the episode.

        Raises:
            OSError, ValueError: pictures are missing, damaged or unreadable; names the episode and the file. The reader
                stays usable for other episodes.
        """
        ...

    def close(self) -> None:
        """Release the files."""
        ...


class Episode(Protocol):
    """One episode: its frames are rows `start` to `start + length - 1` of every column."""

    @property
    def index(self) -> int:
        """Number in the dataset."""
        ...

    @property
    def start(self) -> int:
        """Row of its first frame."""
        ...

    @property
    def length(self) -> int:
        """Number of its frames."""
        ...

    @property
    def name(self) -> str:
        """What messages call it."""
        ...


class EpisodeDataset(Protocol):
    """What lanes play: `LeRobotDataset` and everything shaped like it.

    A dataset also has `open_frames(camera) -> FrameReader`, or `open_video(episode, camera)`, which opens one episode
    and whose `read(start, count)` walks forward through it.
    """

    root: Any
    fps: float
    features: Any

    @property
    def episodes(self) -> Sequence[Any]:
        """Of the whole dataset, each an `Episode`."""
        ...

    def column(self, key: str) -> np.ndarray:
        """Return a feature's numbers in all F frames, [F, ...]."""
        ...

    def texts(self, key: str) -> tuple[np.ndarray, list[str]]:
        """Return the ids [F] of a text feature, and the distinct texts that they count."""
        ...

    def image_shape(self, camera: str) -> tuple[int, int]:
        """Return (H, W) of a camera's pictures."""
        ...


def open_frames(dataset: Any, camera: str) -> FrameReader:
    """Return a reader of a dataset's pictures, for one lane."""
    make = getattr(dataset, "open_frames", None)
    return EpisodeFrames(dataset, camera) if make is None else make(camera)


class EpisodeFrames:
    """Pictures by one decoder an episode, which walks forward; a new episode opens a new one."""

    def __init__(self, dataset: Any, camera: str):
        self._dataset, self._camera = dataset, camera
        self._open: tuple[Any, Any] | None = None

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


class DamagedEpisodeError(Exception):
    """The frames asked for lie at or behind the first one of their episode that cannot be read."""


class PictureStore:
    """Resized pictures of the frames that are played: from one forward-walking reader a stream, or from RAM.

    An episode is readable up to its first frame that cannot be read, whatever lies behind, and whoever asks: a stream
    that enters an episode in its middle first walks through that episode once, unless that was done before. Damage is
    warned of once an episode. Safe to use from many threads: a stream's reader, or an episode's walk, is held by one.

    Args:
        dataset, camera, episodes: where pictures come from; numbers of episodes count in this list.
        frames: the frames of each episode that are played, int64 ascending; "place" below counts in these.
        size: (height, width), or None for the camera's own.
        resample: "bilinear" or "bicubic".
        cache_bytes: keep decoded episodes, in at most that much RAM; None keeps nothing.
        strict: raise the reader's error at the first damage.

    Attributes:
        damaged: what is wrong with each damaged episode met so far, by its number.
        bytes: that all pictures take.

    Raises:
        ValueError: the pictures do not fit into `cache_bytes`.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        camera: str,
        episodes: Sequence[Episode],
        frames: Sequence[np.ndarray],
        *,
        size: tuple[int, int] | None,
        resample: str,
        cache_bytes: int | None,
        strict: bool,
    ):
        self._dataset, self._camera, self._episodes, self._frames = dataset, camera, episodes, frames
        self.size, self._resample, self._strict = size or dataset.image_shape(camera), resample, strict
        self._cached = cache_bytes is not None
        self.bytes = sum(map(len, frames)) * self.size[0] * self.size[1] * 3
        if cache_bytes is not None and self.bytes > cache_bytes:
            raise ValueError(
                f"cache_frames: {dataset.root} needs {self.bytes / 2**20:.1f} MiB at {self.size[0]}x{self.size[1]}, "
                f"but cache_bytes is {cache_bytes / 2**20:.1f} MiB; raise it, make pictures smaller, or set "
                "cache_frames=False"
            )
        self.damaged: dict[int, str] = {}
        self._lock = threading.Lock()
        self._locks: dict[tuple[str, int], threading.Lock] = {}
        self._decoded: dict[int, np.ndarray] = {}  # by episode
        self._readable: dict[int, int] = {}  # by episode, once it is known
        self._readers: dict[int, FrameReader] = {}  # by stream
        self._reached: dict[int, tuple[int, int]] = {}  # by stream: (episode, place) up to which it has read

    def read(self, stream: int, episode: int, place: int, out: np.ndarray) -> None:
        """Fill `out`, uint8 [n, H, W, 3], with an episode's played frames from `place` on.

        Raises:
            DamagedEpisodeError: the episode is not readable so far.
        """
        stop = place + len(out)
        if self._cached:
            if self.readable(episode) < stop:
                raise DamagedEpisodeError
            out[:] = self._decoded[episode][place:stop]
            return
        with self._key_lock("stream", stream):
            walked = place == 0 or self._reached.get(stream) == (episode, place)
            if (episode in self._readable or not walked) and self.readable(episode) < stop:
                raise DamagedEpisodeError
            self._reached.pop(stream, None)
            if stream not in self._readers:
                self._readers[stream] = open_frames(self._dataset, self._camera)
            try:
                self._read_resized(self._readers[stream], episode, place, out)
            except (OSError, ValueError) as error:
                if self.readable(episode) >= stop:
                    raise  # the walk could read them: not damage, but storage that comes and goes
                raise DamagedEpisodeError from error
            self._reached[stream] = (episode, stop)
            if stop == len(self._frames[episode]):
                self._readable[episode] = stop

    def readable(self, episode: int) -> int:
        """Return how many of an episode's played frames can be read before the first that cannot."""
        if episode not in self._readable:
            with self._key_lock("episode", episode):
                if episode not in self._readable:
                    self._readable[episode] = self._walk(episode)
        return self._readable[episode]

    def close(self) -> None:
        """Release readers and cached pictures."""
        for stream in list(self._readers):
            with self._key_lock("stream", stream):  # a prefetching thread may still be decoding its last pictures
                self._readers.pop(stream).close()
                self._reached.pop(stream, None)
        if self._cached:
            self._decoded, self._readable = {}, {}

    def _walk(self, episode: int) -> int:
        """Read an episode from its start, keep its pictures if they are cached, and return how many could be read."""
        count = len(self._frames[episode])
        pictures = np.empty((count if self._cached else 1, *self.size, 3), np.uint8)
        reader, place = open_frames(self._dataset, self._camera), 0
        try:
            for place in range(count):
                out = pictures[place : place + 1] if self._cached else pictures
                self._read_resized(reader, episode, place, out)
            place = count
        except (OSError, ValueError) as error:
            if self._strict:
                raise
            frame = int(self._frames[episode][place])
            self.damaged[episode] = f"from frame {frame} on: {error}"
            _log.warning(
                "%s: %s cannot be read from frame %d on (%s); other episodes are played in its place",
                self._dataset.root,
                self._episodes[episode].name,
                frame,
                error,
            )
        finally:
            reader.close()
        if self._cached:
            self._decoded[episode] = pictures[:place]
        return place

    def _read_resized(self, reader: FrameReader, episode: int, place: int, out: np.ndarray) -> None:
        frames = self._frames[episode][place : place + len(out)]
        for a in range(0, len(frames), _AT_ONCE):
            pictures = reader.read_frames(self._episodes[episode], frames[a : a + _AT_ONCE])
            for i, picture in enumerate(pictures, start=a):
                out[i] = resize(picture, self.size, self._resample)

    def _key_lock(self, kind: str, key: int) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault((kind, key), threading.Lock())


class Views:
    """The stores of several cameras as one: an episode is readable as far as all of them can be read.

    Args:
        dataset, episodes, frames, resample, strict: as of each `PictureStore`.
        cameras: (height, width), or None for the camera's own, by key.
        cache_bytes: of all together.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        cameras: Mapping[str, tuple[int, int] | None],
        episodes: Sequence[Episode],
        frames: Sequence[np.ndarray],
        *,
        resample: str,
        cache_bytes: int | None,
        strict: bool,
    ):
        self._stores: dict[str, PictureStore] = {}
        for camera, size in cameras.items():
            how = {"size": size, "resample": resample, "cache_bytes": cache_bytes, "strict": strict}
            self._stores[camera] = PictureStore(dataset, camera, episodes, frames, **how)
            cache_bytes = None if cache_bytes is None else cache_bytes - self._stores[camera].bytes

    @property
    def damaged(self) -> dict[int, str]:
        """What is wrong with each damaged episode met so far, by its number."""
        return {episode: what for store in self._stores.values() for episode, what in store.damaged.items()}

    def empty(self, *lead: int) -> dict[str, np.ndarray]:
        """Room for pictures uint8 [..., H, W, 3] by camera."""
        return {camera: np.empty((*lead, *store.size, 3), np.uint8) for camera, store in self._stores.items()}

    def read(self, stream: int, episode: int, place: int, out: Mapping[str, np.ndarray]) -> None:
        """Fill the arrays of all cameras, see `PictureStore.read`."""
        for camera, store in self._stores.items():
            store.read(stream, episode, place, out[camera])

    def readable(self, episode: int) -> int:
        """Return how many of an episode's played frames can be read in all cameras."""
        return min(store.readable(episode) for store in self._stores.values())

    def close(self) -> None:
        """Release readers and cached pictures."""
        for store in self._stores.values():
            store.close()
