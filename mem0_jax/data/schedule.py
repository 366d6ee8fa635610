"""Which frame of which episode is played when: pure functions of a position, with tables that only save time.

Axes: N episodes, T frames of a window. A stream is an endless run of passes, a pass plays the frames of one episode in
order; a stream's frames are counted in ticks. A lane plays one stream, or several in turn, window by window.
"""

from __future__ import annotations

import threading

import numpy as np

# Random numbers of one seed for different uses start at counters too far apart to meet.
ORDER, JITTER, SUBSTITUTE, DRAW = 0, 2**64, 2**65, 2**66
_GROUP = 2**128  # between the orders of two groups
_BLOCK = 1024  # passes whose groups are drawn at once


def random(seed: int, number: int, use: int) -> np.random.Generator:
    """Return the generator of one use (`ORDER`, ...) at one position, equal whoever asks and when."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64), counter=use))


class Schedule:
    """Tables of several streams; a subclass says which episodes a stream plays next.

    Args:
        lengths: frames of each episode, [N].
        streams: how many.
    """

    def __init__(self, lengths: np.ndarray, streams: int):
        self.lengths, self.streams = np.asarray(lengths, np.int64), streams
        # For each stream: the episodes of its passes, and the ticks at which each pass ends.
        self._episodes = [np.empty(0, np.int64) for _ in range(streams)]
        self._ends = [np.empty(0, np.int64) for _ in range(streams)]
        self._lock = threading.Lock()

    def window(self, lane: int, step: int, frames: int) -> tuple[int, np.ndarray]:
        """Return (stream, its ticks int64 [T]) of a lane's window number `step`; T is `frames`."""
        return lane, step * frames + np.arange(frames)

    def locate(self, stream: int, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (pass number, unique over all streams, episode, frame within the episode), each int64 [T].

        `ticks` ascend.
        """
        with self._lock:
            while not self._ends[stream].size or self._ends[stream][-1] <= ticks[-1]:
                self._grow(stream)
            ends, episodes = self._ends[stream], self._episodes[stream]
        k = np.searchsorted(ends, ticks, side="right")
        episode = episodes[k]
        return k * self.streams + stream, episode, ticks - (ends[k] - self.lengths[episode])

    def _grow(self, stream: int) -> None:
        new = self._next_passes(stream, self._episodes[stream].size)
        start = self._ends[stream][-1] if self._ends[stream].size else 0
        self._episodes[stream] = np.concatenate([self._episodes[stream], new])
        self._ends[stream] = np.concatenate([self._ends[stream], start + np.cumsum(self.lengths[new])])

    def _next_passes(self, stream: int, known: int) -> np.ndarray:
        """Return the episodes of some passes of a stream after its first `known` ones; called in order of `known`."""
        raise NotImplementedError


class LaneSchedule(Schedule):
    """All lanes together play one sequence of passes: pass p belongs to lane p % L.

    Without groups that sequence is the concatenation of fresh permutations of the episodes, so within a permutation
    lanes hold disjoint episodes and together every episode exactly once. With groups, each pass first draws a group
    with the probabilities `weights`, then takes the next episode of that group's own endless permutations.

    Args:
        lengths: frames of each episode, [N], all positive.
        lanes: L.
        seed: any integer in [0, 2**64).
        group: of each episode, int [N]; default all in group 0.
        weights: of each group, positive; any scale.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        lanes: int,
        seed: int,
        group: np.ndarray | None = None,
        weights: tuple[float, ...] = (1.0,),
    ):
        super().__init__(lengths, lanes)
        self.seed = seed
        if self.lengths.size == 0 or (self.lengths < 1).any():
            raise ValueError("a schedule needs at least one episode, and every episode at least one frame")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 to 2**64 - 1")
        group = np.zeros(self.lengths.size, np.int64) if group is None else np.asarray(group)
        self._members = [np.flatnonzero(group == g) for g in range(len(weights))]
        # The last bound is infinite, so that rounding never draws a group that does not exist.
        self._bounds = np.append(np.cumsum(weights)[:-1] / np.sum(weights), np.inf)
        self._passes = np.empty(0, np.int64)  # the common sequence, as far as it was needed
        self._played = np.zeros(len(weights), np.int64)  # passes of each group in it

    def permutation(self, cycle: int, group: int = 0) -> np.ndarray:
        """Return a group's episodes in the order of one cycle."""
        members = self._members[group]
        return members[random(self.seed, cycle, ORDER + group * _GROUP).permutation(members.size)]

    def _next_passes(self, stream: int, known: int) -> np.ndarray:
        # Growing in proportion keeps the cost of a late resume linear.
        while (self._passes.size - stream + self.streams - 1) // self.streams <= known:
            blocks = [self._next_block() for _ in range(max(1, self._passes.size // _BLOCK))]
            self._passes = np.concatenate([self._passes, *blocks])
        return self._passes[stream + known * self.streams :: self.streams]

    def _next_block(self) -> np.ndarray:
        drawn = random(self.seed, int(self._played.sum()) // _BLOCK, DRAW).random(_BLOCK)
        groups = np.searchsorted(self._bounds, drawn, side="right")
        block = np.empty(_BLOCK, np.int64)
        for g, members in enumerate(self._members):
            places = np.flatnonzero(groups == g)
            if not places.size:
                continue
            first, last = self._played[g], self._played[g] + places.size
            cycles = range(first // members.size, (last - 1) // members.size + 1)
            orders = np.concatenate([self.permutation(cycle, g) for cycle in cycles])
            block[places] = orders[first - cycles[0] * members.size :][: places.size]
            self._played[g] = last
        return block


class ReferenceSchedule(Schedule):
    """The order in which Mem-0's own training reads (RMBench, policy/Mem-0, random_episode_dataloader.py).

    One lane is one device. Device r of L owns the episodes whose index modulo L is r; its W workers own fixed
    contiguous slices of those (the first ones get one more where it does not divide), and each shuffles its slice anew
    every cycle with a Mersenne Twister seeded alike in all. A window holds consecutive frames of one worker's stream;
    windows alternate between the workers.

    Args:
        lengths: frames of each episode, [N]; an episode of none keeps its place in the shuffle.
        index: `episode_index` of each, [N], ascending.
        lanes: L.
        workers: W.
        seed: in [0, 2**32).
    """

    def __init__(self, lengths: np.ndarray, index: np.ndarray, lanes: int, workers: int, seed: int):
        super().__init__(lengths, lanes * workers)
        if workers < 1:
            raise ValueError(f"workers is {workers}; expected at least 1")
        if not 0 <= seed < 2**32:
            raise ValueError(f'seed is {seed}; schedule="reference" takes 0 to 2**32 - 1')
        self.workers = workers
        owned = [np.flatnonzero(np.asarray(index) % lanes == lane) for lane in range(lanes)]
        self._slices = [part for episodes in owned for part in np.array_split(episodes, workers)]
        for stream, part in enumerate(self._slices):
            if not self.lengths[part].sum():
                lane, worker = divmod(stream, workers)
                raise ValueError(
                    f'schedule="reference": worker {worker} of lane {lane} has no frame to play, for {len(index)} '
                    f"episodes are dealt to {lanes} lanes x {workers} workers; use fewer"
                )
        self._shuffles = [np.random.RandomState(seed) for _ in self._slices]

    def window(self, lane: int, step: int, frames: int) -> tuple[int, np.ndarray]:
        """Return (stream, its ticks int64 [T]) of a lane's window number `step`; T is `frames`."""
        turn, worker = divmod(step, self.workers)
        return lane * self.workers + worker, turn * frames + np.arange(frames)

    def _next_passes(self, stream: int, known: int) -> np.ndarray:
        part = self._slices[stream]
        cycles = []
        for _ in range(max(1, known // part.size)):
            order = part.copy()
            self._shuffles[stream].shuffle(order)
            cycles.append(order)
        return np.concatenate(cycles)


class ShuffledSchedule:
    """Single frames in a random order, each a pass of its own: for policies that remember nothing.

    All lanes together play one sequence of frames: the frames of all episodes in fresh permutations. With several
    groups, each frame is drawn anew from a group that is drawn with the probabilities `weights` x frames an episode,
    so that groups have the shares of frames that `LaneSchedule` gives them.

    Args:
        lengths, lanes, seed, group, weights: as of `LaneSchedule`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        lanes: int,
        seed: int,
        group: np.ndarray | None = None,
        weights: tuple[float, ...] = (1.0,),
    ):
        self.lengths, self.streams, self.seed = np.asarray(lengths, np.int64), lanes, seed
        if not self.lengths.sum():
            raise ValueError("a schedule needs at least one frame")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; expected 0 to 2**64 - 1")
        group = np.zeros(self.lengths.size, np.int64) if group is None else np.asarray(group)
        self._starts = np.cumsum(self.lengths) - self.lengths
        frames = np.repeat(group, self.lengths)
        self._members = [np.flatnonzero(frames == g) for g in range(len(weights))]
        shares = np.array([w * self.lengths[group == g].mean() for g, w in enumerate(weights)])
        self._bounds = np.append(np.cumsum(shares)[:-1] / shares.sum(), np.inf)
        self._made: dict[int, np.ndarray] = {}  # the last blocks and permutations of the sequence, by number
        self._lock = threading.Lock()

    def window(self, lane: int, step: int, frames: int) -> tuple[int, np.ndarray]:
        """Return (stream, its ticks int64 [T]) of a lane's window number `step`; T is `frames`."""
        return lane, step * frames + np.arange(frames)

    def locate(self, stream: int, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (pass number, unique over all streams, episode, frame within the episode), each int64 [T]."""
        numbers = ticks * self.streams + stream
        size = len(self._members[0]) if len(self._members) == 1 else _BLOCK
        frame = np.array([self._part(int(number) // size)[number % size] for number in numbers])
        episode = np.searchsorted(self._starts, frame, side="right") - 1
        return numbers, episode, frame - self._starts[episode]

    def _part(self, number: int) -> np.ndarray:
        """The frames of one permutation, or one block of draws."""
        with self._lock:
            if number not in self._made:
                while len(self._made) > 3:
                    del self._made[min(self._made)]
                self._made[number] = self._make(number)
            return self._made[number]

    def _make(self, number: int) -> np.ndarray:
        if len(self._members) == 1:
            return random(self.seed, number, ORDER).permutation(self._members[0])
        rng = random(self.seed, number, DRAW)
        groups, places = np.searchsorted(self._bounds, rng.random(_BLOCK), side="right"), rng.random(_BLOCK)
        return np.array([self._members[g][int(u * len(self._members[g]))] for g, u in zip(groups, places)])
