"""The training loop through its one function, and as a program that is killed and stopped."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from toy import LANES, ToyPolicy, batch_at, make_config, make_loader, make_policy

from mem0_jax import tree
from mem0_jax.train import log as log_module
from mem0_jax.train.checkpoint import CheckpointError
from mem0_jax.train.log import DivergedError, read_rows
from mem0_jax.train.loop import DataError, Extras, TrainingInterrupted, fit
from mem0_jax.train.optim import learning_rates, make_optimizer
from mem0_jax.train.state import create_params, create_state
from mem0_jax.train.step import make_train_step

TOY = Path(__file__).parent / "toy.py"
OF_THE_CLOCK = ("frames_per_second", "data_wait_ms", "seconds", "eta_seconds", "goodput", "mfu")


def numbers(rows):
    """The rows without what the clock says."""
    return [{k: v for k, v in row.items() if not k.startswith(OF_THE_CLOCK)} for row in rows]


def start(workdir, steps, save_every=10, delay=0.0):
    command = [sys.executable, str(TOY), str(workdir), str(steps), str(save_every), str(delay)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_step(process, step):
    for line in process.stdout:
        if line.startswith("{") and json.loads(line)["step"] >= step:
            return
    raise AssertionError(f"ended before step {step}: {process.stderr.read()}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    out, err = start(workdir, 60).communicate(timeout=300)
    assert "resumed from None" in out, err
    return workdir


def assert_same_run(workdir, reference):
    rows = numbers(read_rows(workdir / "metrics.jsonl"))
    assert rows == numbers(read_rows(reference / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(5, 61, 5))
    with np.load(workdir / "final.npz") as a, np.load(reference / "final.npz") as b:
        assert a.files == b.files
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes()


def test_a_killed_run_continues_exactly(uninterrupted, tmp_path):
    process = start(tmp_path, 60, save_every=7, delay=0.02)  # between two rows of the log
    wait_for_step(process, 25)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # What a kill in the middle of a line leaves.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    out, err = start(tmp_path, 60, save_every=7).communicate(timeout=300)
    assert any(f"resumed from {step}" in out for step in (14, 21, 28)), (out, err)
    assert not list(tmp_path.glob("damaged_checkpoint_*"))
    assert_same_run(tmp_path, uninterrupted)


def test_ctrl_c_saves_says_how_to_continue_and_continues_exactly(uninterrupted, tmp_path):
    process = start(tmp_path, 60, save_every=1000, delay=0.02)
    wait_for_step(process, 15)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "run the same command again to continue" in out
    assert str(tmp_path) in out
    assert "finishing the step and saving" in err
    assert "it/s" not in err
    assert "step/s" not in err  # no progress bar where nobody watches
    stopped = int(out.split("stopped after step ")[1].split()[0])
    out, err = start(tmp_path, 60, save_every=1000).communicate(timeout=300)
    assert f"resumed from {stopped}" in out, err
    assert_same_run(tmp_path, uninterrupted)


def test_ctrl_c_at_the_last_step_stops_what_would_follow(tmp_path):
    def stop(row: dict) -> None:
        if row["step"] == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match="after step 12 of 12"):
        fit(make_policy(), make_loader, make_config(12), tmp_path, stop)
    assert fit(make_policy(), make_loader, make_config(12), tmp_path).resumed_from == 12


def test_rows_are_means_of_a_plain_loop(tmp_path):
    config = make_config(12, seed=3)
    seen = []
    result = fit(make_policy(), make_loader, config, tmp_path, seen.append)
    assert [row["step"] for row in result.rows] == [5, 10, 12]
    assert seen == result.rows

    policy = make_policy()
    params = create_params(policy, 3)
    optimizer = make_optimizer(config.optimizer, policy.learning_rate_groups, policy.no_gradient, (), params)
    state = create_state(policy, optimizer, params, 3, LANES)
    train_step, steps = jax.jit(make_train_step(policy, optimizer), donate_argnums=0), []
    for index in range(12):
        state, metrics = train_step(state, batch_at(index))
        steps.append(jax.device_get(metrics))
    for row, first in zip(result.rows, (0, 5, 10)):
        window = steps[first : row["step"]]
        for name in ("loss", "action_loss", "grad_norm"):
            assert row[name] == pytest.approx(np.mean([float(m[name]) for m in window]), rel=1e-12)
        correct, total = (sum(float(m[f"cls_{c}"]) for m in steps[: row["step"]]) for c in ("correct", "total"))
        assert row["classifier_accuracy"] == pytest.approx(correct / total)
        for group, rate in learning_rates(config.optimizer, row["step"] - 1).items():
            assert row[f"learning_rate/{group}"] == rate
        assert row["frames_per_second"] > 0
        assert not any(name.startswith("cls_") for name in row)
    for a, b in zip(jax.tree.leaves(result.state), jax.tree.leaves(state)):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert result.resumed_from is None
    assert 0 < result.compile_seconds < result.seconds


def test_it_learns_and_leaves_untrained_leaves_alone(tmp_path):
    config = make_config(150, seed=1, freeze=("head/bias",))
    result = fit(make_policy(), make_loader, config, tmp_path)
    losses = [row["loss"] for row in result.rows]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    start_params = create_params(make_policy(), 1)
    for leaf in ("bias", "unused"):
        assert (
            np.asarray(result.state.params["head"][leaf]).tobytes() == np.asarray(start_params["head"][leaf]).tobytes()
        )
    assert np.any(np.asarray(result.state.params["memory"]["decay"]))


class Poisoned:
    """The toy's stream with NaN targets in some batches."""

    def __init__(self, bad):
        self._inner, self._bad, self._next = make_loader(), bad, 0

    def __next__(self):
        batch, index = next(self._inner), self._next
        self._next += 1
        return batch | {"y": batch["y"] * np.float32(np.nan)} if self._bad(index) else batch

    def get_state(self):
        return {"inner": self._inner.get_state(), "next": self._next}

    def set_state(self, state):
        self._inner.set_state(state["inner"])
        self._next = state["next"]


