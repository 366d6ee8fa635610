"""The training step of a small Mem-0, compiled for real TPU slices without one."""

import glob
import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu (extra 'aot')")

from mem0_jax.cli import NO_TPU, TPU_DEVICES

SMALL = [
    "--config=small",
    *("--config.model.backbone.text.hidden_size=128", "--config.model.backbone.vision.out_hidden_size=128"),
    *("--config.model.action.context_width=128", "--config.model.classifier.hidden_sizes=(384,128,64)"),
    *("--config.train.lanes=4", "--config.train.batch_size=8"),
]


def aot(*flags):
    """A process of its own: once libtpu is loaded, JAX's profiler takes the process down, and with it other tests."""
    environment = {name: value for name, value in os.environ.items() if name not in NO_TPU}
    words = [sys.executable, "-m", "mem0_jax.cli", "aot", *SMALL, *map(str, flags)]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def step_for(topology, path):
    """What the command prints and writes of the small step; it takes a minute."""
    done = aot(f"--topology={topology}", "--mesh=fsdp=4", "--json", path)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def small_step(tmp_path_factory):
    return step_for("v5e:2x2", tmp_path_factory.mktemp("aot") / "aot.json")


@pytest.mark.long
def test_a_generation_with_sparse_cores_sends_the_same(small_step, tmp_path):
    """Its program holds operations that jaxlib's own parser refuses, and modules beside the step's."""
    sent, newer = small_step[1]["collectives"], step_for("v6e:2x2", tmp_path / "aot.json")[1]["collectives"]
    assert sent.keys() == newer.keys()
    assert sent["all-gather"] == newer["all-gather"]


@pytest.mark.slow
def test_figures_of_a_small_step(small_step):
    text, found = small_step
    assert (found["chips"], found["mesh"], found["lanes"], found["frames"]) == (4, "fsdp=4", 4, 2)
    assert found["optimizer"] == pytest.approx(2 * found["params"], rel=0.02)
    assert 0 < found["temporary"] < found["hbm"]
    assert found["collectives"]["all-gather"]["count"] > 50  # every layer's weights, forward and backward
    assert found["network_seconds"] == sum(kind["sent"] for kind in found["collectives"].values()) / found["link"]
    assert found["step_seconds"] == max(found["compute_seconds"], found["network_seconds"])
    assert 0 < found["mfu"] <= 1
    assert "roofline" in text
    assert re.search(rf"activations, temporary +{found['temporary'] / 2**20:.2f} MiB\n", text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e"], "topology: expected one of v4, v5e, v5p, v6e and its shape"),
        (["--topology=v9z:2x2"], "got 'v9z:2x2'"),
        (["--topology=v5e:2x2", "--mesh=fsdp=3"], "there are 4"),
        (["--topology=v5e:2x2", "--mesh=data=4,fsdp=x"], "the size of 'fsdp' must be a whole number"),
        (["--topology=v5e:4x4", "--mesh=fsdp=16"], "4 lanes cannot be divided among the 16 lane shards"),
        (["--topology=v5e:8x8", "--mesh=data=2,fsdp=32"], "mesh: Failed to find assignment"),
        (["--topology=v5e:2x2", "--mesh=fsdp=4", "--config.train.lane=3"], "did you mean 'lanes'?"),
    ],
)
def test_bad_input_is_named(flags, message):
    done = aot(*flags)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.skipif(any(map(glob.glob, TPU_DEVICES)), reason="this machine has TPUs")
def test_libtpu_is_silent_where_there_are_no_chips():
    done = aot("--topology=v6e:2x2", "--mesh=fsdp=3")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("mem0-jax aot: mesh: ")  # on a slow machine after a line of progress
