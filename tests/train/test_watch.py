"""What watches over a run: hanging steps, exhausted memory and disks, profiles, where the time goes, other logs."""

import json
import logging
import os
import re
import resource
import time

import jax
import jax.numpy as jnp
import pytest
from toy import ToyPolicy, make_config, make_loader, make_policy

from mem0_jax.disk import DiskError
from mem0_jax.errors import UserError
from mem0_jax.train.clock import Clock
from mem0_jax.train.log import read_rows
from mem0_jax.train.loop import Extras, fit
from mem0_jax.train.watch import DiskFullError, OutOfMemoryError, check_disk


class Slow:
    """The toy's stream that hangs before one batch."""

    def __init__(self, at, seconds):
        self._inner, self._at, self._seconds, self._next = make_loader(), at, seconds, 0

    def __next__(self):
        if self._next == self._at:
            time.sleep(self._seconds)
        self._next += 1
        return next(self._inner)

    def get_state(self):
        return self._inner.get_state()

    def set_state(self, state):
        self._inner.set_state(state)


def test_a_hanging_step_has_its_stacks_written_and_the_run_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mem0_jax"):
        result = fit(make_policy(), lambda: Slow(4, 1.5), make_config(8, watchdog_seconds=0.5), tmp_path)
    assert int(result.state.step) == 8
    stacks = (tmp_path / "hang.txt").read_text()
    assert "test_watch.py" in stacks
    assert "__next__" in stacks
    assert "what every thread was doing stands in" in caplog.text


def test_a_long_validation_is_no_hanging_step(tmp_path, caplog):
    """Though a step hung before, whose stacks the file holds."""

    def validate(state):
        time.sleep(0.8)
        return {"score": 1.0}

    config = make_config(8, watchdog_seconds=0.4, validate_every=6)
    with caplog.at_level(logging.WARNING, "mem0_jax"):
        fit(make_policy(), lambda: Slow(3, 1.0), config, tmp_path, extras=Extras(validate=validate))
    assert caplog.text.count("what every thread was doing stands in") == 1


def test_a_run_without_hangs_leaves_no_file(tmp_path):
    fit(make_policy(), make_loader, make_config(6, watchdog_seconds=60.0), tmp_path)
    assert not (tmp_path / "hang.txt").exists()


def test_exhausted_memory_shows_the_plan(tmp_path):
    class Greedy(ToyPolicy):
        def loss(self, params, state, batch, rng, train):
            loss, metrics, state = super().loss(params, state, batch, rng, train)
            huge = jax.random.normal(rng, (2**46,), jnp.float32) * loss
            return jnp.sort(huge)[0], metrics, state

    with pytest.raises(OutOfMemoryError) as error:
        fit(Greedy(), make_loader, make_config(3), tmp_path)  # pyright: ignore[reportArgumentType]
    for word in (
        "parameters",
        "optimizer",
        "gradients",
        "memory of the lanes",
        "train.accumulate",
        "train.preset=lora",
    ):
        assert word in str(error.value)


def test_memory_that_does_not_suffice_for_the_state_shows_the_plan_too(tmp_path):
    def too_large(key):
        return {"huge": jax.random.normal(key, (2**46,)).sort().block_until_ready()}

    with pytest.raises(
        OutOfMemoryError, match=r"(?s)optimizer +\d+ B\n.*all of these +.*B, and activations.*train\.preset=lora"
    ):
        fit(make_policy(), make_loader, make_config(3), tmp_path, extras=Extras(initial=too_large))


def test_a_disk_without_room_is_named(tmp_path):
    check_disk(tmp_path, 1, "a checkpoint")
    with pytest.raises(DiskFullError, match=r"a checkpoint needs 1024.00 TiB, the disk has .* make room"):
        check_disk(tmp_path, 2**50, "a checkpoint")


def test_a_disk_that_fills_up_during_the_run_costs_a_checkpoint_not_the_run(tmp_path, caplog):
    """A real file system of too little room, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=2m tmpfs {folder} 2>/dev/null"):
        pytest.skip("only root may mount a small file system")
    try:
        filler = folder / "filler"

        def fill(row):
            if row["step"] == 5:
                filler.write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize - 2000))
            elif row["step"] == 10:
                filler.unlink()

        config = make_config(16, save_every=8, keep=1)
        with caplog.at_level(logging.WARNING, "mem0_jax"):
            result = fit(make_policy(), make_loader, config, folder / "run", fill)
        assert "checkpoints are not written from step 8 on, and the run goes on: " in caplog.text
        assert "checkpoints are written again from step 16 on; missing: 1" in caplog.text
        assert int(result.state.step) == 16
        assert (folder / "run" / "checkpoints" / "16").is_dir()
    finally:
        os.system(f"umount {folder}")


def test_rows_that_a_full_disk_has_no_room_for_are_left_out_whole(tmp_path, caplog):
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=2m tmpfs {folder} 2>/dev/null"):
        pytest.skip("only root may mount a small file system")
    try:

        def fill(row):
            if row["step"] == 3:
                with (folder / "filler").open("wb") as filler:
                    filler.write(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize))
            elif row["step"] == 20:
                (folder / "filler").unlink()

        config = make_config(30, log_every=1, keep=1)
        with caplog.at_level(logging.WARNING, "mem0_jax"):
            result = fit(make_policy(), make_loader, config, folder / "run", fill)
        steps = [row["step"] for row in result.rows]
        (began,) = re.findall(r"rows are not written from step (\d+) on, and the run goes on: .*make room", caplog.text)
        assert caplog.text.count("rows are") == 2, "a hundred rows are one trouble"
        assert f"rows are written again from step 21 on; missing: {21 - int(began)}" in caplog.text
        assert set(range(1, 31)) - set(steps) >= {20}
        assert steps == sorted(steps)
        assert steps[-10:] == list(range(21, 31))
        assert len(steps) == len((folder / "run" / "metrics.jsonl").read_text().splitlines())
    finally:
        os.system(f"umount {folder}")


def limited(bytes_of_a_file):
    """A disk that takes no larger files: as an ordinary user's full disk, but for the reason."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def until(path):
    """Checkpoints are written in the background."""
    while not path.exists():
        time.sleep(0.01)