def test_non_finite_steps_are_skipped_counted_and_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mem0_jax"):
        result = fit(make_policy(), lambda: Poisoned({3, 6, 7}.__contains__), make_config(15), tmp_path)
    assert [row["skipped"] for row in result.rows] == [1, 3, 3]
    assert all(np.isfinite(row["loss"]) for row in result.rows)
    assert (int(result.state.step), int(result.state.skipped), int(result.state.opt_state.count)) == (15, 3, 12)
    assert result.rows[-1]["learning_rate/base"] == learning_rates(make_config(15).optimizer, 11)["base"]
    assert "2 updates were left out" in caplog.text
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.params))


def test_rows_hold_null_where_nothing_was_finite_and_a_hopeless_run_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "MAX_SKIPPED_IN_A_ROW", 12)
    with pytest.raises(DivergedError, match="stopped at step 20: the gradient was not finite in the last 12 steps"):
        fit(make_policy(), lambda: Poisoned(lambda i: i >= 8), make_config(60), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines)
    assert [json.loads(line)["loss"] is None for line in lines] == [False, False, True, True]


def test_a_finished_run_returns_at_once_and_can_be_extended(tmp_path):
    first = fit(make_policy(), make_loader, make_config(10), tmp_path)
    again = fit(make_policy(), make_loader, make_config(10), tmp_path)
    assert again.resumed_from == 10
    assert again.rows == first.rows
    extended = fit(make_policy(), make_loader, make_config(20), tmp_path)
    whole = fit(make_policy(), make_loader, make_config(20), tmp_path / "whole")
    assert numbers(extended.rows) == numbers(whole.rows)


def test_another_run_s_folder_is_refused(tmp_path):
    fit(make_policy(), make_loader, make_config(5), tmp_path)
    config = make_config(5, seed=9)
    config = replace(config, weight_decay=0.5)
    with pytest.raises(CheckpointError, match="other settings") as error:
        fit(make_policy(), make_loader, config, tmp_path)
    assert "optimizer.weight_decay: 0.005 saved, 0.5 now" in str(error.value)
    assert "seed: 0 saved, 9 now" in str(error.value)
    assert "schedule" not in str(error.value)
    longer = replace(make_config(5), total_steps=300)
    with pytest.raises(CheckpointError, match=r"(?s)total_steps: 200 saved, 300 now.*may begin from this one's bundle"):
        fit(make_policy(), make_loader, longer, tmp_path)
    with pytest.raises(CheckpointError, match="carry/feature: float32"):
        fit(make_policy(), make_loader, make_config(5, lanes=2), tmp_path)


