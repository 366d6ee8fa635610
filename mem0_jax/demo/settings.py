"""What a demo run is, and where its parts lie.

A run lives in one folder and continues where it was stopped:

    settings.json          what the run was started with
    timing.json            seconds spent, by phase
    dataset/               expert episodes, LeRobot v3.0
    with_memory/           one folder a side: run/ (checkpoints, metrics), bundle/, evaluation.npz, log.txt
    without_memory/
    report.html, report.json, hero.png
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mem0_jax.disk import DiskError, write_json
from mem0_jax.envs import TASKS
from mem0_jax.errors import UserError

SIDES = {"with_memory": ("window", "anchor"), "without_memory": ()}
# Disjoint ranges of environment seeds; hyper-parameters were chosen on others than the test seeds.
TRAIN_SEEDS, TEST_SEEDS = 0, 300_000_000
SEEDS_PER_RUN = 10_000
FPS = 15
FAILED = "failed"  # the phase in which a worker says why it ends


@dataclass(frozen=True)
class Demo:
    """One demo run: where, which task, which seed, and the settings of `configs/demo.py`."""

    out: Path
    task: str
    seed: int
    config: dict[str, Any]

    def __post_init__(self):
        if self.task not in TASKS:
            raise UserError(f"there is no task {self.task!r}; the tasks are {', '.join(TASKS)}")
        if not 0 <= self.seed < SEEDS_PER_RUN:
            raise UserError(f"seed must lie in [0, {SEEDS_PER_RUN}), got {self.seed}")

    @property
    def dataset(self) -> Path:
        """Folder of the recorded episodes."""
        return self.out / "dataset"

    def seeds(self, base: int, count: int) -> list[int]:
        """`count` environment seeds of this run in the range that starts at `base`."""
        start = base + self.seed * SEEDS_PER_RUN
        return list(range(start, start + count))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds of the block to a phase of `timing.json`, also when it is interrupted."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.seconds()
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started
            with suppress(DiskError):  # which must not hide what ended the block
                write_json(self.out / "timing.json", seconds)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far."""
        path = self.out / "timing.json"
        return json.loads(path.read_text()) if path.is_file() else {}


def open_demo(out: Path, task: str, seed: int, config: dict[str, Any]) -> Demo:
    """Starts a run in `out`, or finds the one that is there; other settings than before are refused."""
    demo = Demo(out.absolute(), task, seed, json.loads(json.dumps(config)))
    settings = {"task": task, "seed": seed, "config": demo.config}
    path = demo.out / "settings.json"
    if path.is_file():
        if json.loads(path.read_text()) != settings:
            raise UserError(f"{out} holds a run with other settings; choose another --out or delete it")
        return demo
    demo.out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)
    return demo


def load_demo(out: Path) -> Demo:
    """The run in `out`."""
    settings = json.loads((out / "settings.json").read_text())
    return Demo(out.absolute(), settings["task"], settings["seed"], settings["config"])
