"""`mem0-jax train` from a converted checkpoint with its optimizer: on one device, on two processes, and refused."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jobs import write_dataset

from mem0_jax.cli import main
from mem0_jax.convert.importer import Request, convert, prepare
from mem0_jax.convert.sources import open_source
from mem0_jax.train.from_bundle import load_optimizer
from mem0_jax.train.log import read_rows
from mem0_jax.train.optim import learning_rates

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "model" / "assets" / "tiny_a"
CONFIG = """
from dataclasses import asdict, replace
from pathlib import Path
from ml_collections import ConfigDict
from mem0_jax.policies.bundle import read_description
from mem0_jax.train.job import DataSettings, Job, TrainSettings

def get_config():
    data = DataSettings(
        datasets=("DATASET",), camera_size=(32, 32), tokenizer="words", max_length=24, held_out=8, threads=1
    )
    model = replace(read_description(Path("BUNDLE"))[0], image_size=(32, 32), dtype="float32")
    train = TrainSettings(
        steps=6, batch_size=16, lanes=8, precision="float32", log_every=1, validate_every=2, save_every=4
    )
    return ConfigDict(asdict(Job(data, model, train, init_from="BUNDLE", init_optimizer=True)))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "step3"
    convert(prepare(open_source(GOLDEN / "step3.pt"), Request(GOLDEN / "config.json", with_optimizer=True)), out)
    return out


@pytest.fixture(scope="module")
def config(bundle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    dataset = write_dataset(folder / "dataset", rounds=3)
    path = folder / "job.py"
    path.write_text(CONFIG.replace("DATASET", str(dataset)).replace("BUNDLE", str(bundle)))
    return path


def start(config: Path, workdir: Path, devices: int, *flags: str, **environment: str) -> subprocess.Popen:
    settings = os.environ | environment
    settings |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(HERE / "jobs.py"), "train", f"--config={config}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)


def ends_well(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-4000:]
    return out + err


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    """The run on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    said = ends_well(start(config, workdir, 1))
    assert "total_steps: 40 before, 6 now" in said
    return workdir


@pytest.mark.long
def test_steps_and_schedule_go_on(alone, bundle):
    rows = read_rows(alone / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 5, 6]
    rates = learning_rates(replace(load_optimizer(bundle)[1], total_steps=6), 3)
    assert rows[0]["learning_rate/action"] == pytest.approx(rates["action"])
    validations = read_rows(alone / "validation.jsonl")
    assert [row["step"] for row in validations] == [4, 6]
    assert validations[0]["validation/frames"] > 8 * 7


@pytest.mark.long
def test_two_processes_with_shards_give_what_one_device_gives(alone, config, tmp_path):
    """Moments read into the shards of four devices; held-out episodes dealt to both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MEM0_COORDINATOR": f"127.0.0.1:{free.getsockname()[1]}", "MEM0_PROCESSES": "2"}
    workdir, mesh = tmp_path / "run", "--config.hardware=gpu4"
    both = [start(config, workdir, 2, mesh, **where, MEM0_PROCESS=str(process)) for process in (0, 1)]
    try:
        for process in both:
            ends_well(process)
    finally:
        for process in both:
            process.kill()
    validated = ("action_error", "first_action_error", "frames", "score", "classifier_recall")
    for name, compared in (
        ("metrics.jsonl", ("step", "loss", "grad_norm", "classifier_accuracy")),
        ("validation.jsonl", ("step", *(f"validation/{entry}" for entry in validated))),
    ):
        mine, theirs = (
            [[row[entry] for entry in compared] for row in read_rows(run / name)] for run in (workdir, alone)
        )
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.steps=3"], "has seen 3 steps already, and 3 is the length of the whole schedule"),
        (["--config.train.preset=action_expert_only"], "that have are not trained here: backbone/"),
        (["--config.train.preset=lora"], "parameters trained here have no moments there: backbone/"),
        (["--config.train.freeze=('memory/.*',)"], "that have are not trained here: memory/"),
        (["--config.init_from=", "--config.data.tokenizer=words"], "init_optimizer: there is no optimizer to take"),
        (["--config.init_from=SLIM"], "holds no optimizer: convert the checkpoint with --with-optimizer"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_written(config, slim, flags, message, tmp_path, capsys):
    flags = [flag.replace("SLIM", str(slim)) for flag in flags]
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def slim(tmp_path_factory) -> Path:
    """The same parameters without the optimizer."""
    out = tmp_path_factory.mktemp("bundles") / "slim"
    convert(prepare(open_source(GOLDEN / "step3.pt"), Request(GOLDEN / "config.json")), out)
    return out
