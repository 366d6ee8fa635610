"""The demo end to end at a tiny size: real dataset, real processes, interrupted and continued, real report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mem0_jax.configs.demo import get_config
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.demo.processes import run_arms, shares_of_cores
from mem0_jax.demo.record import record
from mem0_jax.demo.settings import SIDES, TEST_SEEDS, TRAIN_SEEDS, open_demo
from mem0_jax.demo.summary import report
from mem0_jax.errors import UserError
from mem0_jax.policies.bundle import load_bundle
from mem0_jax.train.log import read_rows

RUN = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it
from mem0_jax.demo.processes import run_arms
from mem0_jax.demo.settings import load_demo
try:
    run_arms(load_demo(Path(sys.argv[1])))
except KeyboardInterrupt as stop:
    print(stop)
    sys.exit(130)
"""


def tiny_config() -> dict:
    config = get_config().to_dict()
    config["data"]["episodes"] = 3
    config["train"] |= {"steps": 110, "lanes": 4, "warmup_steps": 5}
    config["eval"] |= {"episodes": 2, "recorded": 1}
    model = config["model"]
    model["backbone"]["vision"] |= {"depth": 1}
    model["backbone"]["text"] |= {"num_hidden_layers": 1}
    model["action"] |= {"num_layers": 2, "width": 32}
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was stopped by Ctrl-C in the middle of training and then continued to its end."""
    demo = open_demo(tmp_path_factory.mktemp("demo") / "run", "put_back_block", 3, tiny_config())
    record(demo)
    first = subprocess.Popen(
        [sys.executable, "-c", RUN, str(demo.out)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = [demo.out / side / "run" / "metrics.jsonl" for side in SIDES]
    deadline = time.monotonic() + 300
    while not all(path.is_file() and path.read_text() for path in metrics):
        assert time.monotonic() < deadline, "training did not start"
        assert first.poll() is None, "the demo ended early"
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    output = first.communicate(timeout=120)[0]
    assert first.returncode == 130
    assert "continue" in output
    interrupted = {side: read_rows(demo.out / side / "run" / "metrics.jsonl") for side in SIDES}
    assert not (demo.out / "with_memory" / "evaluation.npz").exists()
    with demo.timed("train and evaluate"):
        run_arms(demo)
    return demo, interrupted, report(demo)


def test_an_interrupted_run_continues_where_it_was(finished):
    demo, interrupted, _ = finished
    for side, before in interrupted.items():
        after = read_rows(demo.out / side / "run" / "metrics.jsonl")
        assert after[-1]["step"] == 110
        assert [row["step"] for row in after] == [50, 100, 110]
        kept = [row for row in before if row["step"] % 50 == 0]
        assert [row["loss"] for row in after[: len(kept)]] == [row["loss"] for row in kept]


def test_the_dataset_is_a_readable_recording_of_the_experts(finished):
    dataset = LeRobotDataset(finished[0].dataset)
    assert dataset.version == "v3.0"
    assert len(dataset.episodes) == 3
    assert set(dataset.texts("subtask")[1]) == {"put the block back where it was"}
    ends = dataset.column("subtask_end")
    assert [int(ends[e.start : e.start + e.length].sum()) for e in dataset.episodes] == [8, 8, 8]


def test_the_arms_differ_in_memory_alone(finished):
    with_memory, without = (load_bundle(finished[0].out / side / "bundle") for side in SIDES)
    assert with_memory.config.memory.branches == ("window", "anchor")
    assert without.config.memory.branches == ()
    shapes = [{k: v.shape for k, v in _leaves(bundle.params).items()} for bundle in (with_memory, without)]
    assert shapes[0] == shapes[1]


def test_the_report_holds_the_promised_figures(finished):
    demo, _, summary = finished
    saved = json.loads((demo.out / "report.json").read_text())
    assert saved == summary
    for key in ("success_with_memory", "success_without_memory"):
        assert 0 <= saved[key] <= 1
    assert {"right_given_placed_with_memory", "right_given_placed_without_memory"} <= saved.keys()
    assert (saved["episodes"], saved["chance"], saved["steps"]) == (2, 0.25, 110)
    assert saved["wall_seconds"] > 1
    page = (demo.out / "report.html").read_text()
    assert "data:" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (demo.out / "hero.png").stat().st_size > 1000


def test_evaluation_is_reproducible(finished):
    demo = finished[0]
    path = demo.out / "with_memory" / "evaluation.npz"
    with np.load(path) as arrays:
        before = {key: arrays[key] for key in arrays.files if key != "seconds"}
    path.unlink()
    run_arms(demo)
    with np.load(path) as arrays:
        for key, value in before.items():
            np.testing.assert_array_equal(arrays[key], value, err_msg=key)


def test_other_settings_in_the_same_folder_are_refused(finished):
    with pytest.raises(UserError, match="other settings"):
        open_demo(finished[0].out, "put_back_block", 4, tiny_config())


def test_test_seeds_are_never_trained_on(finished):
    demo = finished[0]
    assert not set(demo.seeds(TRAIN_SEEDS, 10_000)) & set(demo.seeds(TEST_SEEDS, 10_000))


def test_unknown_tasks_and_seeds_are_named(tmp_path):
    with pytest.raises(UserError, match="put_back_block"):
        open_demo(tmp_path / "a", "juggle", 0, {})
    with pytest.raises(UserError, match="seed"):
        open_demo(tmp_path / "b", "put_back_block", -1, {})


def test_cores_are_shared_out_without_overlap():
    shares = shares_of_cores(2)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    assert len(shares) == 2
    if len(cores) >= 2:
        assert not set(shares[0]) & set(shares[1])


def _leaves(tree: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def test_a_failing_arm_says_why_or_is_reported_with_its_log(tmp_path: Path):
    demo = open_demo(tmp_path / "run", "put_back_block", 0, tiny_config())  # nothing recorded: training cannot start
    with pytest.raises(UserError, match=r"dataset/meta/info\.json is missing"):
        run_arms(demo)
    (demo.out / "settings.json").unlink()
    with pytest.raises(UserError, match=r"(?s)with_memory ended with code 1; the end of .*FileNotFoundError"):
        run_arms(demo)
