"""Statistics of states and actions, and their normalisation.

Axes: ... any leading axes, D = 16 dimensions of the model layout.
Rules follow Mem-0's deployment (RMBench, policy/Mem-0/scripts/tools_for_deploy/normlization.py):

- min_max:  2 (clip(x, min, max) - min) / (max - min) - 1; a dimension without range gives 0; grippers stay raw.
- mean_std: (x - mean) / std, std below 1e-6 counting as 1; grippers stay raw; nothing is clipped.
- quantile: as min_max with q01 and q99, for all dimensions, grippers included.
- none:     x.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mem0_jax.data.files import DatasetError
from mem0_jax.data.joint_names import check_names
from mem0_jax.data.layout import GRIPPER_DIMS, JOINT_NAMES, MODEL_DIM, SEVENTH_JOINTS
from mem0_jax.disk import write_whole
from mem0_jax.stand_in import stand_in

if TYPE_CHECKING:
    from mem0_jax.data.lerobot import LeRobotDataset

MODES = ("min_max", "mean_std", "quantile", "none")
_KEYS = {"min_max": ("min", "max"), "mean_std": ("mean", "std"), "quantile": ("q01", "q99"), "none": ()}
_NO_RANGE = 1e-8  # ranges up to this count as none
_NO_STD = 1e-6
_TINY = 1e-3  # a joint (radians) that moves less amplifies noise when stretched to [-1, 1]
_QUANTILE_BLOCKS = {"state": "observation.state", "action": "action"}  # the reference keeps quantiles nested
_STATS = ("min", "max", "mean", "std", "q01", "q99")


@dataclass(frozen=True)
class NormStats:
    """Statistics of `state` and `action`: each a dict with some of min, max, mean, std, q01, q99, all float64 [D].

    Raises:
        ValueError: wrong length, NaN or infinity, max below min, q99 below q01, negative std; all problems are listed.
    """

    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    action: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [problem for kind in ("state", "action") for problem in _problems(kind, getattr(self, kind))]
        if problems:
            raise ValueError("bad normalisation statistics: " + "; ".join(problems))

    @classmethod
    def from_dataset(cls, dataset: LeRobotDataset) -> NormStats:
        """Compute all statistics over all frames of a dataset; no video is opened."""
        return cls.from_datasets([dataset])

    @classmethod
    def from_datasets(cls, datasets: Sequence[LeRobotDataset]) -> NormStats:
        """Compute the statistics of several datasets as if they were one, from all their values.

        Raises:
            ValueError: a feature is missing, has another shape than [F, D], or NaN; names the dataset.
        """
        return cls(
            *(_measure([vectors(dataset, key) for dataset in datasets]) for key in ("observation.state", "action"))
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "norm_stats") -> NormStats:
        """Read the reference's layout: `state_min`, ... flat, and quantiles nested under the feature's key."""
        known = {f"{kind}_{name}" for kind in _QUANTILE_BLOCKS for name in _STATS} | set(_QUANTILE_BLOCKS.values())
        found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in _QUANTILE_BLOCKS}
        if not isinstance(data, Mapping) or not data.keys() & known:
            raise ValueError(f"{where}: no statistics found; expected keys such as state_min and action_max")
        for kind, block in _QUANTILE_BLOCKS.items():
            nested = data.get(block, {})
            for name in _STATS:
                value = data.get(f"{kind}_{name}", nested.get(name) if isinstance(nested, Mapping) else None)
                if value is not None:
                    try:
                        found[kind][name] = np.asarray(value, np.float64)
                    except (TypeError, ValueError) as error:
                        raise ValueError(f"{where}: {kind}_{name} is not a list of numbers") from error
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> NormStats:
        """Read a norm_stats.json."""
        path = Path(path)
        if not path.is_file():
            what = "are a folder: name the file in it" if path.is_dir() else "are missing"
            raise FileNotFoundError(f"normalisation statistics {path} {what}")
        if said := stand_in(path):
            raise ValueError(f"{path} {said}")
        try:
            data = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        return cls.from_json(data, str(path))

    def to_json(self) -> dict[str, Any]:
        """Return the reference's layout, which the reference can read too."""
        data: dict[str, Any] = {}
        for kind, block in _QUANTILE_BLOCKS.items():
            stats = {name: np.asarray(value).tolist() for name, value in getattr(self, kind).items()}
            quantiles = {name: stats.pop(name) for name in ("q01", "q99") if name in stats}
            data |= {f"{kind}_{name}": value for name, value in stats.items()}
            if quantiles:
                data[block] = quantiles
        return data

    def save(self, path: str | Path) -> None:
        """Write norm_stats.json."""
        write_whole(Path(path), json.dumps(self.to_json(), indent=1))


