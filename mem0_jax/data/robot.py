"""Whose numbers states and actions are: their names, and what is to be known of each. Values, saved with a policy.

Axes: ... any leading axes, D numbers of a vector as datasets and models have them, E as an environment has them,
C horizon of an action chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from mem0_jax.data.files import DatasetError
from mem0_jax.data.joint_names import VECTORS, flat_names, is_rmbench
from mem0_jax.errors import did_you_mean


@dataclass(frozen=True)
class Vector:
    """The numbers of a state or an action.

    Attributes:
        names: in the order of the dataset.
        raw: those that are not normalised.
        periodic: angles that wrap; they are brought into [-period / 2, period / 2), and differences and means of them
            take the shorter way.
        orders: other orders in which an environment gives and takes the numbers, told apart by their count. Names that
            are left out of one are 0 where it is given.
        period: of the periodic ones; 360 where they are degrees.

    Raises:
        ValueError: a name that is there twice, or is none of the numbers'.
    """

    names: tuple[str, ...]
    raw: tuple[str, ...] = ()
    periodic: tuple[str, ...] = ()
    orders: tuple[tuple[str, ...], ...] = ()
    period: float = 2 * math.pi

    def __post_init__(self) -> None:
        lists = [("names", self.names), ("raw", self.raw), ("periodic", self.periodic)]
        for what, names in [*lists, *(("orders", order) for order in self.orders)]:
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: a name is there twice: {', '.join(names)}")
            for name in names:
                if name not in self.names:
                    raise ValueError(f"{what}: {name!r} is none of the numbers{did_you_mean(name, self.names)}")
        if not self.names or not self.period > 0 or len({len(order) for order in self.orders}) < len(self.orders):
            raise ValueError("a vector needs names, a period above 0, and orders of different lengths")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many numbers an environment may give."""
        return tuple(sorted(map(len, self.orders))) or (len(self.names),)

    def where(self, names: Sequence[str]) -> np.ndarray:
        """bool [D]: which numbers have these names."""
        return np.isin(self.names, names) if names else np.zeros(len(self.names), bool)

    def _index(self, count: int) -> np.ndarray | None:
        """Where each of an environment's numbers stands among ours; None: they are in our order."""
        for order in self.orders:
            if len(order) == count:
                return np.array([self.names.index(name) for name in order])
        if count not in self.counts:
            own = ", ".join(self.names[:16]) + (", ..." if len(self.names) > 16 else "")
            expected = " or ".join(map(str, self.counts))
            raise ValueError(f"the robot has {count} numbers; expected {expected}, as it was trained: {own}")
        return None

    def read(self, vector: np.ndarray) -> np.ndarray:
        """An environment's numbers [..., E] in our order, float32 [..., D]."""
        vector = np.asarray(vector, np.float32)
        index = self._index(vector.shape[-1] if vector.ndim else 0)
        if index is None:
            return vector
        out = np.zeros((*vector.shape[:-1], len(self.names)), np.float32)
        out[..., index] = vector
        return out

    def give(self, vector: np.ndarray, count: int) -> np.ndarray:
        """Our numbers [..., D] for an environment that has `count` of them in its state, float32 [..., E]."""
        vector = np.asarray(vector, np.float32)
        if vector.shape[-1:] != (len(self.names),):
            raise ValueError(f"vector has shape {list(vector.shape)}; expected [..., {len(self.names)}]")
        index = self._index(count) if self.orders else None
        return vector if index is None else vector[..., index]

    def wrapped(self, vector: np.ndarray) -> np.ndarray:
        """The numbers [..., D] with angles brought into their range."""
        if not self.periodic:
            return vector
        turn = np.float32(self.period)
        turns = np.floor(vector / turn + np.float32(0.5))  # 0 in the range: what lies there stays as it is
        return np.where(self.where(self.periodic), vector - turns * turn, vector)

    def mean(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """The mean of several [D]; of angles, that of the shorter ways from the first."""
        first = vectors[0]
        return self.wrapped(first + np.mean([self.wrapped(vector - first) for vector in vectors], 0, np.float32))


@dataclass(frozen=True)
class Robot:
    """What a policy is told and says.

    Attributes:
        state, action: the numbers.
        delta: actions that are trained as differences from the state of the same name at the start of their chunk.

    Raises:
        ValueError: a delta that is not both in state and action.
    """

    state: Vector
    action: Vector
    delta: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind in ("state", "action"):
            names = getattr(self, kind).names
            for name in self.delta:
                if name not in names:
                    raise ValueError(f"delta: {name!r} is none of the {kind}'s numbers{did_you_mean(name, names)}")

    @property
    def relative(self) -> bool:
        """What a chunk says depends on the state, or wraps: chunks cannot be averaged number by number."""
        return bool(self.delta or self.action.periodic)

    def alone(self, name: str) -> Robot:
        """The same with this action only."""
        periodic, delta = ((name,) if name in names else () for names in (self.action.periodic, self.delta))
        return Robot(self.state, Vector((name,), periodic=periodic, period=self.action.period), delta)

    @cached_property
    def _start(self) -> tuple[np.ndarray, np.ndarray]:
        """Which actions are differences, and from which numbers of the state."""
        names = self.state.names
        return self.action.where(self.delta), np.array([names.index(n) for n in self.action.names if n in self.delta])

    def differences(self, chunk: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Chunks of actions [..., C, D] as they are trained, beginning in states [..., D]."""
        chunk = self.action.wrapped(chunk)
        if not self.delta:
            return chunk
        where, index = self._start
        out = chunk.copy()
        out[..., where] -= self.state.wrapped(state)[..., None, index]
        return self.action.wrapped(out)

    def absolute(self, chunk: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The inverse of `differences`."""
        if self.delta:
            where, index = self._start
            chunk = chunk.copy()
            chunk[..., where] += self.state.wrapped(state)[..., None, index]
        return self.action.wrapped(chunk)


_ARMS = tuple(tuple(f"{side}_joint_{i}" for i in range(7)) for side in ("left", "right"))
_GRIPPERS = ("left_gripper", "right_gripper")
_TWO_ARMS = Vector(
    (*_ARMS[0], *_ARMS[1], *_GRIPPERS),
    raw=_GRIPPERS,
    orders=tuple((*_ARMS[0][:n], _GRIPPERS[0], *_ARMS[1][:n], _GRIPPERS[1]) for n in (6, 7)),
)
RMBENCH = Robot(_TWO_ARMS, _TWO_ARMS)  # environments of 6-joint arms have no seventh joints: Mem-0's convention


def rmbench(normalization: str) -> Robot:
    """RMBench's two arms as Mem-0 normalises them: by quantiles the grippers, too."""
    if normalization != "quantile":
        return RMBENCH
    every = replace(_TWO_ARMS, raw=())
    return Robot(every, every)


def robot_of(dataset: Any) -> Robot:
    """The robot of a dataset, or of all datasets of a mixture, by the names of its numbers.

    States and actions of 16 numbers that are named as RMBench's, or not at all, are RMBench's. Others are a robot's of
    its own; numbers without names are called by their place.

    Raises:
        DatasetError: no such feature, or no list of numbers; or the datasets have different robots.
    """
    parts = getattr(dataset, "datasets", [dataset])
    first = _robot(parts[0])
    for part in parts[1:]:
        if (other := _robot(part)) != first:
            names = [(kind, *(getattr(robot, kind).names for robot in (first, other))) for kind in ("state", "action")]
            kind, own, theirs = next(entry for entry in names if entry[1] != entry[2])
            raise DatasetError(
                f"datasets trained together must be of one robot: the {kind} of {parts[0].root} has {_listed(own)}; "
                f"that of {part.root} has {_listed(theirs)}"
            )
    return first


def check_robot(dataset: Any, robot: Robot) -> None:
    """Raises DatasetError: the numbers of a dataset, or of one of a mixture, are not this robot's by their names."""
    found = robot_of(dataset)
    for kind in ("state", "action"):
        own, theirs = getattr(found, kind).names, getattr(robot, kind).names
        if own != theirs:
            raise DatasetError(f"{dataset.root}: the {kind} has {_listed(own)}; expected {_listed(theirs)}")


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} numbers, {', '.join(name[:40] for name in names[:16])}{', ...' * (len(names) > 16)}"


def _robot(dataset: Any) -> Robot:
    features = []
    for key in VECTORS:
        feature = dataset.features.get(key)
        if feature is None:
            raise DatasetError(f"{dataset.root} has no low-dimensional feature {key!r}")
        shape = list(feature.get("shape") or ())
        if len(shape) != 1:
            raise DatasetError(f"{dataset.root}: {key} has shape {shape}; expected [D], one list of numbers a frame")
        features.append(feature)
    if all(map(is_rmbench, features)):
        return RMBENCH
    same = features[0]["shape"] == features[1]["shape"]
    state, action = (Vector(_names(f, "number" if same else kind)) for f, kind in zip(features, ("state", "action")))
    return Robot(state, action)


def _names(feature: Any, unnamed: str) -> tuple[str, ...]:
    """Different names for all numbers of a feature; a name that comes again gets its place."""
    (count,) = feature["shape"]
    names = flat_names(feature.get("names"), count)
    if len(names) != count:
        names = [f"{unnamed}_{i}" for i in range(count)]
    elif len(set(names)) < count:
        names = [f"{name}_{i}" if name in names[:i] else name for i, name in enumerate(names)]
    return tuple(names)


def matching(patterns: Sequence[str], names: Sequence[str], what: str) -> tuple[str, ...]:
    """The names, each once, that patterns such as "*" or "left_*" choose one by one; "!gripper" takes some out again.

    Raises:
        ValueError: a pattern that matches none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern.removeprefix("!"))}
        if not found:
            raise ValueError(f"{what}: {pattern!r} matches none of {', '.join(names)}")
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    return tuple(name for name in dict.fromkeys(names) if name in chosen)
