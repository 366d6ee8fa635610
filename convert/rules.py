"""The rule engine: a small table per model maps source tensors to leaves of our tree and back.

Every source key and every leaf must be accounted for; a plan is made, and checked whole, before any tensor is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    """A source tensor that must equal another one and has no leaf of its own."""

    source: str
    same_as: str


@dataclass(frozen=True)
class Constant:
    """A source scalar that is a setting on our side; it must have that value."""

    source: str
    value: float


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


def make_plan(rules: Sequence[Rule | Tied | Constant], shapes: Mapping[str, tuple[int, ...]], abstract: Any) -> Plan:
    """Accounts for every source key and every leaf.

    Args:
        rules: the model's table.
        shapes: shape of every source tensor.
        abstract: our tree, of arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ConversionError: listing all source keys without a rule, leaves without a source and shapes that clash.
    """
    leaves = flatten(abstract)
    entries, checks, problems = [], [], []
    for rule in rules:
        if isinstance(rule, Rule):
            entries += _expand(rule, leaves, problems)
        else:
            checks.append(rule)
    consumed = [e.source for e in entries] + [c.source for c in checks]
    problems += [f"no rule for source tensor {key} {tuple(shapes[key])}" for key in shapes if key not in set(consumed)]
    problems += [f"source tensor {key} is missing" for key in consumed if key not in shapes]
    filled = {target for entry in entries for target in entry.targets}
    problems += [f"no source for leaf {path}" for path in leaves if path not in filled]
    for entry in entries:
        if entry.source in shapes:
            problems += _clashes(entry, shapes[entry.source], leaves)
    if problems:
        raise ConversionError(f"{len(problems)} mismatches between source and model:\n  " + "\n  ".join(problems))
    return Plan(tuple(entries), tuple(checks), leaves)


def _expand(rule: Rule, leaves: Mapping[str, Any], problems: list[str]) -> list[Entry]:
    unknown = [path for path in rule.targets if path not in leaves]
    if unknown:
        problems += [f"rule for {rule.source} names {path}, which is no leaf of the model" for path in unknown]
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


def load(plan: Plan, source: Mapping[str, np.ndarray], dtype: Any = np.float32) -> dict[str, Any]:
    """Reads every tensor of the plan into a nested dict of arrays of `dtype`.

    Raises:
        ConversionError: a tied tensor differs from its twin, or a constant from the setting.
    """
    for check in plan.checks:
        _verify(check, source)
    tree = {path: np.empty(leaf.shape, dtype) for path, leaf in plan.abstract.items()}
    for entry in plan.entries:
        parts = np.split(np.asarray(source[entry.source]), len(entry.targets)) if len(entry.targets) > 1 else None
        for i, target in enumerate(entry.targets):
            value = entry.op.forward(parts[i] if parts else np.asarray(source[entry.source]))
            tree[target][... if entry.layer is None else entry.layer] = value
    return unflatten(tree)


def _verify(check: Tied | Constant, source: Mapping[str, np.ndarray]) -> None:
    value = np.asarray(source[check.source])
    other = np.asarray(source[check.same_as]) if isinstance(check, Tied) else np.float32(check.value)
    if value.shape != other.shape or not np.array_equal(value.astype(np.float32), other.astype(np.float32)):
        name = check.same_as if isinstance(check, Tied) else f"the setting {check.value}"
        raise ConversionError(f"{check.source} must equal {name}, but differs")


def export(plan: Plan, tree: Any) -> dict[str, np.ndarray]:
    """The inverse of `load`: source tensors by key (without the tied ones and constants)."""
    leaves = flatten(tree)

    def part(entry: Entry, target: str) -> np.ndarray:
        return entry.op.inverse(np.asarray(leaves[target])[... if entry.layer is None else entry.layer])

    out = {}
    for entry in plan.entries:
        parts = [part(entry, target) for target in entry.targets]
        out[entry.source] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return out
