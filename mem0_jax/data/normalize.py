"""Statistics of states and actions, and their normalisation.

Axes: ... any leading axes, D numbers of the vector, C horizon of an action chunk.
Rules follow Mem-0's deployment (RMBench, policy/Mem-0/scripts/tools_for_deploy/normlization.py):

- min_max:  2 (clip(x, min, max) - min) / (max - min) - 1; a number without range gives 0.
- mean_std: (x - mean) / std, std below 1e-6 counting as 1; not clipped.
- quantile: as min_max with q01 and q99.
- none:     x.
- lerobot_min_max:  2 (x - min) / (max - min) - 1, a range of 0 counting as 1e-8: a number without range gives -1.
- lerobot_mean_std: (x - mean) / (std + 1e-8), and back x std + mean.
- lerobot_quantile: as lerobot_min_max with q01 and q99. None of LeRobot's clips.

Numbers that the robot keeps raw stay as they are in all modes. Whether values are clipped to the range (with mean_std:
from min to max) is a setting, too; so are which numbers stay raw.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mem0_jax.data.files import DatasetError
from mem0_jax.data.joint_names import VECTORS
from mem0_jax.data.robot import RMBENCH, Robot, Vector, rmbench, robot_of
from mem0_jax.disk import write_whole
from mem0_jax.stand_in import stand_in

if TYPE_CHECKING:
    from mem0_jax.data.lerobot import LeRobotDataset

LEROBOT = "lerobot_"  # begins the modes with the laws of LeRobot's processors
_KEYS = {"min_max": ("min", "max"), "mean_std": ("mean", "std"), "quantile": ("q01", "q99"), "none": ()}
MODES = (*_KEYS, *(LEROBOT + mode for mode in _KEYS if mode != "none"))
_NO_RANGE = 1e-8  # ranges up to this count as none
_NO_STD = 1e-6
_TINY = 1e-3  # a number (mostly radians or metres) that moves less amplifies noise when stretched to [-1, 1]
_QUANTILE_BLOCKS = {"state": "observation.state", "action": "action"}  # the reference keeps quantiles nested
_STATS = ("min", "max", "mean", "std", "q01", "q99")


@dataclass(frozen=True)
class NormStats:
    """Statistics of `state` and `action`: each a dict with some of min, max, mean, std, q01, q99, all float64 [D].

    Raises:
        ValueError: other lengths, NaN or infinity, max below min, q99 below q01, negative std; all problems are listed.
    """

    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    action: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [problem for kind in ("state", "action") for problem in _problems(kind, getattr(self, kind))]
        if problems:
            raise ValueError("bad normalisation statistics: " + "; ".join(problems))

    @classmethod
    def from_dataset(cls, dataset: LeRobotDataset, robot: Robot | None = None, horizon: int = 1) -> NormStats:
        """Compute all statistics over all frames of a dataset; no video is opened."""
        return cls.from_datasets([dataset], robot, horizon)

    @classmethod
    def from_datasets(
        cls, datasets: Sequence[LeRobotDataset], robot: Robot | None = None, horizon: int = 1
    ) -> NormStats:
        """Compute the statistics of several datasets as if they were one, from all their values.

        Args:
            datasets: of one robot.
            robot: whose angles wrap and whose actions are differences as it says; default: as `robot_of` finds it.
            horizon: C; differences are measured over all chunks, what lies past an episode's end left out.

        Raises:
            ValueError: a feature is missing, has another shape than [F, D], or NaN; names the dataset.
        """
        robot = robot or robot_of(_Several(datasets))
        state, action = ([vectors(dataset, key) for dataset in datasets] for key in VECTORS)

        def differences(name: str) -> list[np.ndarray]:
            """An action at every offset into every chunk."""
            place, alone = robot.action.names.index(name), robot.alone(name)
            return [
                alone.differences(of[rows + offset, None, place : place + 1], start[rows])[:, 0, 0]
                for dataset, start, of in zip(datasets, state, action)
                for offset in range(horizon)
                for rows in [_with_later(dataset, offset)]
            ]

        measured = [
            _measure(v.wrapped(p) for p in parts) for v, parts in ((robot.state, state), (robot.action, action))
        ]
        for name in robot.delta:
            for key, value in zip(_STATS, _statistics(differences(name))):
                measured[1][key][robot.action.names.index(name)] = value
        return cls(*measured)

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

    def __init__(self, stats: Mapping[str, np.ndarray], mode: str, kind: str, vector: Vector, clip: bool | None = None):
        if mode not in MODES:
            raise ValueError(f"normalisation mode {mode!r} is unknown; expected one of {MODES}")
        law, lerobot = mode.removeprefix(LEROBOT), mode.startswith(LEROBOT)
        self._clip = not lerobot and law != "mean_std" if clip is None else clip
        keys = _KEYS["min_max" if law == "mean_std" else law] if self._clip else ()  # the range that is clipped to
        missing = [f"{kind}_{name}" for name in dict.fromkeys((*_KEYS[law], *keys)) if name not in stats]
        if missing:
            raise ValueError(f"normalisation mode {mode!r} needs the statistics {missing}, which are missing")
        for name, value in stats.items():
            if len(value) != len(vector.names):
                raise ValueError(f"{kind}_{name} has {len(value)} numbers, the robot's {kind} {len(vector.names)}")
        self.kind, self.mode, self.names, self._law = kind, mode, vector.names, law
        raw = self._raw = vector.where(vector.raw)
        if self._clip and keys:
            self._low, self._high = (
                np.where(raw, end, stats[name]).astype(np.float32) for name, end in zip(keys, (-np.inf, np.inf))
            )
        if law == "mean_std":
            mean, std = (np.asarray(stats[name], np.float32) for name in ("mean", "std"))
            self._mean, self._std = np.where(raw, np.float32(0), mean), np.where(raw, np.float32(1), std)
            usable = np.where(self._std < _NO_STD, np.float32(1), self._std)
            self._divisor = np.where(raw, np.float32(1), self._std + np.float32(_NO_RANGE)) if lerobot else usable
        elif law != "none":
            low, high = (np.asarray(stats[name], np.float32) for name in _KEYS[law])
            still = high == low if lerobot else high - low <= np.float32(_NO_RANGE)
            # LeRobot stretches what has no range as well, by a tiny one.
            self._least, self._moves = low, ~still | lerobot
            self._span = np.where(still, np.float32(_NO_RANGE if lerobot else 1), high - low)
            self._warn_tiny(np.where(still, 0, high - low))

    def _clipped(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, self._low, self._high) if self._clip else x

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """Return float32 [..., D] as the model sees it."""
        x = self._checked(x)
        if self._law == "none":
            return x
        if self._law == "mean_std":
            return (self._clipped(x) - self._mean) / self._divisor
        scaled = 2 * (self._clipped(x) - self._least) / self._span - 1
        return np.where(self._raw, x, np.where(self._moves, scaled, np.float32(0)))

    def denormalize(self, x: np.ndarray) -> np.ndarray:
        """Return float32 [..., D] in the robot's units."""
        x = self._checked(x)
        if self._law == "none":
            return x
        if self._law == "mean_std":
            return self._clipped(x * self._std + self._mean)
        value = self._clipped((x + 1) / 2 * self._span + self._least)
        value = value if self._clip else np.where(self._moves, value, self._least)
        return np.where(self._raw, x, value)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float32)
        if x.shape[-1:] != (len(self.names),):
            raise ValueError(f"{self.kind} has shape {list(x.shape)}; expected [..., {len(self.names)}]")
        if not np.isfinite(x).all():
            bad = sorted({self.names[d] for d in np.argwhere(~np.isfinite(x))[:, -1]})
            raise ValueError(f"{self.kind} has NaN or infinite values in {bad}")
        return x

    def _warn_tiny(self, span: np.ndarray) -> None:
        tiny = [name for d, name in enumerate(self.names) if not self._raw[d] and 0 < span[d] < _TINY]
        if tiny:
            warnings.warn(
                f"{self.kind}: {tiny} span less than {_TINY} in the data; {self.mode} normalisation magnifies their "
                "noise to the full range",
                stacklevel=4,
            )