def test_the_speed_of_the_first_step_is_unknown_and_a_run_without_floors_continues(tmp_path):
    config = make_config(2, log_every=1)
    config = replace(config, floors={})
    first, second = fit(make_policy(), make_loader, config, tmp_path).rows
    assert first["frames_per_second"] is None
    assert first["eta_seconds"] is None
    assert second["frames_per_second"] > 0
    assert fit(make_policy(), make_loader, replace(config, steps=4), tmp_path).resumed_from == 2


def test_bad_loaders_and_policies_are_named(tmp_path):
    with pytest.raises(DataError, match="ended after 3 of 8 batches"):
        fit(make_policy(), lambda: make_loader(batches=3), make_config(8), tmp_path / "a")
    with pytest.raises(DataError, match=r"lanes=2, frames.*x \[4, 3, 3\]"):
        fit(make_policy(), make_loader, make_config(8, lanes=2), tmp_path / "b")
    with pytest.raises(ValueError, match="beyond the end of the learning-rate schedule"):
        make_config(201)

    class Forgetful(ToyPolicy):
        def loss(self, params, state, batch, rng, train):
            loss, metrics, state = super().loss(params, state, batch, rng, train)
            return loss, metrics, state | {"feature": state["feature"][:, :2]}

    with pytest.raises(TypeError, match="memory of another form"):
        fit(Forgetful(), make_loader, make_config(8), tmp_path / "c")  # pyright: ignore[reportArgumentType]


def test_works_outside_the_main_thread_and_puts_signal_handlers_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(fit(make_policy(), make_loader, make_config(5), tmp_path / "t"))
    )
    thread.start()
    thread.join()
    assert len(results) == 1
    fit(make_policy(), make_loader, make_config(5), tmp_path / "m")
    assert signal.getsignal(signal.SIGINT) is before


def test_settings_import_without_jax():
    code = "import mem0_jax.train, sys; assert not {'jax', 'orbax', 'optax', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import mem0_jax.train.loop, sys; assert not {'torch', 'tensorflow', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_goes_on_from_another_s_optimizer_and_asks_for_it_once(tmp_path):
    before = fit(make_policy(), make_loader, make_config(20), tmp_path / "before").state
    asked = []

    def taken_over(template):
        asked.append(jax.tree.map(lambda leaf: leaf.shape, template))
        return 20, make_config(20).optimizer, jax.tree.map(np.asarray, before.opt_state)

    extras = Extras(initial=lambda key: before.params, optimizer=taken_over)
    after = tmp_path / "after"
    first = fit(make_policy(), make_loader, make_config(25), after, extras=extras)
    assert first.resumed_from is None
    mu = tree.flatten(before.opt_state.mu)["head/kernel"]
    second = fit(make_policy(), make_loader, make_config(30, save_every=5), after, extras=extras)
    assert second.resumed_from == 25
    assert len(asked) == 1
    assert asked[0].mu["head"]["kernel"] == mu.shape
    assert (int(second.state.step), int(second.state.opt_state.count)) == (30, 30)
    rates = [learning_rates(make_config(30).optimizer, step - 1)["base"] for step in (25, 30)]
    assert [row["learning_rate/base"] for row in second.rows] == rates
    # By hand: the first batches of the data, moments and place in the schedule of step 20, an empty memory.
    config = make_config(30)
    policy = make_policy()
    optimizer = make_optimizer(
        config.optimizer, policy.learning_rate_groups, policy.no_gradient, config.freeze, before.params
    )
    fresh = create_state(policy, optimizer, before.params, config.seed, LANES)
    state = replace(fresh, step=before.step, opt_state=before.opt_state)
    step = jax.jit(make_train_step(policy, optimizer))
    for index in range(10):
        state, _ = step(state, batch_at(index))
    for mine, theirs in zip(jax.tree.leaves(second.state.params), jax.tree.leaves(state.params)):
        np.testing.assert_array_equal(mine, theirs)


def test_what_a_program_around_ours_set_in_jax_changes_no_number(tmp_path):
    def train(folder):
        return fit(make_policy(), make_loader, make_config(10), tmp_path / folder).state.params

    expected = train("plain")
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.default_prng_impl("rbg"):
        found = train("changed")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
