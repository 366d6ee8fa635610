"""A training step compiled ahead of time for a TPU slice, on a machine that has none.

libtpu compiles for a topology without its chips; nothing is allocated and nothing runs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from mem0_jax import tree
from mem0_jax.distributed.hardware import HARDWARE
from mem0_jax.distributed.hlo import Collective, collectives
from mem0_jax.distributed.layout import make_layout, mesh_text
from mem0_jax.distributed.mesh import make_mesh, parse_mesh
from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.train.flops import peak_flops, training_flops
from mem0_jax.train.job import Job
from mem0_jax.train.lora import adapted
from mem0_jax.train.state import blueprint
from mem0_jax.train.step import make_train_step
from mem0_jax.train.watch import tree_bytes


class AotError(UserError):
    """A topology that cannot be compiled for, or a step that does not fit its chips."""


@dataclass(frozen=True)
class Chip:
    """What a chip's maker says of it.

    Attributes:
        hbm: bytes of memory.
        link: bytes a second sent along one axis of the torus, both directions together (Austin et al., "How to scale
            your model", 2025).
    """

    hbm: int
    link: float


CHIPS = {
    "v4": Chip(32 * 2**30, 9.0e10),
    "v5e": Chip(16 * 2**30, 9.0e10),
    "v5p": Chip(95 * 2**30, 1.8e11),
    "v6e": Chip(32 * 2**30, 1.8e11),
}


@dataclass(frozen=True)
class Compiled:
    """A step compiled for a slice; bytes, operations and seconds are those of one chip and one step.

    Attributes:
        params, optimizer, carry, batch: bytes of the state (`optimizer` with moving averages) and of the batch.
        temporary: bytes of activations, gradients and buffers at the worst moment.
        code: bytes of the program.
        whole: the largest leaves that every chip holds whole, (path, bytes).
        collectives: by kind.
        flops: of the step by formula, recomputation left out; recomputed: with the forward passes taken twice, where
            nothing is stored of them (what other choices of `remat_keep` recompute is small and left out).
    """

    topology: str
    chips: int
    mesh: str
    lanes: int
    frames: int
    params: int
    optimizer: int
    carry: int
    batch: int
    temporary: int
    code: int
    hbm: int
    whole: tuple[tuple[str, int], ...]
    collectives: dict[str, Collective]
    compile_seconds: float
    flops: float
    recomputed: float
    peak: float
    link: float

    @property
    def total(self) -> int:
        """Bytes needed; the state is donated, so that it counts once."""
        return self.params + self.optimizer + self.carry + self.batch + self.temporary + self.code

    @property
    def compute_seconds(self) -> float:
        """recomputed / peak."""
        return self.recomputed / self.peak

    @property
    def network_seconds(self) -> float:
        """Bytes sent / link."""
        return sum(kind.sent for kind in self.collectives.values()) / self.link

    @property
    def step_seconds(self) -> float:
        """The roofline: max(compute, network), were both always busy. HBM traffic and waiting for data come on top."""
        return max(self.compute_seconds, self.network_seconds)

    @property
    def mfu(self) -> float:
        """flops / (step_seconds * peak): no run on these chips can have more."""
        return self.flops / (self.step_seconds * self.peak)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        derived = ("total", "compute_seconds", "network_seconds", "step_seconds", "mfu")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def topology_devices(topology: str) -> tuple[str, list[Any]]:
    """(generation, devices) of a slice such as "v5e:4x4" or "v5p:4x4x4".

    Raises:
        AotError: libtpu is missing, or knows no such slice.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+){1,2}", topology):
        raise AotError(f"topology: expected one of {', '.join(CHIPS)} and its shape, such as v5e:4x4, got {topology!r}")
    # No chip is used, so other processes that hold the library do not matter, and no machine need be asked.
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        return kind, list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:  # the plugin raises whatever its layers raise
        if importlib.util.find_spec("libtpu") is None:
            raise AotError(f"compiling for TPUs needs libtpu: {how_to_install('aot')}") from error
        first = (str(error).splitlines() or [""])[0]
        raise AotError(f"topology {topology!r}: {first}") from error


