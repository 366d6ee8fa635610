"""Start-up of a run of several processes: TPU pods, SLURM, and plain hosts.

Nothing is asked on the command line: each launcher already says in the environment who takes part. Plain hosts are
told by MEM0_COORDINATOR=HOST:PORT (a port of process 0's host), MEM0_PROCESSES and MEM0_PROCESS (0, 1, ...); a Google
Cloud TPU pod that is not run by Kubernetes by MEM0_CLUSTER=tpu.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mem0_jax.errors import UserError

VARIABLES = ("MEM0_COORDINATOR", "MEM0_PROCESSES", "MEM0_PROCESS")
CLUSTERS = ("tpu", "slurm")
PATIENCE = 300  # seconds to wait for the other processes
_log = logging.getLogger(__name__)


class StartupError(UserError):
    """An environment that contradicts itself, or processes that did not meet."""


@dataclass(frozen=True)
class Cluster:
    """Who takes part.

    Attributes:
        kind: "hosts", "slurm" or "tpu".
        coordinator, processes, process: where process 0 listens, how many there are, which one this is; None where JAX
            finds them out itself, from SLURM's variables or the TPU's metadata.
    """

    kind: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def find_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that environment variables tell of; None for a single process.

    Raises:
        StartupError: names the variable that is missing or wrong.
    """
    given = [name for name in VARIABLES if environment.get(name)]
    if given:
        return _plain_hosts(environment, given)
    named = environment.get("MEM0_CLUSTER", "")
    if named:
        if named not in CLUSTERS:
            raise StartupError(f"MEM0_CLUSTER: expected one of {', '.join(CLUSTERS)}, got {named!r}")
        return Cluster(named)
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_PROCID" in environment and tasks.isdigit() and int(tasks) > 1:
        return Cluster("slurm")
    # Where there is no TPU, libtpu puts a sentence there, with a comma in it.
    if re.fullmatch(r"[\w.:\-]+(,[\w.:\-]+)+", environment.get("TPU_WORKER_HOSTNAMES", "")):
        return Cluster("tpu")
    return None


def _plain_hosts(environment: Mapping[str, str], given: list[str]) -> Cluster:
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise StartupError(f"{', '.join(given)} given without {', '.join(missing)}: a run on several hosts needs all")
    coordinator = environment["MEM0_COORDINATOR"]
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise StartupError(
            f"MEM0_COORDINATOR: expected HOST:PORT of process 0, such as 10.0.0.1:8476, got {coordinator!r}"
        )
    numbers = []
    for name in VARIABLES[1:]:
        if not environment[name].isdigit():
            raise StartupError(f"{name}: expected a whole number, got {environment[name]!r}")
        numbers.append(int(environment[name]))
    if not 0 <= numbers[1] < numbers[0]:
        raise StartupError(
            f"MEM0_PROCESS: expected 0 to {numbers[0] - 1}, for {numbers[0]} processes, got {numbers[1]}"
        )
    return Cluster("hosts", coordinator, *numbers)


def start(environment: Mapping[str, str] | None = None) -> Cluster | None:
    """Joins the other processes, if there are any; call it before anything else asks JAX for devices.

    Raises:
        StartupError: see `find_cluster`; or the others did not come within five minutes.
    """
    cluster = find_cluster(os.environ if environment is None else environment)
    if cluster is None:
        return None
    import jax

    try:
        jax.distributed.initialize(
            cluster.coordinator, cluster.processes, cluster.process, initialization_timeout=PATIENCE
        )
        if cluster.kind == "slurm":
            _use_all_gpus_of_a_node(os.environ if environment is None else environment)
    except Exception as error:  # the client raises whatever its layers raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise StartupError(
            f"the processes of this run ({cluster.kind}) did not meet: {first}\nEvery process must be started with the "
            "same settings, at the same time, and reach the coordinator's host and port."
        ) from error
    _log.info(
        "process %d of %d, %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )
    return cluster


def _use_all_gpus_of_a_node(environment: Mapping[str, str]) -> None:
    """JAX gives a task of SLURM one GPU, whose number is the task's on its node; a task that is alone gets all."""
    import jax

    if environment.get("SLURM_STEP_NUM_TASKS") == environment.get("SLURM_STEP_NUM_NODES"):
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, "all")
