"""What `mem0-jax plan train` is asked to do: plain settings, as the files in `configs/` give them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mem0_jax.backbones.chat import PixelBounds
from mem0_jax.config import to_dict
from mem0_jax.distributed.hardware import HARDWARE
from mem0_jax.family import NO_FACTOR, Preset, chat_family
from mem0_jax.planner.policy import GROUP, PlannerConfig
from mem0_jax.planner.prompt import MAX_PIXELS
from mem0_jax.train.config import LoraConfig, SettingsError, TrainConfig, TrainSettings

_ADAPTED, _VISION = (rf"{NO_FACTOR}.*",), (r"visual/.*",)
PRESETS = {
    "lora": Preset(_ADAPTED, _ADAPTED, (r"language_model/layers/.*_proj/kernel",)),
    "full": Preset(_VISION, _VISION),
}
NOT_A_PLANNERS = ("batch_size", "lanes", "learning_rates", "floors", "total_steps", "validate_every", "keep_best")


@dataclass(frozen=True)
class PlannerData:
    """What is trained on.

    Attributes:
        questions: folders that `mem0-jax plan prepare` wrote.
        tokenizer: a tokenizer.json, "words" for one made from the questions' texts, or "" for that of `init_from`.
        images: sizes that images are resized to; the planner keeps them.
        cutoff: tokens of a row, answer included; a longer one is an error.
        cache_gib: memory for decoded images; beyond it they are decoded anew in each pass.
        threads: that load; -1 is one a processor. prefetch: batches held ready.
        seed: of the rows' order.
    """

    questions: tuple[str, ...]
    tokenizer: str = ""
    images: PixelBounds = field(default_factory=PixelBounds)
    cutoff: int = 2048
    cache_gib: float = 1.0
    threads: int = -1
    prefetch: int = 2
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.questions:
            raise SettingsError(
                "questions: name at least one folder, such as --config.data.questions=\"('plan/press_button',)\""
            )
        if self.cutoff < 1 or self.cache_gib < 0:
            raise SettingsError("cutoff must be at least 1, cache_gib at least 0")
        if self.images.max_pixels > MAX_PIXELS:
            raise SettingsError(f"images.max_pixels: planners are shown no image of more than {MAX_PIXELS} pixels")


@dataclass(frozen=True, kw_only=True)
class PlannerTraining(TrainSettings):
    """How it is trained; what is not named here is as in `TrainSettings`, but for what `NOT_A_PLANNERS` says.

    Attributes:
        epochs: passes through the rows; steps: batches in place of them, where it is not 0.
        per_device: rows of a step on each device.
        preset: "lora" trains low-rank factors, "full" everything.
        train_vision: with "full", the vision tower and its mergers too.
        learning_rate, floor: of all that is trained.
    """

    epochs: float = 25.0
    steps: int = 0
    batch_size: int = 0
    per_device: int = 16
    preset: str = "lora"
    precision: Literal["mixed", "float32"] = "mixed"
    train_vision: bool = False
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(8, 16.0))
    learning_rate: float = 1e-4
    floor: float = 0.0
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    save_every: int = 500

    def __post_init__(self) -> None:
        if beyond := [name for name in NOT_A_PLANNERS if getattr(self, name)]:
            raise SettingsError(f"train.{beyond[0]}: a planner's training has none; its batches are `per_device` rows")
        if self.steps < 0 or self.epochs <= 0:
            raise SettingsError("train.steps must be at least 0 and train.epochs more than 0")
        self.chosen(PRESETS)


@dataclass(frozen=True)
class PlannerJob:
    """One training job of a planner.

    Attributes:
        model: sizes, taken from `init_from` where there is one; how it is computed.
        init_from: a bundle to start from, of a backbone alone or of a policy; "" starts from random weights.
        hardware: a name of `mem0_jax/distributed/hardware.py`: the mesh.
    """

    data: PlannerData
    model: PlannerConfig = field(default_factory=PlannerConfig)
    train: PlannerTraining = field(default_factory=PlannerTraining)
    init_from: str = ""
    hardware: str = "cpu"

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise SettingsError(f"hardware: expected one of {', '.join(HARDWARE)}, got {self.hardware!r}")
        if not self.data.tokenizer and not self.init_from:
            raise SettingsError(
                "data.tokenizer: without init_from there is none; name a tokenizer.json, or 'words' to make one"
            )
        if self.init_from and self.data.tokenizer:
            raise SettingsError("data.tokenizer: the model of init_from has one of its own; leave it empty")
        if self.train.per_device < 1 or self.train.accumulate < 1 or self.rows % self.train.accumulate:
            raise SettingsError(
                f"train.per_device: {self.rows} rows of a step cannot be cut into {self.train.accumulate} equal parts"
            )

    @property
    def rows(self) -> int:
        """Of a step, over all devices."""
        return self.train.per_device * HARDWARE[self.hardware]["devices"]

    @property
    def lora(self) -> LoraConfig | None:
        """The adaptation, if there is one."""
        return self.train.adaptation(PRESETS)

    @property
    def compute_dtype(self) -> str:
        """Of the model."""
        return "float32" if self.train.precision == "float32" else "bfloat16"

    def steps(self, rows: int) -> int:
        """Batches to train on, of a data set of so many rows."""
        return self.train.steps or max(1, int(self.train.epochs * rows / self.rows))

    def train_config(self, rows: int) -> TrainConfig:
        """The trainer's settings for so many rows."""
        train, preset = self.train, self.train.chosen(PRESETS)
        if train.train_vision and not self.lora:
            preset = Preset()
        return train.config(
            learning_rates={GROUP: train.learning_rate},
            floors={GROUP: train.floor},
            steps=self.steps(rows),
            lanes=self.rows // train.accumulate,
            freeze=(*preset.frozen, *train.freeze),
            bfloat16=(*(preset.bfloat16 if train.precision == "mixed" else ()), *train.bfloat16),
        )

    def settings(self) -> dict[str, Any]:
        """What must not change when a run continues, besides the trainer's own settings; JSON values."""
        model = to_dict(self.model)
        del model["remat"], model["remat_keep"]
        if chat_family(self.model.family).unnamed:  # runs whose jobs could name none have no such entry
            del model["family"]
        lora = {"lora": to_dict(self.lora)} if self.lora else {}
        return {"model": model, "images": to_dict(self.data.images)} | lora
