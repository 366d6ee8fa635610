"""Settings of a training run: plain values, no JAX."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from mem0_jax.errors import UserError, did_you_mean
from mem0_jax.family import Preset

SCHEDULES = ("cosine", "constant")


class SettingsError(UserError, ValueError):
    """Settings that are impossible, or do not fit the policy; the message lists all of them."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with one learning rate a group; the defaults are the reference's.

    Attributes:
        learning_rates: group -> highest learning rate; exactly the groups the policy declares, see `check_groups`.
        floors: group -> learning rate at the start of the warm-up and at the end of the schedule, for the same groups;
            or empty: 0 for all.
        total_steps: length of the schedule in steps.
        warmup_ratio: the part of `total_steps`, rounded down to whole steps, spent rising linearly from the floor.
        schedule: after the warm-up, "cosine" falls to the floor at `total_steps`, "constant" stays.
        weight_decay: decoupled; each step takes learning rate * weight_decay of every trained leaf.
        no_decay: regexes of whole paths of leaves that do not decay.
        clip_norm: greatest global gradient norm; 0 clips nothing.
        b1, b2, eps: as AdamW names them.
    """

    learning_rates: Mapping[str, float]
    total_steps: int
    floors: Mapping[str, float] = field(default_factory=dict)
    warmup_ratio: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.005
    no_decay: tuple[str, ...] = ()
    clip_norm: float = 2.5
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        problems = []
        if self.schedule not in SCHEDULES:
            problems.append(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
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


def check_groups(learning_rates: Iterable[str], groups: Iterable[str]) -> None:
    """Raises SettingsError: learning rates name other groups than the policy's."""
    given, wanted = set(learning_rates), set(groups)
    problems = [f"{group!r} is no group of the policy{did_you_mean(group, wanted)}" for group in sorted(given - wanted)]
    problems += [f"{group!r} has none" for group in sorted(wanted - given)]
    if problems:
        raise SettingsError(
            f"learning_rates: {'; '.join(problems)}: give each of the policy's groups {sorted(wanted)} a learning "
            "rate, and no other"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OptimizerConfig):
    """One training run.

    Attributes:
        steps: batches to train on, at most `total_steps`, which is the same where it is 0.
        lanes: episodes walked side by side, the first axis of a batch.
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

    learning_rates: Mapping[str, float] = field(default_factory=dict)
    total_steps: int = 0
    steps: int
    lanes: int
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    bfloat16: tuple[str, ...] = ()
    ema_decay: float = 0.0
    seed: int = 42
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    validate_every: int = 0
    keep_best: int = 0
    metrics_window: int = 20
    watchdog_seconds: float = 600.0
    profile_at: int = 0
    profile_steps: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected at least 1, got {getattr(self, name)}"
            for name in ("steps", "accumulate", "log_every", "save_every", "keep", "metrics_window")
            if getattr(self, name) < 1
        ]
        problems += [
            f"{name}: expected a number >= 0, got {getattr(self, name)}"
            for name in ("lanes", "validate_every", "keep_best", "watchdog_seconds", "profile_at", "profile_steps")
            if not getattr(self, name) >= 0
        ]
        if not 0 <= self.ema_decay < 1:
            problems.append(f"ema_decay: expected a number in [0, 1), got {self.ema_decay}")
        if self.keep_best and not self.validate_every:
            problems.append("keep_best: needs validate_every, which is 0")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed: expected an integer in [0, 2**32), got {self.seed}")
        if 0 < self.total_steps < self.steps:
            problems.append(
                f"steps: {self.steps} is beyond the end of the learning-rate schedule "
                f"(total_steps = {self.total_steps})"
            )
        if problems:
            raise SettingsError("training settings: " + "; ".join(problems))
        self.optimizer  # noqa: B018  # which is checked, too

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer's part alone."""
        own = _part(self, OptimizerConfig)
        return OptimizerConfig(**{**own, "total_steps": self.total_steps or self.steps})

    def settings(self) -> dict[str, Any]:
        """What checkpoints keep of it, in JSON values."""
        optimizer = asdict(self.optimizer)
        if not self.no_decay:  # the first runs could not choose: they go on
            del optimizer["no_decay"]
        loop = {name: value for name, value in _part(self, TrainConfig).items() if name not in (*optimizer, "no_decay")}
        return json.loads(json.dumps(loop | {"optimizer": optimizer}))


def _part(settings: Any, of: type) -> dict[str, Any]:
    """The fields of a class that settings are made of."""
    return {entry.name: getattr(settings, entry.name) for entry in fields(of)}


@dataclass(frozen=True)
class LoraConfig:
    """Which kernels are adapted, and how.

    Attributes:
        rank: R.
        alpha: the product of the factors counts alpha / rank.
        kernels: regexes of whole paths of kernels [..., I, O]; empty: those of the preset.
    """

    rank: int = 16
    alpha: float = 32.0
    kernels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise SettingsError(f"lora: expected rank >= 1 and alpha > 0, got {self.rank} and {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainConfig):
    """How a job trains: the settings of the run, and what presets and precisions of the model say of them.

    Attributes:
        batch_size: frames of a step over all devices: lanes x consecutive frames of each.
        lanes: episodes side by side; 0 takes the hardware's lanes a device times its devices.
        learning_rates: empty: those of the policy's family, floors and no_decay too.
        preset: what is trained, a name of the family's presets: "full" is everything; "lora" means low-rank factors of
            the kernels that `lora` names, too.
        precision: "mixed" computes in bfloat16 on float32 weights (bfloat16 where they are frozen); "reference" keeps
            weights in bfloat16 as the policy's reference does; "float32" does everything in float32.
        lora: see `LoraConfig`.
        freeze: further parameters not to train; bfloat16: further ones to be kept so.
        log_to: "tensorboard", "wandb", besides the log's own files.
        project: of Weights & Biases.
    """

    steps: int = 30000
    batch_size: int = 448
    lanes: int = 0
    preset: str = "full"
    precision: Literal["mixed", "reference", "float32"] = "mixed"
    lora: LoraConfig = field(default_factory=LoraConfig)
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    project: str = "mem0_jax"

    def config(self, **changes: Any) -> TrainConfig:
        """The settings of the run, with changes."""
        return TrainConfig(**_part(self, TrainConfig) | changes)

    def chosen(self, presets: Mapping[str, Preset]) -> Preset:
        """The preset. Raises SettingsError: there is none of that name."""
        if self.preset not in presets:
            raise SettingsError(f"train.preset: expected one of {', '.join(map(repr, presets))}, got {self.preset!r}")
        return presets[self.preset]

    def adaptation(self, presets: Mapping[str, Preset]) -> LoraConfig | None:
        """The low-rank factors, where the preset trains some."""
        kernels = self.chosen(presets).lora
        return replace(self.lora, kernels=self.lora.kernels or kernels) if kernels else None