class Normalizer:
    """The pair of normalisers of a policy: `state` and `action`, both `VectorNormalizer`s of one mode.

    `robot` says which numbers stay raw; None: RMBench's two arms, as Mem-0 has them. `clip` None: Mem-0's modes but
    mean_std clip.
    """

    def __init__(self, stats: NormStats, mode: str = "min_max", robot: Robot | None = None, clip: bool | None = None):
        self.stats, self.mode, self.robot = stats, mode, robot or rmbench(mode)
        self.state = VectorNormalizer(stats.state, mode, "state", self.robot.state, clip)
        self.action = VectorNormalizer(stats.action, mode, "action", self.robot.action, clip)


def span_warnings(stats: NormStats, robot: Robot = RMBENCH) -> list[str]:
    """Say what of complete statistics will normalise badly, naming the numbers; [] if all is well."""
    found = []
    for kind in ("state", "action"):
        of, vector = getattr(stats, kind), getattr(robot, kind)
        span, inner = of["max"] - of["min"], of["q99"] - of["q01"]
        scaled = ~vector.where(vector.raw)
        # What an environment may leave out is 0 in its place: a 6-joint arm has no seventh joint.
        optional = np.array([any(name not in order for order in vector.orders) for name in vector.names])
        absent = optional & (of["min"] == 0) & (of["max"] == 0)
        still, tiny = span <= _NO_RANGE, span < _TINY
        kinds = {
            "never move: the model will always be shown 0 there": scaled & still & ~absent,
            f"span less than {_TINY}: min_max magnifies their noise to [-1, 1]": scaled & tiny & ~still,
            "move in less than 2 % of the frames: quantile will always give 0": scaled & ~tiny & (inner <= _NO_RANGE),
            "leave the range 0 to 1, and are not normalised": ~scaled & ((of["min"] < 0) | (of["max"] > 1)),
        }
        for what, where in kinds.items():
            if where.any():
                found.append(f"{kind}: {', '.join(vector.names[d] for d in np.flatnonzero(where))} {what}")
    return found


