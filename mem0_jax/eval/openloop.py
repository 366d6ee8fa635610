"""Open-loop evaluation: a policy watches recorded episodes and says what it would have done.

Frames are shown in order, many episodes side by side. Memory starts empty with each episode and, where the policy is
told subtasks, with each of them, as in deployment with a faultless planner: a subtask ends where its text changes, or
where the label `subtask_end` falls.
Frames whose text is "null" are left out, as in training.

Axis letters: K sampled chunks, C action chunk length, D numbers of the state or of an action, F frames shown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mem0_jax.data.cameras import find_camera
from mem0_jax.data.lanes import NULL_TEXT
from mem0_jax.data.pictures import EpisodeDataset, open_frames
from mem0_jax.data.robot import RMBENCH, Robot, check_robot
from mem0_jax.data.transforms import action_chunk
from mem0_jax.errors import UserError
from mem0_jax.eval.lockstep import ROWS
from mem0_jax.inference.engine import Engine, Request
from mem0_jax.policies.bundle import Bundle
from mem0_jax.units import counted

STILL = 1e-6  # joints whose recorded actions vary less are not judged


@dataclass
class Replay:
    """What was predicted and what was recorded, in the robot's units.

    Attributes:
        predicted, recorded: float32 [K, C, D] action chunks.
        is_pad: bool [K, C]: the episode had ended.
        state: float32 [K, D] where the robot was.
        episode, frame: int [K] of the chunks.
        probability: float [F] of the end of the subtask; label: int [F], empty where the dataset has none.
        robot: whose numbers they are.
    """

    predicted: list[np.ndarray] = field(default_factory=list)
    recorded: list[np.ndarray] = field(default_factory=list)
    is_pad: list[np.ndarray] = field(default_factory=list)
    state: list[np.ndarray] = field(default_factory=list)
    episode: list[int] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)
    probability: list[float] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    robot: Robot = RMBENCH


@dataclass(frozen=True)
class _Tables:
    """The low-dimensional columns of a dataset."""

    state: np.ndarray
    action: np.ndarray
    text: np.ndarray
    texts: list[str]
    end: np.ndarray | None
    staged: bool

    @classmethod
    def of(cls, dataset: EpisodeDataset, robot: Robot, key: str) -> "_Tables":
        check_robot(dataset, robot)
        text, texts = dataset.texts(key)
        end = dataset.column("subtask_end") if "subtask_end" in dataset.features else None
        state, action = (dataset.column(key).astype(np.float32) for key in ("observation.state", "action"))
        return cls(state, action, text, texts, end, key == "subtask")


class _Lane:
    """One episode being shown."""

    def __init__(self, tables: _Tables, readers: Sequence[Any], episode: Any):
        rows = np.arange(episode.start, episode.start + episode.length)
        null = [i for i, text in enumerate(tables.texts) if text == NULL_TEXT]
        self.frames = np.flatnonzero(~np.isin(tables.text[rows], null))
        self.episode, self.rows, self._readers, self.shown = episode, rows, readers, 0
        text = tables.text[rows][self.frames]
        begins = np.concatenate([[True], text[1:] != text[:-1]])[: len(text)]
        if tables.end is not None and tables.staged:
            end = tables.end[rows][self.frames]
            begins[1:] |= (end[:-1] > 0) & (end[1:] == 0)
        self.begins = begins

    @property
    def over(self) -> bool:
        """All of it was shown."""
        return self.shown >= len(self.frames)

    @property
    def frame(self) -> int:
        """Number of the present frame in its episode."""
        return int(self.frames[self.shown])

    def pictures(self) -> list[np.ndarray]:
        """The present frame, uint8 [height, width, 3] of each camera."""
        now = self.frames[self.shown : self.shown + 1]
        return [reader.read_frames(self.episode, now)[0] for reader in self._readers]


def trained_text(bundle: Bundle, dataset: EpisodeDataset) -> str:
    """Key of what the policy was told in training; where that is not known "subtask" if the dataset has one, else
    "task". Raises UserError: the dataset has no such text."""
    text = bundle.inputs.text or ("subtask" if "subtask" in dataset.features else "task")
    if text != "task" and text not in dataset.features:
        raise UserError(
            f"{dataset.root}: the policy was trained on the text {text!r}, which this dataset has not; name another "
            "with --text"
        )
    return text


def trained_cameras(bundle: Bundle, dataset: EpisodeDataset) -> tuple[str, ...]:
    """Keys of the dataset's cameras that the policy was trained on, by name. Raises UserError: one is missing."""
    cameras = [key for key, value in dataset.features.items() if value["dtype"] in ("video", "image")]
    found = [find_camera(cameras, camera.feature) for camera in bundle.inputs.cameras]
    for key, camera in zip(found, bundle.inputs.cameras):
        if key is None:
            raise UserError(
                f"{dataset.root}: the policy was trained on {camera.feature!r}, which this dataset has not; its "
                f"cameras are {cameras}. Name one that shows the same with --camera"
            )
    return tuple(key for key in found if key is not None)


