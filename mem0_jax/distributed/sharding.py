"""What lies where: path -> logical axes (a table beside the model) -> mesh axes (a table of the hardware).

Everything but `shardings` is arithmetic on shapes: it needs no devices, so a placement can be looked at anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mem0_jax import tree
from mem0_jax.distributed.mesh import full_sizes
from mem0_jax.units import size

Rules = Sequence[tuple[str, str]]
Table = Mapping[str, str | None]

# Parameters are split by `fsdp` along the width of the residual stream and by `tensor` along the inner width of a
# layer, so that a layer's two products need one sum over `tensor`. Layers are scanned and never split. What is small
# (biases and scales of the stream's width, widths of an action) lies everywhere.
STANDARD: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "stream": None,
    "small": None,
}


@dataclass(frozen=True)
class Placement:
    """Where one leaf lies.

    Attributes:
        shape, dtype: of the whole leaf.
        axes: logical axes, one a dimension.
        spec: mesh axes, one a dimension; only axes of more than one device are named.
        undivided: mesh axes the table asks for whose size does not divide the dimension; these were left out.
        bytes_per_device: of one shard.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    spec: PartitionSpec
    undivided: tuple[str, ...]
    bytes_per_device: int

    @property
    def bytes(self) -> int:
        """Bytes of the whole leaf."""
        return math.prod(self.shape) * jax.numpy.dtype(self.dtype).itemsize


def placements(
    abstract: Mapping[str, Any], rules: Rules, table: Table, mesh_sizes: Mapping[str, int]
) -> dict[str, Placement]:
    """Where every parameter lies.

    Args:
        abstract: nested dict of arrays or `jax.ShapeDtypeStruct`.
        rules: (logical axes, path regex), first match wins: `("layers embed mlp", "backbone/.*/up_proj/kernel")`.
        table: logical axis -> mesh axis or None, such as `STANDARD`.
        mesh_sizes: mesh axis -> size; absent ones have size 1.
    Returns:
        path -> placement, in the tree's order.
    Raises:
        TreeError: lists every leaf no rule matches, every rule that matches none, every leaf with another number of
            dimensions than its rule names, every logical axis the table lacks.
        MeshError: an unknown mesh axis.
    """
    sizes, flat = full_sizes(mesh_sizes), tree.flatten(abstract)
    full_sizes({axis: 1 for axis in table.values() if axis is not None})
    axes_of = {path: tuple(axes.split()) for path, axes in tree.match_rules(rules, flat).items()}
    problems = [
        f"{path}: {len(flat[path].shape)} dimensions {list(flat[path].shape)}, its rule names {' '.join(axes)!r}"
        for path, axes in axes_of.items()
        if len(axes) != len(flat[path].shape)
    ]
    unknown = sorted({axis for axes in axes_of.values() for axis in axes} - set(table))
    problems += [f"logical axis {axis!r}: not in the table, which knows {', '.join(table)}" for axis in unknown]
    problems = problems or [
        f"{path}: the axes {' '.join(axes)} ask for the mesh axis {axis!r} more than once"
        for path, axes in axes_of.items()
        for axis in sizes
        if [table[name] for name in axes].count(axis) > 1
    ]
    if problems:
        raise tree.TreeError("sharding rules do not fit:\n  " + "\n  ".join(problems))
    return {path: _place(leaf, axes_of[path], table, sizes) for path, leaf in flat.items()}


def _place(leaf: Any, axes: tuple[str, ...], table: Table, sizes: Mapping[str, int]) -> Placement:
    spec: list[str | None] = []
    undivided: list[str] = []
    for length, name in zip(leaf.shape, axes):
        axis = table[name]
        if axis is not None and length % sizes[axis]:
            undivided.append(axis)
            axis = None
        spec.append(axis if axis is not None and sizes[axis] > 1 else None)
    while spec and spec[-1] is None:
        spec.pop()
    parts = math.prod(sizes[axis] for axis in spec if axis)
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    return Placement(tuple(leaf.shape), str(leaf.dtype), axes, PartitionSpec(*spec), tuple(undivided), size // parts)


def partition_specs(
    abstract: Mapping[str, Any], rules: Rules, table: Table, mesh_sizes: Mapping[str, int]
) -> dict[str, PartitionSpec]:
    """path -> mesh axes of every dimension; see `placements`, which also says what could not be divided."""
    return {path: placed.spec for path, placed in placements(abstract, rules, table, mesh_sizes).items()}


def shardings(mesh: Mesh, specs: Mapping[str, PartitionSpec]) -> dict[str, Any]:
    """The nested dict of `NamedSharding` for a parameter tree, from `partition_specs`."""
    return tree.unflatten({path: NamedSharding(mesh, spec) for path, spec in specs.items()})


def placement_table(placed: Mapping[str, Placement]) -> str:
    """The start-up table: path, shape, spec, bytes a device, what was left undivided, and totals."""
    width = max(map(len, placed), default=4)
    lines = [f"{'path':<{width}}  {'shape':<20}{'split by':<22}{'a device':>12}"]
    for path, leaf in placed.items():
        spec = ", ".join(axis or "-" for axis in leaf.spec) or "-"
        note = f"  not divisible by {', '.join(leaf.undivided)}" if leaf.undivided else ""
        shape = "x".join(map(str, leaf.shape))
        lines.append(f"{path:<{width}}  {shape:<20}{spec:<22}{size(leaf.bytes_per_device, binary=True):>12}{note}")
    whole, part = (sum(getattr(leaf, name) for leaf in placed.values()) for name in ("bytes", "bytes_per_device"))
    lines.append(f"{len(placed)} arrays, {size(whole, binary=True)}, {size(part, binary=True)} a device")
    return "\n".join(lines)