@same_numbers
def compile_step(job: Job, topology: str, mesh: str = "") -> Compiled:
    """Compiles a job's training step for a slice.

    Args:
        job: the settings; datasets and bundles are not opened.
        topology: see `topology_devices`.
        mesh: see `parse_mesh`; by default that of the job's hardware.
    Raises:
        AotError: see above; or the step does not fit the chips' memory.
        MeshError: the mesh does not fit the slice or the lanes.
    """
    kind, devices = topology_devices(topology)
    config, family = job.train_config(), job.family
    model = family.completed(job.model, None, family.vocabulary(job.model), job.compute_dtype)
    plain = family.policy(model)
    policy = adapted(plain, job.lora)
    abstract, optimizer, _, template = blueprint(policy, config)
    layout = make_layout(
        abstract, policy.logical_axes, make_mesh(parse_mesh(mesh or HARDWARE[job.hardware]["mesh"]), devices)
    )
    state = layout.with_shardings(template)
    tokens, trained = job.data.max_length, list(tree.flatten(state.opt_state.mu))
    batch = {
        name: jax.ShapeDtypeStruct((job.lanes, job.frames, *shape), dtype, sharding=layout.lanes_sharding)
        for name, (shape, dtype) in plain.batch(tokens, len(job.data.views)).items()
    }
    began = time.perf_counter()
    step = make_train_step(policy, optimizer, config.accumulate, config.ema_decay)
    executable, program = _compile(layout, step, state, batch)
    seconds, memory = time.perf_counter() - began, executable.memory_analysis()
    flops = training_flops(model, tokens, trained) * job.train.batch_size / len(devices)
    forward = training_flops(model, tokens, ()) * job.train.batch_size / len(devices)
    whole = [(path, leaf.bytes) for path, leaf in layout.placed.items() if leaf.bytes == leaf.bytes_per_device]
    chip, peak = CHIPS[kind], peak_flops(devices[0].device_kind)
    assert peak is not None
    return Compiled(
        topology=topology,
        chips=len(devices),
        mesh=mesh_text(layout.mesh.shape),
        lanes=job.lanes,
        frames=job.frames,
        params=shard_bytes(state.params),
        optimizer=shard_bytes((state.opt_state, state.ema)),
        carry=shard_bytes(state.carry),
        batch=shard_bytes(batch),
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        hbm=chip.hbm,
        whole=tuple(sorted(whole, key=lambda leaf: -leaf[1])[:5]),
        collectives=collectives(program),
        compile_seconds=seconds,
        flops=flops,
        recomputed=flops + (forward if family.recomputes(model) else 0.0),
        peak=peak,
        link=chip.link,
    )


def shard_bytes(abstract: Any) -> int:
    """Bytes of one device's shards of arrays with shardings."""
    return sum(
        tree_bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype))
        for leaf in jax.tree.leaves(abstract)
    )


def _compile(layout: Any, step: Any, state: Any, batch: Mapping[str, Any]) -> tuple[Any, str]:
    """The executable and the text of its optimised program."""
    with jax.set_mesh(layout.mesh), tempfile.TemporaryDirectory() as folder:
        lowered = layout.jitted(step, state).trace(state, batch).lower(lowering_platforms=("tpu",))
        # libtpu writes the text itself: jaxlib's parser knows not all of the operations of newer libtpus.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            executable = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            first = str(error).splitlines()[0]
            if "RESOURCE_EXHAUSTED" in first:
                raise AotError(
                    f"the step does not fit the chips' memory: {first[:400]}\nTake more parts (train.accumulate), "
                    "recompute (model.remat=True), fewer frames (train.batch_size), or more chips."
                ) from error
            raise
        (written,) = Path(folder).glob(f"*.jit_{step.__name__}.*.after_optimizations.txt")
        return executable, written.read_text()
