"""What watches over a run: the wish to stop, steps that hang, a profile of some steps, memory that does not suffice."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from mem0_jax.disk import DiskError
from mem0_jax.errors import UserError
from mem0_jax.units import size

_log = logging.getLogger(__name__)


class OutOfMemoryError(UserError):
    """The device's memory does not suffice; the message holds the memory plan."""


class DiskFullError(DiskError):
    """A checkpoint does not fit on the disk, or could not be written."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop after the step; the second one acts as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        ):  # Python lets no other thread handle signals
            self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`. In a run of several processes a SIGTERM to one of them asks all, and they agree
        on the step; Ctrl-C then ends a process at once.
        """
        return self.requested or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.__exit__()
        # Not print: a signal may arrive in the middle of one.
        os.write(2, b"\nfinishing the step and saving; once more to stop at once without saving\n")


class Watchdog:
    """Writes the stacks of all threads to a file when `step` is not called for too long; use it as a context manager.

    The clock runs in a thread of the interpreter's own that needs no lock of Python's, so that a step which hangs
    inside a library, or in another host's silence, is seen too. The run itself goes on waiting.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        """Allow a step `seconds`; 0 watches nothing. `path` is written only when a step hangs."""
        self._path, self._seconds = path, seconds
        self._file: TextIO | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def step(self) -> None:
        """A step is done: start the clock of the next one."""
        if self._file is None:
            return
        self._tell()
        self._began = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds, file=self._file)

    def pause(self) -> None:
        """Stop the clock until the next `step`: what follows may take long."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._tell()
            self._began = math.inf

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        self.pause()
        self._file.close()
        if not self._path.stat().st_size:
            self._path.unlink()

    def _tell(self) -> None:
        took = time.monotonic() - self._began
        if took > self._seconds and self._path.stat().st_size:
            _log.warning("a step took %.0f seconds; what every thread was doing stands in %s", took, self._path)


class Profiler:
    """Traces `steps` steps from step `at` on into a folder that TensorBoard and Perfetto read."""

    def __init__(self, folder: Path, at: int, steps: int) -> None:
        self._folder, self._at, self._steps = folder, at, steps
        self._running = False

    def before_step(self, step: int) -> None:
        """Start or stop the trace where `step` steps are done."""
        if self._running and step >= self._at + self._steps:
            self.stop()
        elif self._steps and step == self._at and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def stop(self) -> None:
        """End a trace that is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            _log.info("profile of %d steps in %s", self._steps, self._folder)


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_plan(state: Any, batch: Mapping[str, Any]) -> dict[str, int]:
    """Bytes a training step needs at least, over all devices, by what they are for.

    `state` is a `TrainState` (arrays or `jax.ShapeDtypeStruct`). Activations come on top.
    """
    trained = tree_bytes(state.opt_state.mu)
    return {
        "parameters": tree_bytes(state.params),
        "optimizer": tree_bytes(state.opt_state),
        "averages": tree_bytes(state.ema),
        "gradients": trained,
        "memory of the lanes": tree_bytes(state.carry),
        "batch": sum(value.nbytes for value in batch.values()),
    }


def out_of_memory(error: Exception, plan: Mapping[str, int]) -> OutOfMemoryError | None:
    """The error to raise in place of `error`, if that says that a device's memory is exhausted."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "out of memory" not in text.lower():
        return None
    lines = [f"  {name:<20} {size(count, True):>12}" for name, count in plan.items()]
    lines.append(f"  {'all of these':<20} {size(sum(plan.values()), True):>12}, and activations")
    first = next(line for line in text.splitlines() if line.strip())
    return OutOfMemoryError(
        f"out of memory: {first[:300]}\nA step needs, over {jax.device_count()} device(s):\n"
        + "\n".join(lines)
        + "\nActivations shrink with train.accumulate (more, smaller parts), model.remat=True or a smaller "
        "train.batch_size; parameters and optimizer with train.preset=lora, train.precision=reference or more devices."
    )


def check_disk(folder: Path, needed: int, what: str, kept: str = "") -> None:
    """Raise DiskFullError if the disk of `folder` has less than `needed` bytes free; all processes of a run agree.

    `what` needs them; `kept` says what is not lost.
    """
    free = shutil.disk_usage(folder).free
    if jax.process_count() > 1:
        free = 2**20 * int(multihost_utils.broadcast_one_to_all(np.int32(free // 2**20)))
    if free < needed:
        raise DiskFullError(
            f"{folder}: {what} needs {size(needed, True)}, the disk has {size(free, True)} free; "
            f"{kept and kept + '; '}make room, or continue in a folder on another disk"
        )
