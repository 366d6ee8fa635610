"""Both sides side by side, each a process on its share of the cores, with a progress bar each.

At the demo's size two single-core trainings side by side are faster than one that splits tiny matrix products over two
cores.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mem0_jax.demo.settings import FAILED, SIDES, Demo
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress

# Settles on its cores before JAX starts, which sizes its thread pools by them.
START = """
import os, runpy, sys
cores = [int(core) for core in sys.argv[3].split(",") if core]
if cores:
    os.sched_setaffinity(0, cores)
runpy.run_module("mem0_jax.demo.side", run_name="__main__")
"""


class _Side:
    """A worker process, its progress bar and the thread that feeds it."""

    def __init__(self, demo: Demo, side: str, cores: Sequence[int], position: int):
        self.demo, self.name, self.bar_position = demo, side, position
        (demo.out / side).mkdir(exist_ok=True)
        self.log = demo.out / side / "log.txt"
        self.reason = ""  # why it failed, where that is a matter for the user
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(demo.out), side, ",".join(map(str, cores))],
                stdin=subprocess.PIPE,  # which ends with us: the worker ends then, too
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the workers once, through us
            )
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        train, episodes = self.demo.config["train"]["steps"], self.demo.config["eval"]["episodes"]
        label = self.name.replace("_", " ")
        phases = {"train": ("training", train, "step"), "eval": ("evaluating", episodes, "episode")}
        assert self.process.stdout is not None
        rows = self._rows(map(json.loads, self.process.stdout))
        for phase, told in itertools.groupby(rows, lambda row: row["phase"]):
            doing, total, unit = phases[phase]
            with Progress(f"{f'{doing} {label}':27s}", total, unit, row=self.bar_position) as progress:
                for row in told:
                    if "loss" in row:
                        progress.note(f"loss {row['loss']:.3f}")
                    progress.reach(row["step" if phase == "train" else "finished"], total)

    def _rows(self, told: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What the process tells of its work; why it failed is kept."""
        for row in told:
            if row["phase"] == FAILED:
                self.reason = row["reason"]
            else:
                yield row

    def wait(self) -> int:
        """The exit code, once the process has ended and its output was read."""
        code = self.process.wait()
        self.thread.join()
        return code


def run_arms(demo: Demo) -> None:
    """Trains and evaluates both sides side by side."""
    sides = [_Side(demo, side, cores, i) for i, (side, cores) in enumerate(zip(SIDES, shares_of_cores(len(SIDES))))]
    try:
        codes = [side.wait() for side in sides]
    except KeyboardInterrupt:
        for side in sides:
            side.process.send_signal(signal.SIGINT)
        for side in sides:
            side.wait()
        raise KeyboardInterrupt(f"stopped; run the same command again to continue in {demo.out}") from None
    for side, code in zip(sides, codes):
        if side.reason:
            raise UserError(side.reason)
        if code:
            end = side.log.read_text(errors="replace")[-2000:]
            raise UserError(f"the process of {side.name} ended with code {code}; the end of {side.log}:\n{end}")


def shares_of_cores(processes: int) -> list[list[int]]:
    """The cores this process may use, dealt out; with too few of them everybody gets all. Empty: unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return [[]] * processes
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // processes
    return [cores[i * share : (i + 1) * share] for i in range(processes)] if share else [cores] * processes
