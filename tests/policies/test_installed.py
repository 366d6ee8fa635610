"""A policy that an installed package brings, by the commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTALLED = Path(__file__).parents[1] / "glance"  # on the path of the processes below: what an installation puts there
JOB = """
from dataclasses import asdict
from pathlib import Path
from ml_collections import ConfigDict
from mem0_jax.train.config import TrainSettings
from cases import glance

def get_config():
    settings = TrainSettings(steps=40, batch_size=16, lanes=4, precision="float32", log_every=10)
    return ConfigDict(asdict(glance.job(Path("dataset"), settings)))
"""


def run(folder: Path, *words: str) -> str:
    """What `mem0-jax` prints, in a process of its own."""
    path = os.pathsep.join([str(INSTALLED), os.environ["PYTHONPATH"]])
    process = subprocess.run(
        [sys.executable, "-m", "mem0_jax.cli", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from cases.glance import write_dataset

    folder = tmp_path_factory.mktemp("installed")
    write_dataset(folder / "dataset")
    (folder / "job.py").write_text(JOB)
    run(folder, "train", "--config=job.py", "--workdir=run", "--json=train.json")
    return folder


def test_it_learns(folder):
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    described = json.loads((folder / "run" / "bundle" / "config.json").read_text())
    assert described["policy"] == "glance"
    assert [camera["size"] for camera in described["inputs"]["cameras"]] == [[36, 48], [24, 24]]
    assert described["inputs"]["robot"]["delta"] == ["x", "y", "z"]


def test_its_step_is_planned_for_a_slice(folder):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu (extra 'aot')")
    run(folder, "aot", "--config=job.py", "--topology=v5e:2x2", "--mesh=fsdp=4", "--json=aot.json")
    found = json.loads((folder / "aot.json").read_text())
    assert (found["chips"], found["lanes"], found["frames"]) == (4, 4, 4)
    assert found["carry"] == 0  # it remembers nothing
    assert found["flops"] > 0
