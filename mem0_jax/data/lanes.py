"""Episodes walked in order by many lanes: a random-access source whose element is a pure function of its index.

Axes: L lanes of all hosts, T frames of a window, C action horizon, H, W picture height and width, D vector
dimensions, N episodes, F frames of the dataset.

A lane is one endless stream of frames. All lanes together play the concatenation of fresh permutations of the
episodes: pass p of that sequence belongs to lane p % L, so within a permutation lanes hold disjoint episodes and
together every episode exactly once. A lane's windows of T consecutive frames are packed: a window may hold one
episode's end and the next one's start, marked by `is_first`. Decoders and pictures in RAM are only caches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import SupportsIndex

import numpy as np

from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.normalize import Normalizer
from mem0_jax.data.pictures import PictureStore
from mem0_jax.data.transforms import ColorJitter, adjust_colors

NULL_TEXT = "null"  # Mem-0 marks frames without a subtask by this text; they are not trained on
_PASSES_AT_ONCE = 16  # passes a lane's table grows by
_MAX_STEPS = 2**40
_JITTER_STREAM = 2**64  # start of the random counter, far from that of the episode order

Element = dict[str, np.ndarray]


class LaneSchedule:
    """Which frame of which episode a lane plays at each tick: a pure function of (lengths, lanes, seed).

    Args:
        lengths: frames of each episode, [N], all positive.
        lanes: L.
        seed: any integer in [0, 2**64).
    """

    def __init__(self, lengths: np.ndarray, lanes: int, seed: int):
        self.lengths, self.lanes, self.seed = np.asarray(lengths, np.int64), lanes, seed
        if self.lengths.size == 0 or (self.lengths < 1).any():
            raise ValueError("a schedule needs at least one episode, and every episode at least one frame")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 to 2**64 - 1")
        self._permutation = (-1, np.empty(0, np.int64))
        # For each lane: the episodes of its passes, and the ticks at which each pass ends.
        self._episodes = [np.empty(0, np.int64) for _ in range(lanes)]
        self._ends = [np.empty(0, np.int64) for _ in range(lanes)]
        self._lock = threading.Lock()

    def permutation(self, cycle: int) -> np.ndarray:
        """Return the order of the episodes in one cycle, [N]."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, cycle], np.uint64)))
        return rng.permutation(len(self.lengths))

    def locate(self, lane: int, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (pass number over all lanes, episode, frame within the episode) at a lane's ticks, each int64 [T]."""
        with self._lock:
            while not self._ends[lane].size or self._ends[lane][-1] <= ticks[-1]:
                self._grow(lane)
            ends, episodes = self._ends[lane], self._episodes[lane]
        k = np.searchsorted(ends, ticks, side="right")
        episode = episodes[k]
        return k * self.lanes + lane, episode, ticks - (ends[k] - self.lengths[episode])

    def _grow(self, lane: int) -> None:
        known = self._episodes[lane].size
        # Growing in proportion keeps the cost of a late resume linear.
        passes = (known + np.arange(max(_PASSES_AT_ONCE, known))) * self.lanes + lane
        cycles, places = np.divmod(passes, len(self.lengths))
        new = np.empty_like(passes)
        for cycle in np.unique(cycles):
            chosen = cycles == cycle
            new[chosen] = self._cached_permutation(int(cycle))[places[chosen]]
        start = self._ends[lane][-1] if known else 0
        self._episodes[lane] = np.concatenate([self._episodes[lane], new])
        self._ends[lane] = np.concatenate([self._ends[lane], start + np.cumsum(self.lengths[new])])

    def _cached_permutation(self, cycle: int) -> np.ndarray:
        if self._permutation[0] != cycle:
            self._permutation = (cycle, self.permutation(cycle))
        return self._permutation[1]


class LaneSource:
    """Windows of all lanes: element i is step `i // num_local_lanes` of lane `first_lane + i % num_local_lanes`.

    An element is a dict of

    - image uint8 [T, H, W, 3]; state float32 [T, D], normalised
    - action float32 [T, C, D], normalised: the actions of this frame and the next C - 1, the episode's last one
      repeated past its end; action_is_pad bool [T, C], true there
    - episode int32 [T]: number of the pass, unique over all lanes (modulo 2**31), so that an episode played twice in a
      row still shows a boundary; episode_index int32 [T] of the dataset; frame int32 [T] within the episode
    - is_first bool [T]: the pass starts here; subtask_end int32 [T]; text_id int32 [T] into `texts`

    after which `transform(element)` returns what the policy wants. Elements are equal whoever asks, in any order and
    from any number of threads.

    Args:
        dataset: the episodes.
        lanes: L, over all hosts.
        frames: T.
        horizon: C.
        seed: of the episode order and the jitter.
        camera: key of the video feature.
        image_size: (height, width) to resize to, or None to keep the camera's.
        resample: "bilinear" or "bicubic".
        cache_frames: keep the resized pictures in RAM: an episode is decoded once, when first touched.
        cache_bytes: the most that cache may grow to.
        jitter: random light, drawn anew for each picture from (seed, step, lane).
        normalizer: of state and action; None leaves them raw.
        first_lane, num_local_lanes: the contiguous block of lanes that this host plays; default all.
        transform: the policy's own preparation.
        text: the feature with the instruction: "subtask", "global_task", or "task" for the dataset's task texts.

    Frames whose text is "null" are left out. A dataset without a `subtask_end` feature counts as having none.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        *,
        lanes: int,
        frames: int,
        horizon: int,
        seed: int,
        camera: str = "observation.image.head_camera",
        image_size: tuple[int, int] | None = None,
        resample: str = "bilinear",
        cache_frames: bool = False,
        cache_bytes: int = 4 * 2**30,
        jitter: ColorJitter | None = None,
        normalizer: Normalizer | None = None,
        first_lane: int = 0,
        num_local_lanes: int | None = None,
        transform: Callable[[Element], Element] | None = None,
        text: str = "subtask",
    ):
        self.dataset, self.lanes, self.frames, self.horizon, self.seed = dataset, lanes, frames, horizon, seed
        self.first_lane = first_lane
        self.num_local_lanes = lanes - first_lane if num_local_lanes is None else num_local_lanes
        if min(lanes, frames, horizon) < 1:
            raise ValueError(f"lanes ({lanes}), frames ({frames}) and horizon ({horizon}) must be positive")
        if not 0 <= first_lane < first_lane + self.num_local_lanes <= lanes:
            raise ValueError(f"lanes {first_lane} to {first_lane + self.num_local_lanes - 1} are not among {lanes}")
        self._jitter, self._transform = jitter, transform
        self._index_frames(text)
        self._load_vectors(normalizer)
        self.schedule = LaneSchedule(self._kept_length, lanes, seed)
        self._pictures = PictureStore(
            dataset, camera, image_size, resample, self._episodes, cache_bytes if cache_frames else None
        )

    def __len__(self) -> int:
        return _MAX_STEPS * self.num_local_lanes

    def fingerprint(self) -> dict[str, int | str]:
        """What must be equal for a saved position to mean the same element; JSON-able."""
        return {
            "lanes": self.lanes,
            "frames": self.frames,
            "horizon": self.horizon,
            "seed": self.seed,
            "episodes": len(self._episodes),
            "total_frames": len(self._kept_rows),
            "schedule": "interleaved-1",
        }

    def __getitem__(self, index: SupportsIndex) -> Element:
        step, local = divmod(int(index), self.num_local_lanes)
        if not 0 <= step < _MAX_STEPS:
            raise IndexError(f"element {index} is outside the source")
        lane = self.first_lane + local
        passes, episode, offset = self.schedule.locate(lane, step * self.frames + np.arange(self.frames))
        rows = self._kept_rows[self._kept_start[episode] + offset]
        frame = rows - self._row_start[episode]
        future = rows[:, None] + np.arange(self.horizon)
        last = self._row_last[episode][:, None]
        element = {
            "image": self._read_pictures(step, lane, episode, frame),
            "state": self._state[rows],
            "action": self._action[np.minimum(future, last)],
            "action_is_pad": future > last,
            "episode": (passes % 2**31).astype(np.int32),
            "episode_index": self._episode_index[episode],
            "frame": frame.astype(np.int32),
            "is_first": offset == 0,
            "subtask_end": self._subtask_end[rows],
            "text_id": self._text_id[rows],
        }
        return element if self._transform is None else self._transform(element)

    def close(self) -> None:
        """Release decoders and cached pictures."""
        self._pictures.close()

    def _index_frames(self, text: str) -> None:
        """Lay out the rows to play, episode after episode."""
        dataset = self.dataset
        if text != "task" and text not in dataset.features:
            raise ValueError(f'{dataset.root} has no text feature {text!r}; pass text="task" to use its task texts')
        text_id, self.texts = dataset.texts(text)
        played = np.array([t.strip() != NULL_TEXT for t in self.texts], bool)[text_id]
        self._text_id = text_id
        kept = [e.start + np.flatnonzero(played[e.start : e.start + e.length]) for e in dataset.episodes]
        self._episodes = [e for e, rows in zip(dataset.episodes, kept) if rows.size]
        if not self._episodes:
            raise ValueError(f"{dataset.root}: every frame's {text} is {NULL_TEXT!r}; there is nothing to play")
        self._kept_rows = np.concatenate(kept)
        self._kept_length = np.array([rows.size for rows in kept if rows.size])
        self._kept_start = np.cumsum(self._kept_length) - self._kept_length
        self._row_start = np.array([e.start for e in self._episodes])
        self._row_last = np.array([e.start + e.length - 1 for e in self._episodes])
        self._episode_index = np.array([e.index for e in self._episodes], np.int32)

    def _load_vectors(self, normalizer: Normalizer | None) -> None:
        state = self.dataset.column("observation.state").astype(np.float32)
        action = self.dataset.column("action").astype(np.float32)
        self._state = normalizer.state.normalize(state) if normalizer else state
        self._action = normalizer.action.normalize(action) if normalizer else action
        has_ends = "subtask_end" in self.dataset.features
        ends = self.dataset.column("subtask_end") if has_ends else np.zeros(len(state))
        self._subtask_end = ends.astype(np.int32)

    def _read_pictures(self, step: int, lane: int, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
        pictures = self._pictures.read(lane, episode, frame)
        if self._jitter is None:
            return pictures
        key = np.array([self.seed, step * self.lanes + lane], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=_JITTER_STREAM))
        factors = self._jitter.draw(rng, self.frames)
        return np.stack([adjust_colors(picture, f) for picture, f in zip(pictures, factors)])
