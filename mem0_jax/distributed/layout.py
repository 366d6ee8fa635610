"""Where a training run lies on a mesh: its state, and the batches that the processes bring.

Axes: L lanes of all processes, T consecutive frames. Lanes are split over the mesh axes `data` and `fsdp`; every
process loads the lanes its own devices hold, and no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mem0_jax import tree
from mem0_jax.distributed.mesh import MeshError, lane_shards
from mem0_jax.distributed.sharding import STANDARD, Placement, Rules, Table, placement_table, placements
from mem0_jax.nn.partition import BATCH_AXES

State = TypeVar("State")
# The fields of a train state that hold arrays of parameters' paths and shapes.
PER_PARAMETER = ("params", "opt_state/mu", "opt_state/nu", "ema")
CARRY = "carry"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """A mesh, and where each parameter lies on it; make it with `make_layout`."""

    mesh: Mesh
    placed: Mapping[str, Placement]

    @property
    def lanes_sharding(self) -> NamedSharding:
        """Splits a first axis of lanes, of batches and memories."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def everywhere(self) -> NamedSharding:
        """Gives every device the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def params(self) -> dict[str, NamedSharding]:
        """path -> sharding of the parameters."""
        return {path: NamedSharding(self.mesh, leaf.spec) for path, leaf in self.placed.items()}

    def state(self, template: State) -> State:
        """The shardings of a `TrainState`, of its form: moments and averages lie where their parameters do, memories
        with their lanes, and counters everywhere.

        Raises:
            MeshError: the lanes cannot be divided; or a leaf is none of these (lists all).
        """
        by_path, problems = self.params(), []

        def place(path: Any, leaf: Any) -> NamedSharding:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            for field in PER_PARAMETER:
                if name.startswith(f"{field}/") and name[len(field) + 1 :] in by_path:
                    return by_path[name[len(field) + 1 :]]
            if name.split("/")[0] == CARRY:
                self.check_lanes(leaf.shape[0])
                return self.lanes_sharding
            if leaf.shape:
                problems.append(f"{name} {list(leaf.shape)}")
            return self.everywhere

        made = jax.tree_util.tree_map_with_path(place, template)
        if problems:
            raise MeshError("no rule says where these lie:\n  " + "\n  ".join(problems))
        return made

    def with_shardings(self, template: State) -> State:
        """The template's `jax.ShapeDtypeStruct` leaves with their shardings, to restore a checkpoint into."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            template,
            self.state(template),
        )

    def create(self, make: Callable[..., State], *arguments: Any) -> State:
        """`make(*arguments)`, a `TrainState`, traced and computed where its leaves lie; arguments are donated."""
        shardings = self.state(jax.eval_shape(make, *arguments))
        donated = tuple(range(len(arguments)))
        return jax.jit(make, out_shardings=shardings, donate_argnums=donated)(*arguments)

    def put_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters that every process has whole, or in any shards, moved to where they lie."""
        return jax.device_put(params, tree.unflatten(self.params()))

    def whole(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters as arrays that this process has whole; all processes must call it."""
        return params if jax.process_count() == 1 else multihost_utils.process_allgather(params, tiled=True)

    def jit_step(
        self, step: Callable[[State, Any], tuple[State, Any]], state: State
    ) -> Callable[..., tuple[State, Any]]:
        """`jitted`, to be called like any function."""
        compiled = self.jitted(step, state)

        def run(state: State, batch: Any) -> tuple[State, Any]:
            with jax.set_mesh(self.mesh):
                return compiled(state, batch)

        return run

    def jitted(self, step: Callable[..., Any], state: Any) -> Any:
        """`jax.jit` of a step: the state is donated and stays where it lies; metrics lie everywhere. Trace it with the
        mesh set (`jax.set_mesh`).
        """
        return jax.jit(step, donate_argnums=0, out_shardings=(self.state(state), self.everywhere))

    def check_lanes(self, lanes: int) -> None:
        """Raises MeshError where the mesh cannot divide so many lanes."""
        parts = lane_shards(dict(self.mesh.shape))
        if lanes % parts:
            raise MeshError(
                f"{lanes} lanes cannot be divided among the {parts} lane shards (data * fsdp) of the mesh "
                f"{mesh_text(self.mesh.shape)}; choose a multiple of {parts} lanes, or another mesh"
            )

    def local_lanes(self, lanes: int) -> tuple[int, int]:
        """(first lane, number of lanes) that this process's devices hold, out of `lanes`."""
        self.check_lanes(lanes)
        held = self.lanes_sharding.addressable_devices_indices_map((lanes,)).values()
        ranges = sorted({index[0].indices(lanes)[:2] for index in held if index is not None})
        first, last = ranges[0][0], ranges[-1][1]
        if sum(end - start for start, end in ranges) != last - first:
            raise MeshError(
                f"mesh {mesh_text(self.mesh.shape)}: this process's devices hold lanes {ranges}, which are not "
                "consecutive; give `data` and `fsdp` sizes that keep the devices of a process together"
            )
        return first, last - first

    def batch(self, local: Mapping[str, np.ndarray], lanes: int) -> dict[str, jax.Array]:
        """Global arrays [L, T, ...] of this process's part of a batch, [its lanes, T, ...]."""
        return {
            name: jax.make_array_from_process_local_data(self.lanes_sharding, value, (lanes, *value.shape[1:]))
            for name, value in local.items()
        }


def make_layout(abstract: Mapping[str, Any], rules: Rules, mesh: Mesh, table: Table = STANDARD) -> Layout:
    """The layout of parameters `abstract` (see `placements`, whose errors it raises); logs what cannot be divided."""
    placed = placements(abstract, rules, table, dict(mesh.shape))
    whole = [
        f"{path} {list(leaf.shape)} by {', '.join(leaf.undivided)}" for path, leaf in placed.items() if leaf.undivided
    ]
    if whole:
        _log.warning(
            "mesh %s does not divide, so every device holds whole: %s", mesh_text(mesh.shape), "; ".join(whole)
        )
    _log.info("parameters on the mesh %s:\n%s", mesh_text(mesh.shape), placement_table(placed))
    return Layout(mesh, placed)


def mesh_text(sizes: Mapping[str, int]) -> str:
    """`"fsdp=4,tensor=2"`: the inverse of `parse_mesh`, without axes of size 1."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "data=1"
