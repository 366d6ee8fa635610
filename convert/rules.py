"""The rule engine: a small table per model maps source tensors to leaves of our tree and back.

Every source key and every leaf must be accounted for; a plan is made, and checked whole, before any tensor is read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mem0_jax.convert.stored import array_of
from mem0_jax.errors import UserError
from mem0_jax.tree import flatten, unflatten


class ConversionError(UserError):
    """Source and target do not fit; the message lists everything that does not."""


@dataclass(frozen=True)
class Op:
    """An invertible rearrangement of one tensor: source to leaf, and leaf to source."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def identity(x: np.ndarray) -> np.ndarray:
    """Leaves a tensor as it is."""
    return x


KEEP = Op(identity, identity)
TRANSPOSE = Op(np.transpose, np.transpose)  # torch stores a linear layer as [outputs, inputs], we as [inputs, outputs]


def flatten_kernel(shape: tuple[int, ...]) -> Op:
    """A convolution whose stride is its kernel, as a matrix: [O, *shape] <-> [prod(shape), O]."""
    return Op(lambda x: x.reshape(len(x), -1).T, lambda x: x.T.reshape(-1, *shape))


@dataclass(frozen=True)
class Rule:
    """`source` fills `targets`.

    Attributes:
        source: a source key; `{n}` stands for the layer number of a stacked leaf.
        targets: leaf paths. Several share the source evenly along its first axis (packed q, k, v).
        op: applied to each share.
        every, offset: layer k of the leaf is source layer offset + every * k.
    """

    source: str
    targets: tuple[str, ...]
    op: Op = KEEP
    every: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Tied:
    """A source tensor that must equal another one and has no leaf of its own; it may be left out of a file."""

    source: str
    same_as: str


@dataclass(frozen=True)
class Constant:
    """A source scalar that is a setting on our side; it must have that value."""

    source: str
    value: float


AnyRule = Rule | Tied | Constant


def linear(source: str, target: str, *, bias: bool = True, parts: Sequence[str] = (), **layers: int) -> list[AnyRule]:
    """A torch linear layer; with `parts` one packed layer that fills several of ours, `target/PART`."""
    targets = [f"{target}/{part}" for part in parts] or [target]
    rules: list[AnyRule] = [Rule(f"{source}.weight", tuple(f"{t}/kernel" for t in targets), TRANSPOSE, **layers)]
    if bias:
        rules.append(Rule(f"{source}.bias", tuple(f"{t}/bias" for t in targets), KEEP, **layers))
    return rules


def norm(source: str, target: str, *, bias: bool = True) -> list[AnyRule]:
    """A LayerNorm, or without bias an RMSNorm."""
    rules: list[AnyRule] = [Rule(f"{source}.weight", (f"{target}/scale",))]
    return [*rules, Rule(f"{source}.bias", (f"{target}/bias",))] if bias else rules


@dataclass(frozen=True)
class Entry:
    """One source tensor of a plan: fills layer `layer` (None: the whole leaf) of every target."""

    source: str
    targets: tuple[str, ...]
    op: Op
    layer: int | None


@dataclass(frozen=True)
class Plan:
    """Entries that fill every leaf of `abstract` exactly once, and the sources checked against something else."""

    entries: tuple[Entry, ...]
    checks: tuple[Tied | Constant, ...]
    abstract: dict[str, Any]


@dataclass
class Misfits:
    """What keeps a source and a model apart.

    Attributes:
        unmapped: source tensors without a rule.
        missing: source tensors that a rule expects.
        unfilled: leaves without a source.
        clashes: shapes that do not fit, and rules for leaves that do not exist.
    """

    unmapped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unfilled: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.unmapped or self.missing or self.unfilled or self.clashes)

    def lines(self) -> list[str]:
        """One line each."""
        return [
            *(f"no rule for source tensor {key}" for key in self.unmapped),
            *(f"source tensor {key} is missing" for key in self.missing),
            *(f"no source for leaf {path}" for path in self.unfilled),
            *self.clashes,
        ]


class PlanError(ConversionError):
    """Source and model do not fit; `misfits` has the lists that the message shows."""

    def __init__(self, misfits: Misfits):
        self.misfits, lines = misfits, misfits.lines()
        super().__init__(f"{len(lines)} mismatches between source and model:\n  " + "\n  ".join(lines))


def make_plan(rules: Sequence[AnyRule], shapes: Mapping[str, tuple[int, ...]] | None, abstract: Any) -> Plan:
    """Accounts for every source key and every leaf.

    Args:
        rules: the model's table.
        shapes: shape of every source tensor; None plans the way back, from leaves to source tensors.
        abstract: our tree, of arrays or `jax.ShapeDtypeStruct`.

    Raises:
        PlanError: listing all source keys without a rule, leaves without a source and shapes that clash.
    """
    leaves, misfits = flatten(abstract), Misfits()
    entries: list[Entry] = []
    for rule in rules:
        if isinstance(rule, Rule):
            entries += _expand(rule, leaves, misfits)
    checks = [rule for rule in rules if not isinstance(rule, Rule)]
    filled = {target for entry in entries for target in entry.targets}
    misfits.unfilled += [path for path in leaves if path not in filled]
    if shapes is not None:
        known = {entry.source for entry in entries} | {check.source for check in checks}
        misfits.unmapped += [f"{key} {tuple(shapes[key])}" for key in shapes if key not in known]
        needed = [e.source for e in entries] + [c.source for c in checks if isinstance(c, Constant)]
        misfits.missing += [key for key in needed if key not in shapes]
        checks = [check for check in checks if check.source in shapes]
        for entry in entries:
            if entry.source in shapes:
                misfits.clashes += _clashes(entry, shapes[entry.source], leaves)
    if misfits:
        raise PlanError(misfits)
    return Plan(tuple(entries), tuple(checks), leaves)


