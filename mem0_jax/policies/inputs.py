"""How observations become a policy's inputs, and its chunks actions: one chain, saved with the policy.

Training, open loop, sessions and servers go through it and nothing else.

Axis letters: H, W and h, w height and width of a camera's pictures before and after the resize; T frames of a window;
C horizon of an action chunk; D numbers of the robot's vector, A those of the policy, which may have more: the rest is
0. E numbers of an environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from mem0_jax.config import to_dict
from mem0_jax.data.cameras import HEAD_CAMERA, camera_name
from mem0_jax.data.lanes import Element, LaneSource
from mem0_jax.data.normalize import Normalizer, NormStats
from mem0_jax.data.observation import spelled
from mem0_jax.data.pictures import EpisodeDataset
from mem0_jax.data.robot import RMBENCH, Robot, rmbench
from mem0_jax.errors import UserError
from mem0_jax.policies.base import Spec
from mem0_jax.resize import resize

Resample = Literal["bilinear", "bicubic", "bicubic_once"]


@dataclass(frozen=True)
class Camera:
    """A camera of a policy.

    Attributes:
        feature: of the dataset with the pictures; observations call it by `name`.
        size: (height, width) its pictures are resized to before anything else.
    """

    feature: str = HEAD_CAMERA
    size: tuple[int, int] = (224, 224)

    def __post_init__(self) -> None:
        if not self.feature or min(self.size) < 1:
            raise ValueError(f"a camera needs a name and a size, got {self.feature!r} of {self.size}")

    @property
    def name(self) -> str:
        """What an environment calls it."""
        return camera_name(self.feature)


@dataclass(frozen=True)
class Inputs:
    """The chain as values.

    Attributes:
        cameras: in the policy's order.
        resample: for their resize in training, deploy_resample when the policy is deployed.
        text: the feature with the instruction in training; "": not known, it is "subtask" where there is one.
        max_length: tokens of a prompt.
        normalization: mode of `data.normalize.Normalizer`; clip: values are clipped to the range; None: the mode's own.
        robot: whose numbers states and actions are.
    """

    cameras: tuple[Camera, ...] = (Camera(),)
    resample: Resample = "bilinear"
    deploy_resample: Resample = "bicubic"
    text: str = ""
    max_length: int = 128
    normalization: str = "min_max"
    clip: bool | None = None
    robot: Robot = RMBENCH

    def __post_init__(self) -> None:
        names = [camera.name for camera in self.cameras]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a policy needs cameras of different names, got {', '.join(names) or 'none'}")


def from_version_1(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a bundle of format version 1 had, as they are written now: one camera, RMBench's robot.

    It did not say by which text it was trained, nor how pictures were resized then: bilinear, as Mem-0 trains.
    """
    old = {"camera_size": (224, 224), "resample": "bicubic", "max_length": 128, "normalization": "min_max"}
    old |= {"camera": HEAD_CAMERA} | dict(entries)
    camera, size, deployed = (old.pop(name) for name in ("camera", "camera_size", "resample"))
    robot = to_dict(rmbench(str(old["normalization"])))
    return old | {"cameras": [{"feature": camera, "size": size}], "deploy_resample": deployed, "robot": robot}


class Frame(NamedTuple):
    """One observation.

    Attributes:
        images: uint8 [h, w, 3] of each camera, resized; raw: uint8 [H, W, 3] as the cameras took them.
        state: float32 [A], normalised; start: float32 [D], in the robot's units.
        count: numbers that the environment gave.
    """

    images: tuple[np.ndarray, ...]
    raw: tuple[np.ndarray, ...]
    state: np.ndarray
    start: np.ndarray
    count: int


