"""Meshes of devices with the axes `data`, `fsdp` and `tensor`.

`data` and `fsdp` split the lanes of a batch; `fsdp` splits parameters and optimizer state too, gathered layer by layer
where they are used; `tensor` splits the inside of a layer. Slow links between machines belong under `data`, the
fastest under `tensor`, which is why the axes are laid out in this order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils

from mem0_jax.errors import UserError
from mem0_jax.nn.partition import BATCH_AXES

AXES = ("data", "fsdp", "tensor")


class MeshError(UserError, ValueError):
    """A mesh that cannot be read, or that does not fit the devices."""


def parse_mesh(text: str) -> dict[str, int]:
    """`"data=2,fsdp=4"` to `{"data": 2, "fsdp": 4, "tensor": 1}`; an axis left out has size 1.

    Raises:
        MeshError: an unknown axis, one given twice, or a size that is not a whole number of at least 1.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        axis, equals, size = (piece.strip() for piece in part.partition("="))
        if axis not in AXES or not equals:
            raise MeshError(f"mesh {text!r}: expected AXIS=SIZE with an axis of {', '.join(AXES)}, got {part!r}")
        if axis in sizes:
            raise MeshError(f"mesh {text!r}: axis {axis!r} is given twice")
        if not (size.isascii() and size.isdigit() and int(size) >= 1):
            raise MeshError(f"mesh {text!r}: the size of {axis!r} must be a whole number of at least 1, got {size!r}")
        sizes[axis] = int(size)
    return full_sizes(sizes)


def full_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """All axes in their order, absent ones of size 1. Raises MeshError for an unknown axis or a size below 1."""
    wrong = [f"{axis}={size}" for axis, size in sizes.items() if axis not in AXES or size < 1]
    if wrong:
        raise MeshError(f"mesh: expected the axes {', '.join(AXES)} with sizes of at least 1, got {', '.join(wrong)}")
    return {axis: sizes.get(axis, 1) for axis in AXES}


def lane_shards(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these sizes splits the lanes of a batch; the lanes must be a multiple of it."""
    return math.prod(full_sizes(sizes)[axis] for axis in BATCH_AXES)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh over all devices of all processes, laid out so that neighbours in an axis are neighbours in the network.

    Args:
        sizes: axis -> size, from `parse_mesh`; the product must be the number of devices.
        devices: by default `jax.devices()`.
    Raises:
        MeshError: the sizes do not multiply to the number of devices, or an axis fits no axes of the slice's torus.
    """
    sizes = full_sizes(sizes)
    devices = jax.devices() if devices is None else devices
    if math.prod(sizes.values()) != len(devices):
        product = " * ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise MeshError(
            f"mesh: {product} = {math.prod(sizes.values())} devices, but there are {len(devices)}; "
            "change the sizes so that their product is the number of devices"
        )
    try:
        placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices)
    except NotImplementedError as error:
        raise MeshError(f"mesh: {str(error).partition(' If you want')[0]}") from error
    return jax.sharding.Mesh(placed, AXES)
