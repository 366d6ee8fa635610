"""What `mem0-jax train` is asked to do: plain settings, as the files in `configs/` give them, and what they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from mem0_jax.config import deciding, to_dict
from mem0_jax.data.cameras import HEAD_CAMERA, camera_name
from mem0_jax.data.normalize import MODES
from mem0_jax.distributed.hardware import HARDWARE
from mem0_jax.family import PolicyFamily, family_of, policy_family
from mem0_jax.policies.inputs import Resample
from mem0_jax.train.config import LoraConfig, SettingsError, TrainConfig, TrainSettings, check_groups

WORDS = "words"  # the tokenizer that is made from the dataset's own texts


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
    resample: Resample = "bilinear"
    deploy_resample: Resample = "bicubic"
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


def Rates(*rates: float, **by_group: float) -> dict[str, float]:  # noqa: N802
    """How job files wrote `learning_rates` and `floors` before they were mappings."""
    return dict(zip(policy_family("").learning_rates, rates)) | by_group


@dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        model: a configuration of the policy; None: that of its family's defaults.
        init_from: a bundle to start from, of a policy or of a backbone alone; "" starts from random weights.
        init_optimizer: take over that bundle's optimizer as well, and its place in the schedule, whose whole length is
            `train.steps`: training goes on where the run that was converted stopped.
        hardware: a name of `mem0_jax/distributed/hardware.py`: the mesh, and lanes a device.
        policy: name of its family; "": that of `model`, or, without one, the family that is `unnamed`.
    """

    data: DataSettings
    model: Any = None
    train: TrainSettings = field(default_factory=TrainSettings)
    init_from: str = ""
    init_optimizer: bool = False
    hardware: str = "cpu"
    policy: str = deciding(
        "",
        {"model": lambda name: policy_family(name).config},
        ("train.learning_rates", "train.floors", "train.no_decay"),
    )

    def __post_init__(self) -> None:
        self._complete()
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

    def _complete(self) -> None:
        """Names the family, takes what the job leaves to it, and asks whether the rest is the family's."""
        policy = self.policy or ("" if self.model is None else family_of(self.model).name)
        family, train = policy_family(policy), self.train
        model = family.config() if self.model is None else self.model
        if not isinstance(model, family.config):
            raise SettingsError(f"model: a {type(model).__name__} is no configuration of {family.name!r}")
        rates, floors = train.learning_rates or family.learning_rates, train.floors or family.floors
        check_groups(rates, (group for group, _ in family.policy(model).learning_rate_groups))
        train = replace(train, learning_rates=rates, floors=floors, no_decay=train.no_decay or family.no_decay)
        train.chosen(family.presets)
        if train.precision == "reference" and not family.reference:
            raise SettingsError(f"train.precision: {family.name!r} has no 'reference', choose 'mixed' or 'float32'")
        for name, value in {"policy": family.name, "model": model, "train": train}.items():
            object.__setattr__(self, name, value)

    @property
    def family(self) -> PolicyFamily:
        """What kind of policy it trains."""
        return policy_family(self.policy)

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
        """Of all but what the policy always computes in float32."""
        return "float32" if self.train.precision == "float32" else "bfloat16"

    @property
    def lora(self) -> LoraConfig | None:
        """The adaptation, if there is one."""
        return self.train.adaptation(self.family.presets)

    def train_config(self) -> TrainConfig:
        """The trainer's settings: lanes in numbers, preset and precision in patterns."""
        preset = self.train.chosen(self.family.presets)
        frozen = (*preset.frozen, *(self.lora.kernels if self.lora else ()))
        stored = {"mixed": preset.bfloat16, "float32": (), "reference": self.family.reference}[self.train.precision]
        return self.train.config(
            lanes=self.lanes,
            freeze=(*frozen, *self.train.freeze),
            bfloat16=(*stored, *self.train.bfloat16),
        )


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
    for free in job.family.free:
        del model[free]
    lora = {"lora": to_dict(job.lora)} if job.lora else {}
    # Runs whose jobs could name no policy have no such entry.
    named = {} if job.family.unnamed else {"policy": job.policy}
    return named | {"model": model, "data": data, "batch_size": job.train.batch_size} | lora
