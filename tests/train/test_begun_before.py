"""Runs that were begun with older code go on: the settings that their checkpoints hold are found equal."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mem0_jax.commands.train import read_config
from mem0_jax.config import from_dict
from mem0_jax.planner.job import PlannerJob
from mem0_jax.train.job import Job, job_settings

# By command, of 'mem0-jax train' and 'mem0-jax plan train' when jobs named no policy: what checkpoints held, and what
# job.json did, without which a planner's run cannot be merged.
ASSETS = Path(__file__).parent / "assets"
SETTINGS, JOBS = (json.loads((ASSETS / name).read_text()) for name in ("settings_before.json", "jobs_before.json"))


def read(command: str) -> Job | PlannerJob:
    kind = PlannerJob if command.startswith("plan ") else Job
    name, *overrides = command.removeprefix("plan ").removeprefix("train ").split(" ")
    return from_dict(kind, read_config(name, overrides, kind))


@pytest.mark.parametrize("command", SETTINGS)
def test_the_settings_of_runs_begun_before_are_found_equal(command):
    job = read(command)
    if isinstance(job, PlannerJob):
        now = job.train_config(1000).settings() | job.settings()
    else:
        now = job.train_config().settings() | job_settings(job)
    assert json.loads(json.dumps(now)) == SETTINGS[command]


@pytest.mark.parametrize("command", JOBS)
def test_the_job_of_a_run_begun_before_is_read_and_means_the_same(command):
    job, before = read(command), from_dict(PlannerJob if command.startswith("plan ") else Job, JOBS[command])
    # The kernels of low-rank factors had to be written out.
    assert before.lora == job.lora
    assert replace(before, train=replace(before.train, lora=job.train.lora)) == job
