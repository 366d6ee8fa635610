"""Which processes take part, from the environment that a launcher makes."""

import os
import subprocess
import sys

import pytest

from mem0_jax.distributed.startup import Cluster, StartupError, find_cluster, start

HOSTS = {"MEM0_COORDINATOR": "10.0.0.1:8476", "MEM0_PROCESSES": "4", "MEM0_PROCESS": "3"}
NO_TPU = "WARNING: could not determine TPU worker hostnames or IP addresses, please set env var by hand"


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        (HOSTS, Cluster("hosts", "10.0.0.1:8476", 4, 3)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, Cluster("slurm")),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, Cluster("tpu")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": NO_TPU}, None),
        ({"MEM0_CLUSTER": "tpu"}, Cluster("tpu")),
        ({"MEM0_CLUSTER": "slurm", **HOSTS}, Cluster("hosts", "10.0.0.1:8476", 4, 3)),
    ],
)
def test_cluster_is_found(environment, cluster):
    assert find_cluster(environment) == cluster


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MEM0_PROCESS": ""}, "given without MEM0_PROCESS"),
        ({"MEM0_PROCESS": "4"}, "MEM0_PROCESS: expected 0 to 3, for 4 processes, got 4"),
        ({"MEM0_PROCESSES": "two"}, "MEM0_PROCESSES: expected a whole number, got 'two'"),
        ({"MEM0_COORDINATOR": "10.0.0.1"}, "MEM0_COORDINATOR: expected HOST:PORT"),
    ],
)
def test_contradictions_are_named(change, message):
    with pytest.raises(StartupError, match=message):
        find_cluster(HOSTS | change)


def test_unknown_cluster():
    with pytest.raises(StartupError, match="MEM0_CLUSTER: expected one of tpu, slurm, got 'k8s'"):
        find_cluster({"MEM0_CLUSTER": "k8s"})


def test_one_process_starts_nothing():
    assert start({}) is None


@pytest.mark.parametrize(("nodes", "gpus"), [("2", "all"), ("1", "0")])
def test_tasks_of_slurm_meet_and_one_that_is_alone_on_its_node_has_all_gpus(nodes, gpus):
    """Two processes told what srun tells, on two nodes whose first is this machine, or on one."""
    code = """if True:
        from mem0_jax.distributed.startup import start
        cluster = start()
        import jax
        print(cluster.kind, jax.process_index(), jax.device_count(), jax.config.read("jax_cuda_visible_devices"))
    """
    job = {
        "JAX_PLATFORMS": "cpu",
        "SLURM_JOB_ID": str(os.getpid() + int(nodes)),
        "SLURM_STEP_NODELIST": "localhost,other",
    }
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": nodes, "SLURM_LOCALID": "0"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | job | {"SLURM_PROCID": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    try:
        said = [process.communicate(timeout=200) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [out.splitlines()[-1:] for out, _ in said] == [[f"slurm {i} 2 {gpus}"] for i in range(2)], said