class VectorNormalizer:
    """Normalisation of one kind of vector (state or action) by one mode; see the rules at the top of the file."""

    def __init__(self, stats: Mapping[str, np.ndarray], mode: str, kind: str):
        if mode not in MODES:
            raise ValueError(f"normalisation mode {mode!r} is unknown; expected one of {MODES}")
        missing = [f"{kind}_{name}" for name in _KEYS[mode] if name not in stats]
        if missing:
            raise ValueError(f"normalisation mode {mode!r} needs the statistics {missing}, which are missing")
        self.kind, self.mode = kind, mode
        raw = np.zeros(MODEL_DIM, bool)
        if mode in ("min_max", "mean_std"):
            raw[list(GRIPPER_DIMS)] = True
        if mode == "mean_std":
            mean, std = (np.asarray(stats[name], np.float32) for name in ("mean", "std"))
            self._offset = np.where(raw, 0, mean).astype(np.float32)
            self._std = np.where(raw, 1, std).astype(np.float32)
        elif mode != "none":
            low, high = (np.asarray(stats[name], np.float32) for name in _KEYS[mode])
            self._raw, self._low, self._high = raw, low, high
            self._moves = high - low > np.float32(_NO_RANGE)
            self._span = np.where(self._moves, high - low, 1).astype(np.float32)
            self._warn_tiny(high - low)

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """Return float32 [..., D] as the model sees it."""
        x = self._checked(x)
        if self.mode == "none":
            return x
        if self.mode == "mean_std":
            return (x - self._offset) / np.where(self._std < _NO_STD, np.float32(1), self._std)
        scaled = 2 * (np.clip(x, self._low, self._high) - self._low) / self._span - 1
        return np.where(self._raw, x, np.where(self._moves, scaled, np.float32(0)))

    def denormalize(self, x: np.ndarray) -> np.ndarray:
        """Return float32 [..., D] in the robot's units, clipped to the data's range (not with mean_std)."""
        x = self._checked(x)
        if self.mode == "none":
            return x
        if self.mode == "mean_std":
            return x * self._std + self._offset
        value = np.clip((x + 1) / 2 * self._span + self._low, self._low, self._high)
        return np.where(self._raw, x, value)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float32)
        if x.shape[-1:] != (MODEL_DIM,):
            raise ValueError(f"{self.kind} has shape {list(x.shape)}; expected [..., {MODEL_DIM}] in the model layout")
        if not np.isfinite(x).all():
            bad = sorted({JOINT_NAMES[d] for d in np.argwhere(~np.isfinite(x))[:, -1]})
            raise ValueError(f"{self.kind} has NaN or infinite values in {bad}")
        return x

    def _warn_tiny(self, span: np.ndarray) -> None:
        tiny = [JOINT_NAMES[d] for d in range(MODEL_DIM) if self._moves[d] and not self._raw[d] and span[d] < _TINY]
        if tiny:
            warnings.warn(
                f"{self.kind}: {tiny} span less than {_TINY} in the data; {self.mode} normalisation magnifies their "
                "noise to the full range",
                stacklevel=4,
            )


class Normalizer:
    """The pair of normalisers of a policy: `state` and `action`, both `VectorNormalizer`s of one mode."""

    def __init__(self, stats: NormStats, mode: str = "min_max"):
        self.stats, self.mode = stats, mode
        self.state = VectorNormalizer(stats.state, mode, "state")
        self.action = VectorNormalizer(stats.action, mode, "action")