class Transform:
    """Observations to frames, and normalised chunks to actions.

    Raises:
        UserError: the policy takes fewer numbers than the robot has.
        ValueError: statistics that are missing, or of other numbers.
    """

    def __init__(self, inputs: Inputs, stats: NormStats, spec: Spec):
        check_widths(inputs.robot, spec)
        self.inputs, self.spec, self.robot = inputs, spec, inputs.robot
        self.normalizer = Normalizer(stats, inputs.normalization, inputs.robot, inputs.clip)

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """What environments call the cameras."""
        return tuple(camera.name for camera in self.inputs.cameras)

    def __call__(self, observation: Mapping[str, Any]) -> Frame:
        """Reads an observation in any of the spellings of `data.observation`.

        Raises:
            ValueError: an entry is missing, or has a wrong shape, dtype, or NaN.
        """
        pictures, state = spelled(observation, self.cameras)
        state = np.asarray(state)
        if state.ndim != 1:
            raise ValueError(f"the state has shape {list(state.shape)}; expected a list of numbers")
        return self.frame([np.asarray(pictures[name]) for name in self.cameras], state)

    def frame(self, pictures: Sequence[np.ndarray], state: np.ndarray) -> Frame:
        """The frame of a picture uint8 [H, W, 3] of each camera and an environment's state [E]."""
        start = self.robot.state.read(state)
        return self._frame(pictures, start, len(state))

    def recorded(self, pictures: Sequence[np.ndarray], state: np.ndarray) -> Frame:
        """The same of a dataset's state [D], which is in the order of the robot's names."""
        return self._frame(pictures, state, len(state))

    def _frame(self, pictures: Sequence[np.ndarray], start: np.ndarray, count: int) -> Frame:
        inputs = self.inputs
        images = tuple(
            resize(picture, camera.size, inputs.deploy_resample)
            for picture, camera in zip(pictures, inputs.cameras, strict=True)
        )
        start = self.robot.state.wrapped(start)
        state = widened(self.normalizer.state.normalize(start), self.spec.state_dim)
        return Frame(images, tuple(pictures), state, start, count)

    def chunk(self, chunk: np.ndarray, start: np.ndarray) -> np.ndarray:
        """A normalised chunk [C, A], sampled in the state `start` [D], in the robot's units [C, D]."""
        told = np.asarray(chunk)[..., : len(self.robot.action.names)]
        return self.robot.absolute(self.normalizer.action.denormalize(told), start)

    def kept(self, chunk: np.ndarray, start: np.ndarray) -> np.ndarray:
        """What is kept of a chunk until its actions are wanted: in the robot's units where the chunk speaks of the
        state that it was sampled in, else as it is: the reference averages what is normalised."""
        return self.chunk(chunk, start) if self.robot.relative else np.asarray(chunk)

    def actions(self, kept: Sequence[Sequence[np.ndarray]] | np.ndarray, count: int) -> np.ndarray:
        """Actions float32 [K, E] for an environment that gives `count` numbers, from what was kept for each of K times:
        one or more predictions, whose mean is taken."""
        if self.robot.relative:
            told = np.stack([self.robot.action.mean(predictions) for predictions in kept])
        else:
            mean = np.stack([np.mean(predictions, 0) for predictions in kept])
            told = self.normalizer.action.denormalize(mean[:, : len(self.robot.action.names)])
        return self.robot.action.give(told, count)


def check_widths(robot: Robot, spec: Spec) -> None:
    """Raises UserError: the robot has more numbers than the policy takes."""
    for kind, width in (("state", spec.state_dim), ("action", spec.action_dim)):
        names = getattr(robot, kind).names
        if len(names) > width:
            raise UserError(
                f"the robot's {kind} has {len(names)} numbers, {', '.join(names[:16])}{', ...' * (len(names) > 16)}; "
                f"the policy takes {width}: set its {kind}_dim to {len(names)} or more"
            )


def widened(vector: np.ndarray, width: int) -> np.ndarray:
    """A vector [..., D] with zeros behind, [..., width]; the same array where nothing is missing."""
    missing = width - vector.shape[-1]
    return np.pad(vector, [(0, 0)] * (vector.ndim - 1) + [(0, missing)]) if missing else vector


def make_source(
    dataset: EpisodeDataset, inputs: Inputs, stats: NormStats, spec: Spec, processor: Any, **arguments: Any
) -> LaneSource:
    """The lanes of a policy's training batches; further `arguments` are those of `LaneSource`."""
    check_widths(inputs.robot, spec)

    def transform(element: Element) -> Element:
        return training(element, source.texts, processor, spec)

    source = LaneSource(
        dataset,
        horizon=spec.horizon,
        cameras={camera.feature: camera.size for camera in inputs.cameras},
        resample=inputs.resample,
        normalizer=Normalizer(stats, inputs.normalization, inputs.robot, inputs.clip),
        text=inputs.text,
        transform=transform,
        **arguments,
    )
    return source


def training(element: Element, texts: Sequence[str], processor: Any, spec: Spec) -> Element:
    """One window of a lane as the policy's batch entries, each with a leading T, and `action_is_pad`.

    Numbers that the policy takes beyond the robot's are 0 in states and actions. They stay in the loss: the head reads
    its own chunk at every step of the solver, and must have learned to bring them to 0.
    """
    prepared = processor.prepare(list(element["images"].values()), [texts[i] for i in element["text_id"]])
    widths = {"state": spec.state_dim, "action": spec.action_dim}
    vectors = {name: widened(element[name], width) for name, width in widths.items()}
    return prepared | vectors | {key: element[key] for key in ("action_is_pad", "episode", "subtask_end")}