def replay(
    bundle: Bundle,
    dataset: EpisodeDataset,
    episodes: Sequence[Any],
    *,
    cameras: Sequence[str] = (),
    text: str = "",
    every: int = 1,
    seed: int = 0,
    parallel: int = ROWS,
    progress: Callable[[int], Any] = lambda frames: None,
) -> Replay:
    """Shows episodes to a policy.

    Args:
        bundle: the policy.
        dataset: where the episodes are from.
        episodes: entries of `dataset.episodes`.
        cameras: keys of the pictures; none: see `trained_cameras`.
        text: key of what the policy is told, as it was trained; "": see `trained_text`.
        every: a chunk is sampled at every so many frames of an episode.
        seed: of the sampling, with the episode's number and the frame; results do not depend on `parallel`.
        parallel: episodes side by side.
        progress: called with the frames shown since the last call.

    Raises:
        UserError: features that are missing or have another shape, unknown camera, damaged pictures.
    """
    if every < 1 or parallel < 1 or not episodes:
        raise UserError(f"expected at least one episode, one at a time, every frame; got {len(episodes)} episodes")
    try:
        cameras = cameras or trained_cameras(bundle, dataset)
        if len(cameras) != len(bundle.inputs.cameras):
            raise UserError(f"the policy has {len(bundle.inputs.cameras)} cameras, got {', '.join(cameras)}")
        for camera in cameras:
            dataset.image_shape(camera)
        tables = _Tables.of(dataset, bundle.inputs.robot, text or trained_text(bundle, dataset))
        engine = Engine(bundle, parallel, rows=ROWS)
        found = Replay(robot=bundle.inputs.robot)
        waiting = iter(episodes)
        lanes: dict[int, _Lane] = {}
        readers = [[open_frames(dataset, camera) for camera in cameras] for _ in range(parallel)]
        while _fill(lanes, waiting, readers, tables):
            _show(engine, bundle, lanes, tables, every, seed, found)
            progress(len(lanes))
            lanes = {slot: lane for slot, lane in lanes.items() if not lane.over}
        for reader in (reader for several in readers for reader in several):
            reader.close()
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    if not found.predicted:
        raise UserError(f"{dataset.root}: every frame of the chosen episodes is {NULL_TEXT!r}")
    return found


def _fill(lanes: dict[int, _Lane], waiting: Iterator[Any], readers: Sequence[Sequence[Any]], tables: _Tables) -> bool:
    """Puts the next episodes into free lanes; False: nothing is left."""
    for slot, own in enumerate(readers):
        while slot not in lanes and (episode := next(waiting, None)) is not None:
            lane = _Lane(tables, own, episode)
            if not lane.over:
                lanes[slot] = lane
    return bool(lanes)


def _show(
    engine: Engine, bundle: Bundle, lanes: dict[int, _Lane], tables: _Tables, every: int, seed: int, found: Replay
) -> None:
    """The next frame of every lane."""
    spec, transform = bundle.policy.spec, bundle.transform
    requests = []
    for slot, lane in lanes.items():
        row, decide = lane.rows[lane.frame], lane.shown % every == 0
        rng = np.random.default_rng([seed, lane.episode.index, lane.frame])
        seen = transform.recorded(lane.pictures(), tables.state[row])
        requests.append(
            Request(
                slot,
                tuple(image[None] for image in seen.images),
                tables.texts[tables.text[row]],
                bool(lane.begins[lane.shown]),
                seen.state if decide else None,
                spec.draw(rng) if decide else None,
            )
        )
    for lane, reply in zip(lanes.values(), engine.step(requests)):
        row = lane.rows[lane.frame]
        found.probability.append(reply.end_probability)
        if tables.end is not None:
            found.label.append(int(tables.end[row] > 0))
        if reply.chunk is not None:
            recorded, is_pad = action_chunk(tables.action[lane.rows], lane.frame, spec.horizon)
            found.predicted.append(transform.chunk(reply.chunk, tables.state[row]))
            found.recorded.append(recorded)
            found.is_pad.append(is_pad)
            found.state.append(tables.state[row])
            found.episode.append(lane.episode.index)
            found.frame.append(lane.frame)
        lane.shown += 1