def span_warnings(stats: NormStats) -> list[str]:
    """Say what of complete statistics will normalise badly, naming the joints; [] if all is well."""
    found = []
    for kind in ("state", "action"):
        of = getattr(stats, kind)
        span, inner = of["max"] - of["min"], of["q99"] - of["q01"]
        arm = ~np.isin(np.arange(MODEL_DIM), GRIPPER_DIMS)
        # A 6-joint arm has no seventh joint, and 0 in its place.
        absent = np.isin(np.arange(MODEL_DIM), SEVENTH_JOINTS) & (of["min"] == 0) & (of["max"] == 0)
        still, tiny = span <= _NO_RANGE, span < _TINY
        kinds = {
            "never move: the model will always be shown 0 there": arm & still & ~absent,
            f"span less than {_TINY} rad: min_max magnifies their noise to [-1, 1]": arm & tiny & ~still,
            "move in less than 2 % of the frames: quantile will always give 0": arm & ~tiny & (inner <= _NO_RANGE),
            "leave the range 0 to 1: grippers are not normalised": ~arm & ((of["min"] < 0) | (of["max"] > 1)),
        }
        for what, where in kinds.items():
            if where.any():
                found.append(f"{kind}: {', '.join(JOINT_NAMES[d] for d in np.flatnonzero(where))} {what}")
    return found


def vectors(dataset: LeRobotDataset, key: str) -> np.ndarray:
    """Return the states or actions of a dataset, [F, D]; DatasetError if they are not those of the model layout."""
    x = finite_vectors(dataset, key)
    if x.shape[1:] != (MODEL_DIM,):
        raise DatasetError(
            f"{dataset.root}: {key} has shape {list(x.shape)}; expected [F, {MODEL_DIM}], the model layout"
        )
    return x


def finite_vectors(dataset: Any, key: str) -> np.ndarray:
    """Return the states or actions of a dataset, [F, ...]; DatasetError if they are not finite or not known."""
    check_names(dataset)
    x = dataset.column(key)
    wrong = not_numbers(x)
    if wrong.any():
        row, *d = np.argwhere(wrong)[0].tolist()
        where = JOINT_NAMES[d[0]] if x.shape[1:] == (MODEL_DIM,) else f"number {d}"
        episode = next(episode for episode in dataset.episodes if row < episode.start + episode.length)
        what = "values beyond float32" if np.isfinite(x).all() else "NaN or infinite values"
        raise DatasetError(
            f"{dataset.root}: {key} has {what}, first in {where} of episode {episode.index}, frame "
            f"{row - episode.start}"
        )
    return x


def not_numbers(x: np.ndarray) -> np.ndarray:
    """Which values are NaN or infinite in float32, in which they are trained on: bool of the same shape."""
    with np.errstate(over="ignore"):
        return ~np.isfinite(x.astype(np.float32))


def _measure(parts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Statistics of the rows of all parts [F, D], dimension by dimension to need little memory in float64."""
    rows = []
    for d in range(MODEL_DIM):
        x = np.concatenate([part[:, d] for part in parts]).astype(np.float64)
        rows.append([x.min(), x.max(), x.mean(), x.std(), *np.quantile(x, [0.01, 0.99])])
    return dict(zip(_STATS, np.array(rows).T))


def _problems(kind: str, stats: Mapping[str, np.ndarray]) -> list[str]:
    problems = []
    for name, value in stats.items():
        if name not in _STATS:
            problems.append(f"{kind}_{name} is unknown (expected {_STATS})")
        elif np.shape(value) != (MODEL_DIM,):
            problems.append(f"{kind}_{name} has shape {list(np.shape(value))}, expected [{MODEL_DIM}]")
        elif not np.isfinite(value).all():
            problems.append(f"{kind}_{name} has NaN or infinite values")
    if not problems:
        for low, high in (("min", "max"), ("q01", "q99")):
            if low in stats and high in stats and (np.asarray(stats[high]) < stats[low]).any():
                joints = [JOINT_NAMES[d] for d in np.flatnonzero(np.asarray(stats[high]) < stats[low])]
                problems.append(f"{kind}_{high} is below {kind}_{low} for {joints}")
        if "std" in stats and (np.asarray(stats["std"]) < 0).any():
            problems.append(f"{kind}_std is negative")
    return problems
