"""What `mem0-jax train` is asked to do: plain settings, as the files in `configs/` give them, and what they imply."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mem0_jax.config import to_dict
from mem0_jax.data.cameras import HEAD_CAMERA, camera_name
from mem0_jax.data.normalize import MODES
from mem0_jax.distributed.hardware import HARDWARE
from mem0_jax.policies.mem0 import Mem0Config
from mem0_jax.train.config import OptimizerConfig, SettingsError, TrainConfig
from mem0_jax.train.lora import LoraConfig

WORDS = "words"  # the tokenizer that is made from the dataset's own texts
FACTORS = r"(?!.*/lora_[ab]$)"  # what follows matches no low-rank factor


@dataclass(frozen=True)
class DataSettings:
    """What is trained on.

    Attributes:
        datasets: folders of LeRobot datasets or packed shards; weights: share of episodes of each, default by size.
        text: the feature with the instruction, "subtask", "global_task" or "task".
        cameras: keys of the cameras, in the policy's order; camera: of the only one, where `cameras` is empty.
        camera_size: (height, width) all pictures are resized to; camera_sizes: that of each camera, where they differ.
        resample: for that resize in training, deploy_resample when the policy is deployed.
        jitter: random brightness, contrast and saturation.
        normalization: see `data.normalize`; norm_stats: a norm_stats.json, or "" to measure the training episodes.
        clip: normalised values are clipped to the range; None: by all normalizations but mean_std.
        raw: numbers of the robot that are not normalised, by name or pattern ("*gripper*", then "!left_*" takes some
            out again); () keeps the robot's own: none, but RMBench's grippers.
        periodic: those that are angles and wrap, in radians, or of another period.
        delta: actions that are trained as differences from the state of the same name at the start of their chunk.
        tokenizer: a tokenizer.json, "words" for one made from the texts, or "" for that of `init_from`.
        max_length: tokens of a prompt, padding included.
        held_out: episodes of each dataset that are not trained on but validated on.
        schedule, workers: see `LaneSource`: "shuffled" is for policies that remember nothing.
        strict: stop at the first damaged episode.
        cache_gib: memory for decoded pictures; 0 decodes them anew in each pass.
        threads: that load; -1 is one a processor. prefetch: batches held ready.
        seed: of the order, the jitter and the held-out episodes.
    """

    datasets: tuple[str, ...]
    weights: tuple[float, ...] = ()
    text: str = "subtask"
    camera: str = HEAD_CAMERA
    cameras: tuple[str, ...] = ()
    camera_size: tuple[int, int] = (224, 224)
    camera_sizes: tuple[tuple[int, int], ...] = ()
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    deploy_resample: Literal["bilinear", "bicubic"] = "bicubic"
    jitter: float = 0.1
    normalization: str = "min_max"
    norm_stats: str = ""
    clip: bool | None = None
    raw: tuple[str, ...] = ()
    periodic: tuple[str, ...] = ()
    period: float = 2 * math.pi
    delta: tuple[str, ...] = ()
    tokenizer: str = ""
    max_length: int = 128
    held_out: int = 0
    schedule: Literal["interleaved", "shuffled", "reference"] = "interleaved"
    workers: int = 2
    strict: bool = False
    cache_gib: float = 0.0
    threads: int = -1
    prefetch: int = 2
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.datasets:
            raise SettingsError(
                "datasets: name at least one, such as --config.data.datasets=\"('runs/demo/dataset',)\""
            )
        if self.normalization not in MODES:
            raise SettingsError(f"normalization: expected one of {', '.join(MODES)}, got {self.normalization!r}")
        if not 0 <= self.jitter <= 1:
            raise SettingsError(f"jitter: expected a number in [0, 1], got {self.jitter}")
        if min(self.camera_size) < 1 or self.max_length < 1 or self.held_out < 0 or self.cache_gib < 0:
            raise SettingsError("camera_size and max_length must be at least 1, held_out and cache_gib at least 0")
        if self.camera_sizes and len(self.camera_sizes) != len(self.cameras or (self.camera,)):
            raise SettingsError(f"camera_sizes: expected {len(self.cameras) or 1}, got {len(self.camera_sizes)}")
        names = [camera_name(camera) for camera, _ in self.views]
        if len(set(names)) < len(names) or min(min(size) for _, size in self.views) < 1:
            raise SettingsError("cameras: their names must differ, their sizes be at least 1")

    @property
    def views(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        """Key and size of each camera."""
        cameras = self.cameras or (self.camera,)
        return tuple(zip(cameras, self.camera_sizes or (self.camera_size,) * len(cameras)))


@dataclass(frozen=True)
class Rates:
    """One number for each of Mem-0's learning-rate groups."""

    backbone: float
    action: float
    classifier: float
    memory: float


@dataclass(frozen=True)
class TrainSettings:
    """How it is trained; fields not named here are those of `TrainConfig` and `OptimizerConfig`.

    Attributes:
        batch_size: frames of a step over all devices: lanes x consecutive frames of each.
        lanes: episodes side by side; 0 takes the hardware's lanes a device times its devices.
        preset: what is trained: "full" everything, "action_expert_only" the action head, "lora" low-rank factors of the
            backbone's kernels that `lora` names, with everything that is not the backbone.
        precision: "mixed" computes backbone and memory in bfloat16 on float32 weights (bfloat16 where they are frozen);
            "reference" keeps their weights in bfloat16, as the reference; "float32" does everything in float32.
        lora: see `LoraConfig`.
        freeze: further parameters not to train.
        log_to: "tensorboard", "wandb", besides the log's own files.
        project: of Weights & Biases.
    """

    steps: int = 30000
    batch_size: int = 448
    lanes: int = 0
    accumulate: int = 1
    preset: Literal["full", "action_expert_only", "lora"] = "full"
    precision: Literal["mixed", "reference", "float32"] = "mixed"
    lora: LoraConfig = field(default_factory=LoraConfig)
    learning_rates: Rates = Rates(1e-5, 1e-4, 1e-4, 1e-5)
    floors: Rates = Rates(1e-6, 5e-6, 5e-6, 1e-6)
    schedule: str = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.005
    clip_norm: float = 2.5
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    freeze: tuple[str, ...] = ()
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
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    project: str = "mem0_jax"


@dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        init_from: a bundle to start from, of a policy or of a backbone alone; "" starts from random weights.
        init_optimizer: take over that bundle's optimizer as well, and its place in the schedule, whose whole length is
            `train.steps`: training goes on where the run that was converted stopped.
        hardware: a name of `mem0_jax/distributed/hardware.py`: the mesh, and lanes a device.
    """

    data: DataSettings
    model: Mem0Config = field(default_factory=Mem0Config)
    train: TrainSettings = field(default_factory=TrainSettings)
    init_from: str = ""
    init_optimizer: bool = False
    hardware: str = "cpu"

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise SettingsError(f"hardware: expected one of {', '.join(HARDWARE)}, got {self.hardware!r}")
        if not self.data.tokenizer and not self.init_from:
            raise SettingsError(
                "data.tokenizer: without init_from there is none; name a tokenizer.json, or 'words' to make one"
            )
        if self.init_optimizer and not self.init_from:
            raise SettingsError("init_optimizer: there is no optimizer to take over, init_from names no bundle")
        if self.train.validate_every and not self.data.held_out:
            raise SettingsError("train.validate_every: there is nothing to validate on, data.held_out is 0")
        frames, rest = divmod(self.train.batch_size, self.lanes)
        if rest or frames < 1 or frames % self.train.accumulate:
            raise SettingsError(
                f"train.batch_size: {self.train.batch_size} frames cannot be cut into {self.lanes} lanes of "
                f"{self.train.accumulate} equal parts; choose a multiple of {self.lanes * self.train.accumulate}"
            )

    @property
    def lanes(self) -> int:
        """Lanes over all devices."""
        return self.train.lanes or HARDWARE[self.hardware]["lanes"]

    @property
    def frames(self) -> int:
        """Consecutive frames of a lane in one batch."""
        return self.train.batch_size // self.lanes

    @property
    def compute_dtype(self) -> str:
        """Of the backbone and the memory."""
        return "float32" if self.train.precision == "float32" else "bfloat16"

    @property
    def lora(self) -> LoraConfig | None:
        """The adaptation, if there is one."""
        return self.train.lora if self.train.preset == "lora" else None

    def train_config(self) -> TrainConfig:
        """The trainer's settings."""
        train = self.train
        optimizer = OptimizerConfig(
            learning_rates=asdict(train.learning_rates),
            floors=asdict(train.floors),
            total_steps=train.steps,
            warmup_ratio=train.warmup_ratio,
            schedule=train.schedule,
            weight_decay=train.weight_decay,
            clip_norm=train.clip_norm,
            b1=train.b1,
            b2=train.b2,
            eps=train.eps,
        )
        frozen, stored = self._frozen_and_stored()
        return TrainConfig(
            steps=train.steps,
            lanes=self.lanes,
            optimizer=optimizer,
            accumulate=train.accumulate,
            freeze=(*frozen, *train.freeze),
            bfloat16=stored,
            ema_decay=train.ema_decay,
            seed=train.seed,
            log_every=train.log_every,
            save_every=train.save_every,
            keep=train.keep,
            validate_every=train.validate_every,
            keep_best=train.keep_best,
            metrics_window=train.metrics_window,
            watchdog_seconds=train.watchdog_seconds,
            profile_at=train.profile_at,
            profile_steps=train.profile_steps,
        )

    def _frozen_and_stored(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Patterns of the parameters that the preset freezes, and of those kept in bfloat16."""
        adapted = rf"{FACTORS}backbone/.*"
        frozen, stored = {
            "full": ((), ()),
            "action_expert_only": ((r"(?!action/).*",), (r"(backbone|memory)/.*",)),
            "lora": ((adapted, *self.train.lora.kernels), (adapted,)),
        }[self.train.preset]
        by_precision = {"mixed": stored, "float32": (), "reference": (rf"{FACTORS}(backbone|memory)/.*",)}
        return frozen, by_precision[self.train.precision]


def job_settings(job: Job) -> dict[str, Any]:
    """What must not change when a run continues, besides the trainer's own settings; JSON values."""
    model, data = to_dict(job.model), to_dict(job.data)
    # Moved folders and other machines are welcome: what the data is, the loader's own state tells.
    for free in ("datasets", "norm_stats", "tokenizer", "cache_gib", "threads", "prefetch", "strict"):
        del data[free]
    # What came later than the first runs counts where it was chosen: those runs go on.
    for late in ("cameras", "camera_sizes", "clip", "raw", "periodic", "period", "delta"):
        if getattr(job.data, late) == next(field.default for field in fields(DataSettings) if field.name == late):
            del data[late]
    del model["remat"], model["remat_keep"]
    lora = {"lora": to_dict(job.lora)} if job.lora else {}
    return {"model": model, "data": data, "batch_size": job.train.batch_size} | lora