class _Several:
    """Datasets side by side, as `robot_of` looks at those of a mixture."""

    def __init__(self, datasets: Sequence[Any]):
        self.datasets = datasets


def vectors(dataset: LeRobotDataset, key: str) -> np.ndarray:
    """Return the states or actions of a dataset, [F, D]; DatasetError if they are no lists of finite numbers."""
    x, names = finite_vectors(dataset, key), _names(dataset, key)
    if x.shape[1:] != (len(names),):
        raise DatasetError(f"{dataset.root}: {key} has shape {list(x.shape)}; expected [F, {len(names)}]")
    return x


def finite_vectors(dataset: Any, key: str) -> np.ndarray:
    """Return the states or actions of a dataset, [F, ...]; DatasetError if they are not finite."""
    x = dataset.column(key)
    wrong = not_numbers(x)
    if wrong.any():
        row, *d = np.argwhere(wrong)[0].tolist()
        where = _names(dataset, key)[d[0]] if len(d) == 1 else f"number {d}"
        episode = next(episode for episode in dataset.episodes if row < episode.start + episode.length)
        what = "values beyond float32" if np.isfinite(x).all() else "NaN or infinite values"
        raise DatasetError(
            f"{dataset.root}: {key} has {what}, first in {where} of episode {episode.index}, frame "
            f"{row - episode.start}"
        )
    return x


def _names(dataset: Any, key: str) -> tuple[str, ...]:
    robot = robot_of(dataset)
    return (robot.state if key == VECTORS[0] else robot.action).names


def not_numbers(x: np.ndarray) -> np.ndarray:
    """Which values are NaN or infinite in float32, in which they are trained on: bool of the same shape."""
    with np.errstate(over="ignore"):
        return ~np.isfinite(x.astype(np.float32))


def _with_later(dataset: LeRobotDataset, offset: int) -> np.ndarray:
    """The rows of frames whose episode goes on for `offset` more."""
    rows = [np.arange(e.start, e.start + e.length - offset) for e in dataset.episodes]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def _measure(parts: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Statistics of the rows of all parts [F, D], dimension by dimension to need little memory in float64."""
    columns = zip(*(part.T for part in parts))
    return dict(zip(_STATS, np.array([_statistics(column) for column in columns]).T))


def _statistics(parts: Sequence[np.ndarray]) -> list[float]:
    x = np.concatenate(parts).astype(np.float64)
    return [x.min(), x.max(), x.mean(), x.std(), *np.quantile(x, [0.01, 0.99])]


def _problems(kind: str, stats: Mapping[str, np.ndarray]) -> list[str]:
    problems = []
    shapes = [np.shape(value) for value in stats.values()]
    usual = max(reversed(shapes), key=shapes.count, default=(0,))
    for name, value in stats.items():
        if name not in _STATS:
            problems.append(f"{kind}_{name} is unknown (expected {_STATS})")
        elif len(np.shape(value)) != 1 or np.shape(value) != usual:
            expected = list(usual) if len(usual) == 1 else "[D]"
            problems.append(f"{kind}_{name} has shape {list(np.shape(value))}, expected {expected}")
        elif not np.isfinite(value).all():
            problems.append(f"{kind}_{name} has NaN or infinite values")
    if not problems:
        names = getattr(RMBENCH, kind).names if usual == (16,) else range(usual[0])
        for low, high in (("min", "max"), ("q01", "q99")):
            if low in stats and high in stats and (np.asarray(stats[high]) < stats[low]).any():
                wrong = [names[d] for d in np.flatnonzero(np.asarray(stats[high]) < stats[low])]
                problems.append(f"{kind}_{high} is below {kind}_{low} for {wrong}")
        if "std" in stats and (np.asarray(stats["std"]) < 0).any():
            problems.append(f"{kind}_std is negative")
    return problems