def _expand(rule: Rule, leaves: Mapping[str, Any], misfits: Misfits) -> list[Entry]:
    unknown = [path for path in rule.targets if path not in leaves]
    if unknown:
        misfits.clashes += [f"rule for {rule.source} names {path}, which is no leaf of the model" for path in unknown]
        return []
    if "{n}" not in rule.source:
        return [Entry(rule.source, rule.targets, rule.op, None)]
    layers = leaves[rule.targets[0]].shape[0]
    return [
        Entry(rule.source.replace("{n}", str(rule.offset + rule.every * k)), rule.targets, rule.op, k)
        for k in range(layers)
    ]


def _clashes(entry: Entry, shape: tuple[int, ...], leaves: Mapping[str, Any]) -> list[str]:
    expected = [tuple(leaves[t].shape[entry.layer is not None :]) for t in entry.targets]
    got = None
    if not shape or shape[0] % len(entry.targets) == 0:
        probe = np.broadcast_to(np.zeros((), np.int8), shape)  # no memory: strides of zero
        got = [entry.op.forward(part).shape for part in np.split(probe, len(entry.targets))] if shape else [()]
    if got == expected:
        return []
    return [f"{entry.source} {tuple(shape)} gives {got}, but {', '.join(entry.targets)} needs {expected}"]


def pieces(entry: Entry, tensors: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the source of an entry once: each target with its values, the leaf's or those of layer `entry.layer`."""
    value = array_of(tensors[entry.source])
    parts = np.split(value, len(entry.targets)) if len(entry.targets) > 1 else [value]
    for target, part in zip(entry.targets, parts):
        yield target, entry.op.forward(part)


def load(plan: Plan, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Reads every tensor of the plan into a nested dict of float32 arrays.

    Raises:
        ConversionError: a tied tensor differs from its twin, or a constant from the setting.
    """
    verify(plan, tensors)
    tree = {path: np.empty(leaf.shape, np.float32) for path, leaf in plan.abstract.items()}
    for entry in plan.entries:
        for target, value in pieces(entry, tensors):
            tree[target][... if entry.layer is None else entry.layer] = value
    return unflatten(tree)


def verify(plan: Plan, tensors: Mapping[str, Any]) -> None:
    """Holds the plan's checks. Raises ConversionError as `load` does."""
    for check in plan.checks:
        mine, twin = tensors[check.source], tensors[check.same_as] if isinstance(check, Tied) else None
        if twin is not None and hasattr(mine, "same_as") and mine.same_as(twin):
            continue  # one storage: nothing to read
        value = array_of(mine)
        other = array_of(twin) if isinstance(check, Tied) else np.array(check.value, np.float32)
        if differs := _difference(value, other):
            name = check.same_as if isinstance(check, Tied) else f"the setting {check.value}"
            raise ConversionError(f"{check.source} must equal {name}, but {differs}")


def _difference(a: np.ndarray, b: np.ndarray) -> str:
    """ "is nan at [3, 7], not 0.5": the first; looked for row by row, so that a large table is never copied whole."""
    if a.shape != b.shape:
        return f"has shape {a.shape}, not {b.shape}"
    if a.ndim == 0:
        a, b = a.astype(np.float32), b.astype(np.float32)
        return "" if a == b else f"is {a}, not {b}"
    for row, (x, y) in enumerate(zip(a, b)):
        x, y = x.astype(np.float32), y.astype(np.float32)
        if not np.array_equal(x, y, equal_nan=True):
            place = tuple(np.argwhere((x != y) & ~(np.isnan(x) & np.isnan(y)))[0])
            return f"is {x[place]} at {[row, *map(int, place)]}, not {y[place]}"
    return ""


@dataclass(frozen=True)
class Exported:
    """The source tensor of an entry, made from the leaves when read."""

    entry: Entry
    leaves: Mapping[str, Any]

    @property
    def dtype(self) -> np.dtype:
        """Of the leaves it is made of."""
        return np.dtype(self.leaves[self.entry.targets[0]].dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the source tensor: the leaves' own by the entry's operation undone."""
        probes = [np.broadcast_to(np.int8(0), self._shape_of(target)) for target in self.entry.targets]
        return _joined([self.entry.op.inverse(probe) for probe in probes]).shape

    def _shape_of(self, target: str) -> tuple[int, ...]:
        return tuple(self.leaves[target].shape[self.entry.layer is not None :])

    def read(self) -> np.ndarray:
        """The values, as the source holds them."""
        return _joined([self.entry.op.inverse(self._part(target)) for target in self.entry.targets])

    def _part(self, target: str) -> np.ndarray:
        leaf = self.leaves[target]
        if hasattr(leaf, "read"):
            return leaf.read(self.entry.layer)
        return np.asarray(leaf)[... if self.entry.layer is None else self.entry.layer]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def exported(plan: Plan, leaves: Mapping[str, Any]) -> dict[str, Exported]:
    """The way back: source tensors by key, read when asked for (without the tied ones and constants).

    Args:
        plan: of this model, from either direction.
        leaves: by path, arrays or objects whose `read(layer)` gives one layer (None: all).
    """
    return {entry.source: Exported(entry, leaves) for entry in plan.entries}


def export(plan: Plan, tree: Any) -> dict[str, np.ndarray]:
    """The inverse of `load`: the arrays of `exported`."""
    return {key: tensor.read() for key, tensor in exported(plan, flatten(tree)).items()}
