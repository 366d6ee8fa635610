"""Meshes and several processes give what one device gives. Each run is a program of its own, on virtual devices."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).parent / "program.py"
GATE = 2e-5  # of float32 sums in another order


def launch(arguments: list[str], devices: int, **environment: str) -> subprocess.Popen:
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    command = [sys.executable, str(PROGRAM), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | settings | environment, stdout=pipe, stderr=pipe, text=True)


def result(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-4000:]
    return json.loads(out.splitlines()[-1])


def train(workdir: Path, steps: int, mesh: str = "data=2,fsdp=2", stop_after: int | None = None) -> list[dict]:
    """A run of two processes of two devices each; with `stop_after` the second gets SIGTERM after that step's row."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"MEM0_COORDINATOR": coordinator, "MEM0_PROCESSES": "2"}
    both = [launch(["train", mesh, str(steps), str(workdir)], 2, **shared, MEM0_PROCESS=str(i)) for i in (0, 1)]
    try:
        if stop_after is not None:
            assert both[0].stdout is not None
            for line in both[0].stdout:  # gloo writes lines of its own between ours
                if line.startswith("{") and json.loads(line).get("step", 0) >= stop_after:
                    break
            both[1].send_signal(signal.SIGTERM)
        return [result(process) for process in both]
    finally:
        for process in both:
            process.kill()


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", ["data=2,fsdp=2,tensor=2", *(pytest.param(mesh, marks=pytest.mark.long) for mesh in ("fsdp=8", "tensor=8"))]
)
def test_mesh_gives_what_one_device_gives(mesh):
    """Initial parameters, losses, metrics, gradients and memories of two steps."""
    found = result(launch(["compare", mesh], 8))
    assert found["wrong"] == {}
    assert 0 < found["error"] < GATE, found["worst"]


@pytest.mark.slow
def test_two_processes_train_stop_together_and_continue(tmp_path):
    alone = result(launch(["train", "", "6", str(tmp_path / "alone")], 1))
    shared = tmp_path / "shared"
    stopped = train(shared, 5000, stop_after=2)
    assert all("stopped after step" in seen["stopped"] for seen in stopped)
    step = rows(shared)[-1]["step"]
    assert 2 <= step < 5000
    # Elsewhere: one process, one device, and then two processes again on another mesh.
    first = result(launch(["train", "", str(step + 1), str(shared)], 1))
    assert first["resumed_from"] == step
    seen = train(shared, step + 2, mesh="fsdp=2,tensor=2")
    assert [s["resumed_from"] for s in seen] == [step + 1] * 2
    assert [s["lanes"] for s in seen] == [[0, 4], [4, 4]]
    assert [s["devices"] for s in seen] == [4, 4]
    assert seen[0]["total"] == seen[1]["total"]
    assert [row["step"] for row in rows(shared)] == list(range(1, step + 3))
    for mine, expected in zip(rows(shared), rows(tmp_path / "alone")):
        assert np.isclose(mine["loss"], expected["loss"], rtol=1e-4), mine["step"]
    assert set(seen[0]["total"]) == set(alone["total"])
