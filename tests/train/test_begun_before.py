"""Runs that were begun with older code go on: the settings that their checkpoints hold are found equal."""

import json
from pathlib import Path

import pytest

from mem0_jax.commands.train import read_config
from mem0_jax.config import from_dict
from mem0_jax.planner.job import PlannerJob
from mem0_jax.train.job import Job, job_settings

# By command: what checkpoints of 'mem0-jax train' and 'mem0-jax plan train' held when jobs named no policy.
BEFORE = json.loads((Path(__file__).parent / "assets" / "settings_before.json").read_text())


@pytest.mark.parametrize("command", BEFORE)
def test_the_settings_of_runs_begun_before_are_found_equal(command):
    name, *overrides = command.removeprefix("plan ").removeprefix("train ").split(" ")
    if command.startswith("plan "):
        job = from_dict(PlannerJob, read_config(name, overrides))
        now = job.train_config(1000).settings() | job.settings()
    else:
        job = from_dict(Job, read_config(name, overrides, Job))
        now = job.train_config().settings() | job_settings(job)
    assert json.loads(json.dumps(now)) == BEFORE[command]
