"""Tells the compiler that activations are split by samples over the devices of the mesh in use.

Without such anchors the compiler may prefer to move activations to where parameters lie, instead of the other way
round, and then needs many times the memory.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # the mesh axes that split lanes, and so the samples made of them


def by_samples(values: Any) -> Any:
    """The same pytree of arrays, their first axis split over the batch axes of the mesh of `jax.set_mesh`.

    How other axes are split is left to the compiler. An array whose first axis the devices do not divide, or a program
    without a mesh, stays as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if parts == 1:
        return values

    def constrain(x: jax.Array) -> jax.Array:
        if not x.ndim or x.shape[0] % parts:
            return x
        spec = PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(constrain, values)
