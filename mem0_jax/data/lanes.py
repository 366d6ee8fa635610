"""Episodes walked in order by many lanes: a random-access source whose element is a pure function of its index.

Axes: L lanes of all hosts, T frames of a window, K earlier frames of each, C action horizon, H, W picture height and
width, D vector dimensions, N episodes, F frames of the dataset.

A lane is one endless stream of frames, see `LaneSchedule`. A lane's windows of T consecutive frames are packed: a
window may hold one episode's end and the next one's start, marked by `is_first`. Decoders and pictures in RAM are only
caches. Policies that remember nothing play single frames in a random order by the same loader: each is a pass then.

Damage. An episode plays as long as its pictures can be read. From the first window on that would show a frame that
cannot be read, the rest of that pass, tick for tick, is played by other episodes from their starts: the readable ones
of a permutation drawn from (seed, pass). So the stream stays a pure function of the files and the index, no lane
shifts, and hosts and resumed runs agree without telling each other.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np

from mem0_jax.data.cameras import HEAD_CAMERA
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.needed import check_needed
from mem0_jax.data.normalize import Normalizer
from mem0_jax.data.pictures import DamagedEpisodeError, EpisodeDataset, Views
from mem0_jax.data.robot import check_robot, robot_of
from mem0_jax.data.schedule import JITTER, SUBSTITUTE, LaneSchedule, ReferenceSchedule, ShuffledSchedule, random
from mem0_jax.data.transforms import ColorJitter, adjust_colors

NULL_TEXT = "null"  # Mem-0 marks frames without a subtask by this text; they are not trained on
_MAX_STEPS = 2**40
_SUBSTITUTE_PASS = 2**30  # added to the number of a pass that stands in for another

Element = dict[str, Any]
Pictures = dict[str, np.ndarray]  # by camera


class LaneSource:
    """Windows of all lanes: element i is step `i // num_local_lanes` of lane `first_lane + i % num_local_lanes`.

    An element is a dict of

    - images: uint8 [T, H, W, 3] by camera; state float32 [T, D], normalised
    - action float32 [T, C, D], normalised: the actions of this frame and the next C - 1, the episode's last one
      repeated past its end; action_is_pad bool [T, C], true there
    - episode int32 [T]: number of the pass, unique over all lanes (modulo 2**31), so that an episode played twice in a
      row still shows a boundary; the k-th stand-in for a damaged one counts 2**30 + k more
    - episode_index int32 [T] of the dataset (of a mixture: its running number); frame int32 [T] within the episode
    - history: uint8 [T, K, H, W, 3] by camera, history_valid bool [T, K], where earlier frames are asked for: black and
      false before the episode's start
    - is_first bool [T]: the pass starts here; subtask_end int32 [T]; text_id int32 [T] into `texts`

    after which `transform(element)` returns what the policy wants. Elements are equal whoever asks, in any order and
    from any number of threads.

    Args:
        dataset: the episodes; a `Mixture` for several weighted datasets.
        lanes: L, over all hosts.
        frames: T.
        horizon: C.
        seed: of the episode order and the jitter.
        cameras: keys of image or video features, each with the (height, width) to resize to, or None to keep its own.
        resample: "bilinear" or "bicubic".
        history: earlier frames that come with each, by offset, such as -30, -15, 0; "first" is the episode's. Frames
            that are left out do not count.
        cache_frames: keep the resized pictures in RAM: an episode is decoded once, when first touched.
        cache_bytes: the most that cache may grow to.
        jitter: random light, drawn anew for each picture from (seed, step, lane); earlier ones have that of the frame.
        normalizer: of state and action; None leaves them raw.
        first_lane, num_local_lanes: the contiguous block of lanes that this host plays; default all.
        transform: the policy's own preparation, in the loader's threads.
        text: the feature with the instruction: "subtask", "global_task", or "task" for the dataset's task texts.
        schedule: "interleaved", see `LaneSchedule`; "shuffled", see `ShuffledSchedule`; or "reference", see
            `ReferenceSchedule`: Mem-0's own batches, one lane a device. There, a lane's windows alternate between
            `workers` streams, so a policy's memory must follow `episode`.
        workers: of the reference schedule.
        strict: stop at the first damaged episode instead of playing others in its place.

    Frames whose text is "null" are left out. A dataset without a `subtask_end` feature counts as having none.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        *,
        lanes: int,
        frames: int,
        horizon: int,
        seed: int,
        cameras: Mapping[str, tuple[int, int] | None] | None = None,
        resample: str = "bilinear",
        history: Sequence[int | Literal["first"]] = (),
        cache_frames: bool = False,
        cache_bytes: int = 4 * 2**30,
        jitter: ColorJitter | None = None,
        normalizer: Normalizer | None = None,
        first_lane: int = 0,
        num_local_lanes: int | None = None,
        transform: Callable[[Element], Element] | None = None,
        text: str = "subtask",
        schedule: str = "interleaved",
        workers: int = 2,
        strict: bool = False,
    ):
        self.dataset, self.lanes, self.frames, self.horizon, self.seed = dataset, lanes, frames, horizon, seed
        self.first_lane = first_lane
        self.num_local_lanes = lanes - first_lane if num_local_lanes is None else num_local_lanes
        if min(lanes, frames, horizon) < 1:
            raise ValueError(f"lanes ({lanes}), frames ({frames}) and horizon ({horizon}) must be positive")
        if not 0 <= first_lane < first_lane + self.num_local_lanes <= lanes:
            raise ValueError(f"lanes {first_lane} to {first_lane + self.num_local_lanes - 1} are not among {lanes}")
        if any(offset != "first" and offset > 0 for offset in history):
            raise ValueError(f"history is {tuple(history)}; expected offsets of 0 or below, or 'first'")
        self._jitter, self._transform, self._history = jitter, transform, tuple(history)
        kept = self._index_frames(text, schedule)
        self._load_vectors(normalizer)
        self.schedule, self._schedule_name = self._make_schedule(schedule, workers)
        self._pictures = Views(
            dataset,
            {HEAD_CAMERA: None} if cameras is None else cameras,
            self._episodes,
            kept,
            resample=resample,
            cache_bytes=cache_bytes if cache_frames else None,
            strict=strict,
        )

    def __len__(self) -> int:
        return _MAX_STEPS * self.num_local_lanes

    @property
    def damaged(self) -> dict[int, str]:
        """What is wrong with each damaged episode met so far, by `episode_index`."""
        return {int(self._episode_index[e]): text for e, text in sorted(self._pictures.damaged.items())}

    def fingerprint(self) -> dict[str, int | str]:
        """What must be equal for a saved position to mean the same element; JSON-able."""
        return {
            "lanes": self.lanes,
            "frames": self.frames,
            "horizon": self.horizon,
            "seed": self.seed,
            "episodes": len(self._episodes),
            "total_frames": len(self._kept_rows),
            "lengths": zlib.crc32(self._kept_length.astype("<i8").tobytes()),
            "schedule": self._schedule_name,
        }

    def __getitem__(self, index: SupportsIndex) -> Element:
        step, local = divmod(int(index), self.num_local_lanes)
        if not 0 <= step < _MAX_STEPS:
            raise IndexError(f"element {index} is outside the source")
        lane = self.first_lane + local
        stream, ticks = self.schedule.window(lane, step, self.frames)
        passes, episode, offset, images = self._play(stream, ticks)
        rows = self._kept_rows[self._kept_start[episode] + offset]
        future = rows[:, None] + np.arange(self.horizon)
        last = self._row_last[episode][:, None]
        element = {
            "images": images,
            "state": self._state[rows],
            "action": self._actions(rows, np.minimum(future, last)),
            "action_is_pad": future > last,
            "episode": (passes % 2**31).astype(np.int32),
            "episode_index": self._episode_index[episode],
            "frame": (rows - self._row_start[episode]).astype(np.int32),
            "is_first": offset == 0 if self._walks else np.ones(self.frames, bool),
            "subtask_end": self._subtask_end[rows],
            "text_id": self._text_id[rows],
        }
        if self._history:
            element |= self._earlier(stream, passes, episode, offset)
        self._adjust(step, lane, element)
        return element if self._transform is None else self._transform(element)

    def close(self) -> None:
        """Release decoders and cached pictures."""
        self._pictures.close()

    def _index_frames(self, text: str, schedule: str) -> list[np.ndarray]:
        """Lay out the rows to play, episode after episode; return each episode's frames to play."""
        dataset = self.dataset
        if text != "task" and text not in dataset.features:
            raise ValueError(f'{dataset.root} has no text feature {text!r}; pass text="task" to use its task texts')
        self._text_id, self.texts = dataset.texts(text)
        played = np.array([t.strip() != NULL_TEXT for t in self.texts], bool)[self._text_id]
        kept = [(e, np.flatnonzero(played[e.start : e.start + e.length])) for e in dataset.episodes]
        if not any(frames.size for _, frames in kept):
            raise ValueError(f"{dataset.root}: every frame's {text} is {NULL_TEXT!r}; there is nothing to play")
        if schedule != "reference":  # there, an episode without frames keeps its place in the shuffle
            kept = [(e, frames) for e, frames in kept if frames.size]
        self._episodes = [e for e, _ in kept]
        self._row_start = np.array([e.start for e in self._episodes])
        self._row_last = np.array([e.start + e.length - 1 for e in self._episodes])
        self._episode_index = np.array([e.index for e in self._episodes], np.int32)
        self._kept_rows = np.concatenate([e.start + frames for e, frames in kept])
        self._kept_length = np.array([frames.size for _, frames in kept])
        self._kept_start = np.cumsum(self._kept_length) - self._kept_length
        return [frames for _, frames in kept]

    def _load_vectors(self, normalizer: Normalizer | None) -> None:
        check_needed(self.dataset, subtasks=False)
        robot = normalizer.robot if normalizer else robot_of(self.dataset)
        check_robot(self.dataset, robot)
        state = robot.state.wrapped(self.dataset.column("observation.state").astype(np.float32))
        action = robot.action.wrapped(self.dataset.column("action").astype(np.float32))
        self._state = normalizer.state.normalize(state) if normalizer else state
        self._actions: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of frames [T], at rows [T, C]
        if robot.delta:
            assert normalizer is not None
            self._actions = lambda rows, ahead: normalizer.action.normalize(
                robot.differences(action[ahead], state[rows])
            )
        else:  # as all chunks have them
            same = normalizer.action.normalize(action) if normalizer else action
            self._actions = lambda rows, ahead: same[ahead]
        has_ends = "subtask_end" in self.dataset.features
        ends = self.dataset.column("subtask_end") if has_ends else np.zeros(len(state))
        self._subtask_end = ends.astype(np.int32)

    def _make_schedule(
        self, name: str, workers: int
    ) -> tuple[LaneSchedule | ShuffledSchedule | ReferenceSchedule, str]:
        """Return the schedule, and what a saved position must know of it."""
        mixture = self.dataset if isinstance(self.dataset, Mixture) else None
        self._walks = name != "shuffled"  # frames follow one another
        if name in ("interleaved", "shuffled"):
            made = LaneSchedule if self._walks else ShuffledSchedule
            if mixture is None:
                return made(self._kept_length, self.lanes, self.seed), f"{name}-1"
            group = mixture.group[self._episode_index]
            for number, dataset in enumerate(mixture.datasets):
                if number not in group:
                    raise ValueError(f"{dataset.root}: every frame is {NULL_TEXT!r}; take it out of the mixture")
            schedule = made(self._kept_length, self.lanes, self.seed, group, mixture.weights)
            return schedule, f"{name}-1 {' '.join(f'{weight:.9g}' for weight in mixture.weights)}"
        if name != "reference":
            raise ValueError(f'schedule is {name!r}; expected "interleaved", "shuffled" or "reference"')
        if mixture is not None:
            raise ValueError('schedule="reference" plays one dataset, not a mixture')
        schedule = ReferenceSchedule(self._kept_length, self._episode_index, self.lanes, workers, self.seed)
        return schedule, f"reference-1 workers={workers}"

    def _play(self, stream: int, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Pictures]:
        """Return (pass, episode, offset among its played frames), int64 [T], and pictures uint8 [T, H, W, 3]."""
        passes, episode, offset = self.schedule.locate(stream, ticks)
        pictures = self._pictures.empty(len(ticks))
        for run in _runs(passes):
            a = run.start
            try:
                self._pictures.read(stream, int(episode[a]), int(offset[a]), _cut(pictures, run))
            except DamagedEpisodeError:
                part = (passes[run], episode[run], offset[run], _cut(pictures, run))
                self._substitute(stream, int(ticks[a]), *part)
        return passes, episode, offset, pictures

    def _substitute(
        self, stream: int, tick: int, passes: np.ndarray, episode: np.ndarray, offset: np.ndarray, pictures: Pictures
    ) -> None:
        """Overwrite a run of one pass, starting at `tick`, by what is played in a damaged episode's place."""
        damaged, number = int(episode[0]), int(passes[0])
        begin = tick - int(offset[0])  # of the pass, on the lane's clock
        # Whole windows are replaced, for the first of them may have been asked for alone.
        first = (begin + self._pictures.readable(damaged)) // self.frames * self.frames
        place, done = tick - max(begin, first), 0  # frames of stand-ins played before, and written now
        for k, other in enumerate(self._stand_ins(number)):
            length = int(self._kept_length[other])
            if place < length:
                count = min(length - place, len(passes) - done)
                run = slice(done, done + count)
                self._pictures.read(stream, other, place, _cut(pictures, run))
                passes[run], episode[run] = number + _SUBSTITUTE_PASS + k, other
                offset[run] = place + np.arange(count)
                done += count
                if done == len(passes):
                    return
            place = max(0, place - length)  # this one was over before: the next stands where it ended

    def _earlier(self, stream: int, passes: np.ndarray, episode: np.ndarray, offset: np.ndarray) -> Element:
        """The history of frames at `offset` of their episodes.

        Each offset has streams of its own, whose readers walk forward behind those of the frames themselves.
        """
        pictures = self._pictures.empty(len(passes), len(self._history))
        valid = np.zeros((len(passes), len(self._history)), bool)
        for k, back in enumerate(self._history):
            own = stream + (k + 1) * self.schedule.streams
            for run in _runs(passes):  # history ends where the episode begins
                place = offset[run] * 0 if back == "first" else offset[run] + back
                valid[run, k] = place >= 0
                known = slice(run.start + int(np.sum(place < 0)), run.stop)
                if known.start == known.stop:
                    continue
                count = 1 if back == "first" else known.stop - known.start
                read = self._pictures.empty(count)
                self._pictures.read(own, int(episode[run.start]), max(0, int(place[0])), read)
                for camera, of in pictures.items():
                    of[known, k] = read[camera]
        for of in pictures.values():
            of[~valid] = 0
        return {"history": pictures, "history_valid": valid}

    def _stand_ins(self, number: int) -> Iterator[int]:
        """Yield the wholly readable episodes in the order drawn for one pass, over and over."""
        order = random(self.seed, number, SUBSTITUTE).permutation(len(self._episodes)).tolist()
        while True:
            whole = False
            for e in order:
                if self._kept_length[e] and self._pictures.readable(e) == self._kept_length[e]:
                    whole = True
                    yield e
            if not whole:
                first = next(iter(self.damaged.items()))
                raise ValueError(
                    f"{self.dataset.root}: no episode can be read to its end; episode {first[0]}, {first[1]}"
                )

    def _adjust(self, step: int, lane: int, element: Element) -> None:
        if self._jitter is None:
            return
        rng = random(self.seed, step * self.lanes + lane, JITTER)
        for camera, pictures in element["images"].items():
            factors = self._jitter.draw(rng, self.frames)
            for t, f in enumerate(factors):
                pictures[t] = adjust_colors(pictures[t], f)
                for earlier in element["history"][camera][t] if self._history else ():
                    earlier[:] = adjust_colors(earlier, f)


def _runs(passes: np.ndarray) -> list[slice]:
    """The runs of equal passes."""
    cuts = [0, *(np.flatnonzero(np.diff(passes)) + 1).tolist(), len(passes)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def _cut(pictures: Pictures, run: slice) -> Pictures:
    return {camera: of[run] for camera, of in pictures.items()}
