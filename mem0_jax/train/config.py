"""Settings of a training run: plain values, no JAX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mem0_jax.errors import UserError

SCHEDULES = ("cosine", "constant")


class SettingsError(UserError, ValueError):
    """Settings that are impossible, or do not fit the policy; the message lists all of them."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with one learning rate a group; the defaults are the reference's.

    Attributes:
        learning_rates: group -> highest learning rate; exactly the groups the policy declares.
        floors: group -> learning rate at the start of the warm-up and at the end of the schedule, for the same groups;
            or empty: 0 for all.
        total_steps: length of the schedule in steps.
        warmup_ratio: the part of `total_steps`, rounded down to whole steps, spent rising linearly from the floor.
        schedule: after the warm-up, "cosine" falls to the floor at `total_steps`, "constant" stays.
        weight_decay: decoupled; each step takes learning rate * weight_decay of every trained leaf.
        clip_norm: greatest global gradient norm; 0 clips nothing.
        b1, b2, eps: as AdamW names them.
    """

    learning_rates: Mapping[str, float]
    total_steps: int
    floors: Mapping[str, float] = field(default_factory=dict)
    warmup_ratio: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.005
    clip_norm: float = 2.5
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        problems = []
        if self.schedule not in SCHEDULES:
            problems.append(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not self.learning_rates:
            problems.append("learning_rates: names no group; give one learning rate for each group of the policy")
        if self.floors and set(self.floors) != set(self.learning_rates):
            problems.append(
                f"floors: expected the groups of learning_rates {sorted(self.learning_rates)} or nothing, "
                f"got {sorted(self.floors)}"
            )
        for group, rate in self.learning_rates.items():
            floor = self.floors.get(group, 0.0)
            if not (math.isfinite(rate) and 0 <= floor <= rate):
                problems.append(f"group {group!r}: expected 0 <= floor <= learning rate, got {floor} and {rate}")
        if self.total_steps < 1:
            problems.append(f"total_steps: expected at least 1, got {self.total_steps}")
        problems += [
            f"{name}: expected a number in [0, 1), got {getattr(self, name)}"
            for name in ("warmup_ratio", "b1", "b2")
            if not 0 <= getattr(self, name) < 1
        ]
        problems += [
            f"{name}: expected a finite number >= 0, got {getattr(self, name)}"
            for name in ("weight_decay", "clip_norm")
            if not 0 <= getattr(self, name) < math.inf
        ]
        if not self.eps > 0:
            problems.append(f"eps: expected a number > 0, got {self.eps}")
        if problems:
            raise SettingsError("optimizer settings: " + "; ".join(problems))

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rates rise to their full value."""
        return int(self.total_steps * self.warmup_ratio)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        steps: batches to train on, at most `optimizer.total_steps`.
        lanes: episodes walked side by side, the first axis of a batch.
        optimizer: see `OptimizerConfig`.
        accumulate: parts a batch's frames are cut into; they are computed one after the other, memory carried through.
        freeze: regexes of whole paths of parameters not to train, such as "backbone/.*".
        bfloat16: the same for parameters to be kept in bfloat16 instead of float32.
        ema_decay: of the moving average of the trained parameters; 0 keeps none.
        seed: of the initial parameters and of every random draw of the loss.
        log_every: steps a log row covers.
        save_every: steps between checkpoints; the last step is always saved.
        keep: newest checkpoints kept.
        validate_every: steps between validations, each of which is saved too; 0 never validates.
        keep_best: checkpoints of the lowest validation score kept besides.
        metrics_window: log rows the classifier's accuracy, precision, recall and F1 are counted over.
        watchdog_seconds: a step that takes longer has the stacks of all threads written to `hang.txt`; 0 never.
        profile_at, profile_steps: a trace of so many steps, from that step on, is written to `profile/`; 0 steps: none.
    """

    steps: int
    lanes: int
    optimizer: OptimizerConfig
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    bfloat16: tuple[str, ...] = ()
    ema_decay: float = 0.0
    seed: int = 0
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    validate_every: int = 0
    keep_best: int = 0
    metrics_window: int = 10
    watchdog_seconds: float = 0.0
    profile_at: int = 0
    profile_steps: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected at least 1, got {getattr(self, name)}"
            for name in ("steps", "lanes", "accumulate", "log_every", "save_every", "keep", "metrics_window")
            if getattr(self, name) < 1
        ]
        problems += [
            f"{name}: expected a number >= 0, got {getattr(self, name)}"
            for name in ("validate_every", "keep_best", "watchdog_seconds", "profile_at", "profile_steps")
            if not getattr(self, name) >= 0
        ]
        if not 0 <= self.ema_decay < 1:
            problems.append(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        if self.keep_best and not self.validate_every:
            problems.append("keep_best: needs validate_every, which is 0")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed: expected an integer in [0, 2**32), got {self.seed}")
        if self.steps > self.optimizer.total_steps:
            problems.append(
                f"steps: {self.steps} is beyond the end of the learning-rate schedule "
                f"(optimizer.total_steps = {self.optimizer.total_steps})"
            )
        if problems:
            raise SettingsError("training settings: " + "; ".join(problems))
