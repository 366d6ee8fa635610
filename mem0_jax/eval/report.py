"""The report of a comparison with and without memory: report.html, report.json and hero.png in one folder.

``Results`` is what an experiment hands over; ``write_report`` turns it into files that need nothing else to be read:
figures, pictures and videos are inside the one HTML file.

Axes: E episodes, N logged training steps, T frames of a video, M frames in the memory window, H height, W width.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.disk import write_whole
from mem0_jax.eval.statistics import difference_interval, wilson_interval


@dataclass(frozen=True)
class Curve:
    """Training losses, each float [N]; ``step`` counts optimizer steps and increases.

    ``classifier_loss`` is that of the subtask-end classifier. Values that were not measured are NaN.
    """

    step: np.ndarray
    loss: np.ndarray
    action_loss: np.ndarray
    classifier_loss: np.ndarray

    def __post_init__(self):
        shapes = {name: np.shape(value) for name, value in vars(self).items()}
        if len(set(shapes.values())) != 1 or np.ndim(self.step) != 1 or not len(self.step):
            raise ValueError(f"Curve: expected vectors of one length >= 1, got shapes {shapes}")
        if not (np.diff(self.step) > 0).all():
            raise ValueError("Curve.step: expected increasing step numbers")


@dataclass(frozen=True)
class Video:
    """One rollout: ``frames`` uint8 [T, H, W, 3] RGB at ``fps``, what it shows in a few words, and how it ended."""

    frames: np.ndarray
    caption: str
    success: bool
    fps: float = 15.0

    def __post_init__(self):
        _check_pictures("Video.frames", self.frames)
        if not 0 < self.fps <= 240:
            raise ValueError(f"Video.fps: expected frames per second between 0 and 240, got {self.fps}")


@dataclass(frozen=True)
class Side:
    """One side of the comparison.

    Attributes:
      success: [E] the task was solved.
      placed: [E] a choice among the alternatives was made.
      placed_right: [E] it was the right one; implies ``placed``.
      curve: its training.
      videos: some of the rollouts. Those of both sides are shown side by side in order, so give the same seeds.
    """

    success: tuple[bool, ...]
    placed: tuple[bool, ...]
    placed_right: tuple[bool, ...]
    curve: Curve
    videos: tuple[Video, ...] = ()

    def __post_init__(self):
        lengths = {len(self.success), len(self.placed), len(self.placed_right)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"Side: expected as many success, placed and placed_right, at least one; got {lengths}")
        if any(right and not placed for right, placed in zip(self.placed_right, self.placed)):
            raise ValueError("Side.placed_right: an episode cannot have placed right without having placed")


@dataclass(frozen=True)
class Attention:
    """What the policy with memory looked at when it decided.

    Attributes:
      frames: uint8 [M, H, W, 3] the frames in the window, oldest first.
      weights: float [M] their attention weights, mean over heads; they sum to 1.
      anchor: uint8 [H, W, 3] the frame kept as anchor.
      current: uint8 [H, W, 3] the frame at the moment of the decision.
      step: number of that frame in its episode.
      ages: [M] how many frames before the decision each was seen; by default M, ..., 1.
    """

    frames: np.ndarray
    weights: np.ndarray
    anchor: np.ndarray
    current: np.ndarray
    step: int
    ages: tuple[int, ...] = ()

    def __post_init__(self):
        _check_pictures("Attention.frames", self.frames)
        _check_pictures("Attention.anchor", np.asarray(self.anchor)[None])
        _check_pictures("Attention.current", np.asarray(self.current)[None])
        weights = np.asarray(self.weights, np.float64)
        if weights.shape != (len(self.frames),) or not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-2:
            raise ValueError(f"Attention.weights: expected {len(self.frames)} weights >= 0 with sum 1, got {weights}")
        if self.ages and len(self.ages) != len(self.frames):
            raise ValueError(f"Attention.ages: expected {len(self.frames)} values, got {len(self.ages)}")


@dataclass(frozen=True)
class Facts:
    """What was run.

    Attributes:
      task: its name, such as ``put_back_block``.
      instruction: what the policy was told.
      chance: probability of the right choice when the alternatives cannot be told apart.
      parameters: trained parameters of the policy.
      steps: optimizer steps of each side.
      frames_per_second: training frames a second.
      wall_seconds: phase -> seconds, in order.
      seeds: what for -> seeds in words, such as ``{"evaluation": "10000 to 10099"}``.
      command: how to run it again.
      software: name -> version or description, such as ``{"jax": "0.10.2", "machine": "2 CPU cores"}``.
    """

    task: str
    instruction: str
    chance: float
    parameters: int
    steps: int
    frames_per_second: float
    wall_seconds: Mapping[str, float]
    seeds: Mapping[str, str]
    command: str
    software: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 <= self.chance <= 1:
            raise ValueError(f"Facts.chance: expected a probability, got {self.chance}")


@dataclass(frozen=True)
class Results:
    """The whole comparison; both sides played the same episodes, on seeds that training never saw."""

    with_memory: Side
    without_memory: Side
    facts: Facts
    attention: Attention | None = None

    def __post_init__(self):
        counts = len(self.with_memory.success), len(self.without_memory.success)
        if counts[0] != counts[1]:
            raise ValueError(f"Results: expected as many episodes with and without memory, got {counts}")


def write_report(out_dir: str | os.PathLike[str], results: Results) -> dict[str, Any]:
    """Writes hero.png, report.html and, last, report.json into ``out_dir``, each whole or not at all.

    Returns:
      What report.json holds: see ``summarize``.

    Raises:
      OSError: the folder cannot be written.
    """
    from mem0_jax.eval.report_html import page
    from mem0_jax.eval.report_pictures import hero

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    summary = summarize(results)
    files = {
        "hero.png": hero(results, summary),
        "report.html": page(results, summary).encode(),
        "report.json": (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode(),
    }
    for name, content in files.items():
        write_whole(out / name, content)
    return summary


def summarize(results: Results) -> dict[str, Any]:
    """The numbers of a report as JSON values.

    For each side (``with_memory``, ``without_memory``): ``success_SIDE`` and ``right_given_placed_SIDE`` are rates
    (None if nothing was placed), ``*_counts`` are [number, out of], ``*_interval`` the 95 % Wilson interval,
    ``curve_SIDE`` the training losses. ``success_difference_interval`` is Newcombe's. The rest repeats ``Facts``.
    """
    summary: dict[str, Any] = {}
    for name in ("with_memory", "without_memory"):
        side: Side = getattr(results, name)
        counts = {
            "success": (sum(map(bool, side.success)), len(side.success)),
            "placed": (sum(map(bool, side.placed)), len(side.placed)),
            "right_given_placed": (sum(map(bool, side.placed_right)), sum(map(bool, side.placed))),
        }
        for what, (number, total) in counts.items():
            summary[f"{what}_{name}"] = number / total if total else None
            summary[f"{what}_{name}_counts"] = [number, total]
            summary[f"{what}_{name}_interval"] = list(wilson_interval(number, total))
        summary[f"curve_{name}"] = {key: _plain(values) for key, values in vars(side.curve).items()}
    first, second = summary["success_with_memory_counts"], summary["success_without_memory_counts"]
    facts = results.facts
    return {
        "task": facts.task,
        "instruction": facts.instruction,
        "episodes": len(results.with_memory.success),
        "chance": facts.chance,
        "steps": facts.steps,
        "parameters": facts.parameters,
        "frames_per_second": facts.frames_per_second,
        "wall_seconds": sum(facts.wall_seconds.values()),
        "wall_seconds_by_phase": dict(facts.wall_seconds),
        "seeds": dict(facts.seeds),
        "command": facts.command,
        "software": dict(facts.software),
        "success_difference": (first[0] - second[0]) / first[1],
        "success_difference_interval": list(difference_interval(tuple(first), tuple(second))),
        **summary,
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which has no NaN; whole ones stay whole."""
    return [value if math.isfinite(value) else None for value in np.asarray(values).tolist()]


def _check_pictures(name: str, pictures: Any) -> None:
    shape, dtype = np.shape(pictures), np.asarray(pictures).dtype
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape or dtype != np.uint8:
        raise ValueError(f"{name}: expected uint8 pictures [number, height, width, 3], got {dtype} {list(shape)}")
