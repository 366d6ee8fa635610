"""`mem0-jax train` as a program: to a bundle that can be deployed, killed at any moment, and from a bundle on."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import LENGTHS, write_config, write_dataset
from test_loop import numbers

from mem0_jax import tree
from mem0_jax.cli import main
from mem0_jax.eval.rollout import evaluate
from mem0_jax.policies.bundle import load_bundle
from mem0_jax.policies.inputs import Camera
from mem0_jax.train.log import read_rows

PROGRAM = Path(__file__).parent / "jobs.py"


def start(config: Path, workdir: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), "train", f"--config={config}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    return write_config(folder, write_dataset(folder / "dataset"))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    process = start(config, workdir, f"--json={workdir.parent / 'figures.json'}")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert re.fullmatch(r".*/bundle: 12 steps, loss \d\.\d{1,4}, (\d+ min )?\d+ s\n", out), out
    said = [line.split(" ", 1)[1] for line in err.splitlines()]  # behind the time of day
    assert said[0] == "3 episodes to train on, 1 held out; steps of 2 lanes x 4 frames; hardware cpu"
    assert re.fullmatch(r"0\.\d+ M parameters, 0\.\d+ M of them trained", said[1])
    assert said[2] == "compiling the first step, which may take minutes"
    assert re.fullmatch(r"the first step, which compiles, took \d+ s", said[3])
    steps = [line.split(",")[0] for line in said if line.startswith("step ")]
    assert steps == [f"step {step} of 12" for step in (3, 6, 9, 12)]
    assert [line.split(",")[0].split(" 0.")[0] for line in said if line.startswith("validation")] == [
        f"validation after step {step}: action_error" for step in (6, 12)
    ]
    assert len(said) == 4 + 4 + 2, err
    return workdir


def test_a_run_leaves_logs_validations_and_a_bundle_to_deploy(finished):
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert rows[-1]["learning_rate/action"] < 2e-3
    validations = read_rows(finished / "validation.jsonl")
    assert [row["step"] for row in validations] == [6, 12]
    assert validations[0]["validation/frames"] in LENGTHS  # one episode was held out, and played once
    assert validations[0]["validation/action_error"] > 0
    assert 0 <= validations[0]["validation/classifier_recall"] <= 1
    figures = json.loads((finished.parent / "figures.json").read_text())
    assert figures["last_row"] == rows[-1]
    bundle = load_bundle(finished / "bundle")
    assert bundle.inputs.cameras == (Camera(size=(32, 32)),)
    assert bundle.inputs.deploy_resample == "bicubic"
    assert bundle.tokenizer is not None
    assert bundle.config.backbone.text.vocab_size == bundle.tokenizer.get_vocab_size()
    [result] = evaluate(bundle, "put_back_block", [0], n_action_steps=3)
    assert result.steps > 0


def test_runs_killed_at_random_moments_end_as_the_uninterrupted_one(config, finished, tmp_path):
    """With a checkpoint every other step, most moments lie in the middle of one."""
    workdir, rng = tmp_path / "run", random.Random(0)
    for _ in range(2):
        process = start(config, workdir)
        before = len(read_rows(workdir / "metrics.jsonl"))
        deadline = time.monotonic() + 300
        while len(read_rows(workdir / "metrics.jsonl")) <= before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (workdir / "bundle").exists():
            break
    out, err = start(config, workdir).communicate(timeout=600)
    assert "12 steps" in out, err
    assert not list(workdir.glob("damaged_checkpoint_*"))
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert numbers(read_rows(workdir / name)) == numbers(read_rows(finished / name))
    mine, theirs = (tree.flatten(load_bundle(run / "bundle").params) for run in (workdir, finished))
    assert {p: np.asarray(v).tobytes() for p, v in mine.items()} == {
        p: np.asarray(v).tobytes() for p, v in theirs.items()
    }


def test_a_terminated_run_saves_first(config, tmp_path):
    workdir = tmp_path / "run"
    process = start(config, workdir, "--config.train.steps=100000", "--config.train.save_every=100000")
    deadline = time.monotonic() + 300
    while len(read_rows(workdir / "metrics.jsonl")) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    stopped = int(err.split("stopped after step ")[1].split()[0])
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    assert not (workdir / "bundle").exists()


def test_low_rank_fine_tuning_starts_from_a_bundle_and_leaves_its_backbone_alone_but_for_the_kernels(
    config, finished, tmp_path, capsys
):
    flags = [f"--config.init_from={finished / 'bundle'}", "--config.data.tokenizer="]
    flags += ["--config.train.preset=lora", "--config.train.steps=2", "--config.train.validate_every=0"]
    flags += ["--config.train.keep_best=0", "--config.train.ema_decay=0.0", "--config.train.accumulate=1"]
    _, err = (process := start(config, tmp_path / "run", *flags)).communicate(timeout=600)
    assert process.returncode == 0, err
    before, after = (tree.flatten(load_bundle(f).params) for f in (finished / "bundle", tmp_path / "run" / "bundle"))
    assert before.keys() == after.keys()
    changed = {path for path in before if np.any(np.asarray(before[path]) != np.asarray(after[path]))}
    backbone = {path for path in changed if path.startswith("backbone/")}
    assert backbone
    assert all("_proj/kernel" in path and "language_model" in path for path in backbone)
    assert any(path.startswith("action/") for path in changed)
    # Another model's bundle is refused before the first step, parameter by parameter.
    flags.append(f"--config={config}")
    wrong = ["--config.model.action.hidden_size=8", f"--workdir={tmp_path / 'wrong'}"]
    assert main(["train", *flags, *wrong]) == 1
    message = capsys.readouterr().err
    assert "not those of the model" in message
    assert "action/state_encoder/layer1/kernel: expected [16, 8], got [16, 16]" in message
    # A run of other settings is not continued.
    assert main(["train", f"--workdir={tmp_path / 'run'}", *flags, "--config.data.jitter=0.3"]) == 1
    assert "data.jitter: 0.1 saved, 0.3 now" in capsys.readouterr().err
