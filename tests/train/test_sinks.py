"""Rows of the log in TensorBoard's files and in Weights & Biases' offline ones."""

import os
import re
import resource
import struct
import sys

import pytest

from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install
from mem0_jax.train.job import DataSettings, Job, TrainSettings
from mem0_jax.train.sinks import open_sinks

ROWS = [{"step": 10, "loss": 0.5, "mfu": None}, {"step": 20, "loss": 0.25, "mfu": 0.4}]


def job(*sinks):
    return Job(DataSettings(("d",), tokenizer="words"), train=TrainSettings(batch_size=16, log_to=sinks))


def test_tensorboard_files_hold_the_rows(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    with open_sinks(job("tensorboard"), tmp_path) as sinks:
        for row in ROWS:
            sinks[0](row)
    [path] = (tmp_path / "tensorboard").iterdir()
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):  # records of length, checksum, event, checksum
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + length])
        found += [(event.step, value.tag, pytest.approx(value.simple_value)) for value in event.summary.value]
        place += 16 + length
    assert sorted(found, key=lambda f: f[:2]) == [(10, "loss", 0.5), (20, "loss", 0.25), (20, "mfu", 0.4)]


def test_a_full_disk_costs_a_row_not_the_run(tmp_path):
    """Many rows: a writer that waits for its own thread would wait for ever."""
    pytest.importorskip("tensorboardX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    with open_sinks(job("tensorboard"), tmp_path) as sinks:
        try:
            for step in range(60):
                if step in (20, 40):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if step == 20 else before[0], before[1]))
                try:
                    sinks[0]({"step": step, "loss": 1.0})
                except OSError:
                    failed += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed == 20
    sizes = [path.stat().st_size for path in (tmp_path / "tensorboard").iterdir() if path.stat().st_size]
    assert len(sizes) == 2


def test_weights_and_biases_continues_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    for row in ROWS:
        with open_sinks(job("wandb"), tmp_path) as sinks:
            sinks[0](row)
    identity = (tmp_path / "wandb_id.txt").read_text()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert runs
    assert all(run.name.endswith(identity) for run in runs)
    assert any(os.path.getsize(file) > 0 for run in runs for file in run.glob("*.wandb"))


@pytest.mark.parametrize(("sink", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_library_that_is_not_installed_is_named(sink, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    advice = re.escape(f"{module} is not installed: {how_to_install(sink)}")
    with pytest.raises(UserError, match=advice), open_sinks(job(sink), tmp_path):
        pass