def measure(found: Replay, threshold: float) -> dict[str, Any]:
    """Errors and classifier quality as JSON values.

    `joints`: for each number of the action that moves in the recording its mean absolute error at every offset into the
    chunk, and that of holding still where the state has a number of that name (else None), in the robot's units.
    `classifier`: precision, recall and F1 at the threshold and at others, average precision; None where the dataset has
    no positive label. `broken`: how much of what the policy said is not finite, in words; "" where all of it is.
    """
    predicted, recorded = np.stack(found.predicted), np.stack(found.recorded)
    valid, state = ~np.stack(found.is_pad), np.stack(found.state)
    names, own = found.robot.action.names, found.robot.state.names
    held_at = np.stack([state[:, own.index(n)] if n in own else np.full(len(state), np.nan) for n in names], 1)
    apart = found.robot.action.wrapped
    error, still = np.abs(apart(predicted - recorded)), np.abs(apart(held_at[:, None] - recorded))
    moving = np.flatnonzero(np.ptp(recorded.reshape(-1, recorded.shape[-1]), axis=0) > STILL)
    weight = np.maximum(valid.sum(0), 1)[:, None]
    by_offset, held = ((values * valid[..., None]).sum(0) / weight for values in (error, still))  # [C, D]
    reached = [bool(column.any()) for column in valid.T]
    joints = [
        {
            "name": names[i],
            "mae": float(error[valid][:, i].mean()),
            "mae_hold": float(still[valid][:, i].mean()) if names[i] in own else None,
            "mae_by_offset": [float(v) if ok else None for v, ok in zip(by_offset[:, i], reached)],
            "mae_hold_by_offset": [float(v) if ok and names[i] in own else None for v, ok in zip(held[:, i], reached)],
        }
        for i in moving.tolist()
    ]
    episode = np.array(found.episode)
    episodes = [
        {
            "index": int(index),
            "chunks": int((episode == index).sum()),
            "mae": _mean(error[episode == index][valid[episode == index]][:, moving]),
        }
        for index in sorted(set(found.episode))
    ]
    return {
        "chunks": len(predicted),
        "frames": len(found.probability),
        "horizon": predicted.shape[1],
        "broken": _broken(predicted, np.array(found.probability)),
        "mae": _mean(error[valid][:, moving]),
        "mae_hold": _mean(still[valid][:, [i for i in moving if names[i] in own]]),
        "joints": joints,
        "episodes": episodes,
        "classifier": classifier(np.array(found.probability), np.array(found.label), threshold),
    }


def _broken(predicted: np.ndarray, probability: np.ndarray) -> str:
    parts = []
    for values, what in ((predicted, "sampled chunk"), (probability, "judged frame")):
        lost = ~np.isfinite(values).all(tuple(range(1, values.ndim)))
        if lost.any():
            parts.append(f"{lost.sum():,} of {counted(len(values), what)}")
    return f"NaN or infinite: {' and '.join(parts)}; what is computed with them means nothing." if parts else ""


def classifier(probability: np.ndarray, label: np.ndarray, threshold: float) -> dict[str, Any] | None:
    """Quality of end-of-subtask probabilities [F] against labels [F] in {0, 1}; None without a positive label."""
    if not label.any():
        return None
    thresholds = sorted({*np.round(np.linspace(0.05, 0.95, 19), 2).tolist(), threshold})
    order = np.argsort(-probability, kind="stable")
    ranked = label[order]
    last = np.concatenate([np.diff(probability[order]) != 0, [True]])  # equal probabilities count as one step
    precision, recall = np.cumsum(ranked)[last] / (np.flatnonzero(last) + 1), np.cumsum(ranked)[last] / label.sum()
    return {
        "positives": int(label.sum()),
        "frames": len(label),
        "at_threshold": _at(probability, label, threshold),
        "curve": [_at(probability, label, value) for value in thresholds],
        "average_precision": float((np.diff(recall, prepend=0) * precision).sum()),
    }


def _at(probability: np.ndarray, label: np.ndarray, threshold: float) -> dict[str, float | None]:
    said = probability >= threshold
    hits = int((said & (label > 0)).sum())
    precision = hits / said.sum() if said.any() else None
    recall = hits / label.sum()
    f1 = 2 * hits / (said.sum() + label.sum())
    return {
        "threshold": threshold,
        "precision": None if precision is None else float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