@pytest.fixture
def room():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_fails_while_it_is_written_costs_itself_not_the_run(tmp_path, caplog, room):
    def fill(row):
        if row["step"] == 10:
            until(tmp_path / "checkpoints" / "8")
            limited(0)
        elif row["step"] == 20:
            room()

    with caplog.at_level(logging.WARNING, "mem0_jax"):
        result = fit(make_policy(), make_loader, make_config(40, save_every=8, keep=9), tmp_path, fill)
    assert int(result.state.step) == 40
    assert [row["step"] for row in result.rows] == [5, 10, 25, 30, 35, 40]
    assert "the last good checkpoint, of step 8, is kept" in caplog.text
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())  # and nothing half-written
    assert kept[:1] == [8]
    assert kept[-2:] == [32, 40]
    assert 16 not in kept


def test_a_last_checkpoint_that_cannot_be_written_is_one_sentence_and_the_run_continues(tmp_path, room):
    def fill(row):
        if row["step"] == 10:
            until(tmp_path / "checkpoints" / "8")
            limited(0)

    config = make_config(16, save_every=8)
    with pytest.raises(DiskError) as error:
        fit(make_policy(), make_loader, config, tmp_path, fill)
    message = str(error.value)
    assert "checkpoints: File too large" in message
    assert "the last good checkpoint, of step 8, is kept" in message
    assert "raise the limit" in message
    assert "\n" not in message
    room()
    result = fit(make_policy(), make_loader, config, tmp_path)
    assert result.resumed_from == 8
    whole = fit(make_policy(), make_loader, config, tmp_path / "whole")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), result.state, whole.state))


@pytest.mark.parametrize("where", ["file", "no"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    folder = {"file": tmp_path / "file", "no": tmp_path / "file" / "run"}[where]
    with pytest.raises(UserError, match=r"file(/run)?: (File exists|Not a directory); "):
        fit(make_policy(), make_loader, make_config(1), folder)


def test_a_profile_of_some_steps_is_written(tmp_path):
    fit(make_policy(), make_loader, make_config(6, profile_at=2, profile_steps=2), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_buckets_exclude_each_other_and_add_up(monkeypatch):
    moments = iter([11.0, 12.0, 14.0, 18.0, 18.5, 20.0, 20.0])  # asked for by each change and each reading
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = Clock({"steps": 5.0}, {"steps": 7.0, "data": 1.0}, began=10.0)
    clock.switch("steps")
    with clock.during("checkpoint"), clock.during("validation"):
        pass
    seconds = clock.seconds()
    expected = {"start": 1.0, "steps": 5.0 + 1.0 + 1.5, "checkpoint": 2.0 + 0.5, "validation": 4.0, "lost": 3.0}
    assert {name: value for name, value in seconds.items() if value} == expected
    assert clock.row()["goodput"] == 7.5 / 18.0


def test_rows_tell_speed_and_where_the_time_went_and_reach_the_sinks(tmp_path):
    seen = []
    found = {"action_error": 0.5, "score": 0.5}
    config = make_config(10, validate_every=5)
    extras = Extras(sinks=(seen.append,), validate=lambda state: found, flops=lambda trained: 1e9)
    rows = fit(make_policy(), make_loader, config, tmp_path, extras=extras).rows
    assert rows[-1]["frames_per_second_per_device"] == rows[-1]["frames_per_second"] / jax.device_count()
    assert rows[-1]["mfu"] is None  # nobody says what this processor could do at best
    assert rows[-1]["seconds/compile"] > 0
    assert 0 < rows[-1]["goodput"] < 1
    validations = read_rows(tmp_path / "validation.jsonl")
    assert validations == [{"step": s, "validation/action_error": 0.5, "validation/score": 0.5} for s in (5, 10)]
    assert sorted(json.dumps(row) for row in seen) == sorted(json.dumps(row) for row in rows + validations)


def test_the_speed_leaves_validations_out(tmp_path):
    def validate(state):
        time.sleep(1.0)
        return {"score": 1.0}

    rows = fit(
        make_policy(), make_loader, make_config(20, validate_every=5), tmp_path, extras=Extras(validate=validate)
    ).rows
    # Five steps of twelve frames and a second of validation would be at most 60 frames a second.
    assert max(row["frames_per_second"] for row in rows[1:]) > 75
    assert rows[-1]["seconds/validation"] >= 3.0


def test_the_best_checkpoints_stay(tmp_path):
    scores = {2: 3.0, 4: 1.0, 6: float("nan"), 8: 2.0, 10: 4.0, 12: 5.0}
    extras = Extras(validate=lambda state: {"score": scores[int(state.step)]})
    config = make_config(6, validate_every=2, keep=1, keep_best=2)
    fit(make_policy(), make_loader, config, tmp_path, extras=extras)
    # In another process the scores come from the disk.
    fit(make_policy(), make_loader, make_config(12, validate_every=2, keep=1, keep_best=2), tmp_path, extras=extras)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {4, 8, 12}
