"""The metrics log of a run: one JSON object a line in `metrics.jsonl`, one line for each `log_every` steps.

What validation finds goes to `validation.jsonl` in the same form, one line a validation.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from mem0_jax.disk import DiskError, explained, write_whole
from mem0_jax.errors import UserError
from mem0_jax.train.clock import Clock
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.flops import peak_flops
from mem0_jax.train.metrics import ClassifierWindow, summarise
from mem0_jax.train.optim import learning_rates

MAX_SKIPPED_IN_A_ROW = 100
Sink = Callable[[dict[str, Any]], None]
_log = logging.getLogger(__name__)


class DivergedError(UserError):
    """The gradient has not been finite for so long that going on is pointless."""


class Trouble:
    """What a disk refuses ends no run: a later checkpoint may find room. It is told as it begins and as it ends."""

    def __init__(self, what: str):
        self._what, self._missing = what, 0

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Around what is written of a step."""
        try:
            yield
        except (DiskError, OSError) as error:
            self._missing += 1
            if self._missing == 1:
                text = "%s are not written from step %d on, and the run goes on: %s"
                _log.warning(text, self._what, step, explained(error) or error)
        else:
            if self._missing:
                text = "%s are written again from step %d on; missing: %d"
                _log.warning(text, self._what, step, self._missing)
            self._missing = 0


class MetricsLog:
    """Collects the metrics of steps, on the device until a row is due, and appends rows to the file.

    A row holds `step`; the mean over its steps of every metric of the policy, `loss` and `grad_norm` (null where never
    finite); the classifier's metrics over the newest `metrics_window` rows, if the policy counts; `learning_rate/GROUP`
    of the latest update; `skipped`, updates left out since the run began; of this process: `frames_per_second` (without
    the time of validations and checkpoints), the same `_per_device`, `data_wait_ms` a step, `seconds` since it started
    and `eta_seconds` (all but `seconds` null for the first step, which compiles); `mfu`, the
    operations done by formula over those the devices could do, where both are known; and of the whole run
    `goodput` and `seconds/BUCKET`, see `Clock`.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        step: int,
        restored: Mapping[str, Any] | None = None,
        flops_per_frame: float = 0.0,
        sinks: tuple[Sink, ...] = (),
        began: float | None = None,
    ) -> None:
        """Open the log of a run that continues after `step`, dropping later rows and a half-written last line.

        Args:
            folder: of the run.
            config: its settings.
            step: see above.
            restored: what `snapshot` returned at that step.
            flops_per_frame: operations a frame takes; 0 if unknown.
            sinks: called with every row of both files.
            began: `time.perf_counter()` when the work on the run began; default now.
        """
        restored = restored or {"names": [], "values": [], "classifier": [], "skipped": 0, "clock": {}}
        self._path, self._validation, self._config = folder / "metrics.jsonl", folder / "validation.jsonl", config
        self._sinks, self._flops_per_frame = sinks, flops_per_frame
        self._rows, self._sink_rows = Trouble("rows"), [Trouble("rows of a log besides the run's own") for _ in sinks]
        self._names: list[str] = list(restored["names"])
        self._values: list[list[float]] = [list(row) for row in restored["values"]]
        self._classifier = ClassifierWindow(config.metrics_window, restored["classifier"])
        self._skipped = int(restored["skipped"])
        self._skipped_in_a_row = 0
        self._pending: list[dict[str, jax.Array]] = []
        self._first_step, self._frames, self._steps, self._waited = step, 0, 0, 0.0
        self._opened = self._mark = time.perf_counter()
        self._warm = self._opened
        self.clock = Clock(restored["clock"], _last_clock(self._path), self._opened if began is None else began)
        self._paused = self._pauses()
        for path in (self._path, self._validation):
            _truncate(path, step)

    def add(self, metrics: dict[str, jax.Array], frames: int, waited: float) -> None:
        """Note one step's metrics (arrays [] that may still be in the making), its frames and seconds spent on data."""
        self._pending.append(metrics)
        self._frames += frames
        self._steps += 1
        self._waited += waited

    def warmed_up(self, step: int) -> float:
        """Leave what came before (compilation) out of the speed; returns the seconds it took."""
        self._warm = self._mark = time.perf_counter()
        self._paused = self._pauses()
        self._first_step, self._frames, self._steps, self._waited = step, 0, 0, 0.0
        return self._warm - self._opened

    def snapshot(self) -> dict[str, Any]:
        """JSON values with which another log of the same run continues exactly; waits for the pending steps."""
        self._fetch()
        return {
            "names": self._names,
            "values": self._values,
            "classifier": self._classifier.rows(),
            "skipped": self._skipped,
            "clock": self.clock.seconds(),
        }

    def write_row(self, step: int) -> dict[str, Any]:
        """Append the row that ends with `step` and return it; waits for the pending steps.

        Raises DivergedError after `MAX_SKIPPED_IN_A_ROW` updates in a row were left out.
        """
        skipped_before = self._skipped
        self._fetch()
        means, counts = summarise(self._names, self._values)
        self._values = []
        row: dict[str, Any] = {"step": step, **means}
        if counts is not None:
            row |= self._classifier.update(counts)
        rates = learning_rates(self._config.optimizer, max(0, step - self._skipped - 1))
        row |= {f"learning_rate/{group}": rate for group, rate in rates.items()}
        row["skipped"] = self._skipped
        row |= self._speed(step) | self.clock.row()
        finite = self._append(self._path, row)
        if self._skipped > skipped_before:
            _log.warning(
                "step %d: %d updates were left out because the gradient was not finite (%d since the run began)",
                step,
                self._skipped - skipped_before,
                self._skipped,
            )
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"stopped at step {step}: the gradient was not finite in the last {self._skipped_in_a_row} steps; "
                "check the data for NaN, lower the learning rate, or continue from an earlier checkpoint"
            )
        return finite

    def write_validation(self, step: int, found: Mapping[str, float]) -> dict[str, Any]:
        """Append what a validation after `step` found to `validation.jsonl`, by names that start with `validation/`."""
        return self._append(self._validation, {"step": step} | {f"validation/{k}": float(v) for k, v in found.items()})

    def _append(self, path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if jax.process_index():  # process 0 writes for all
            return finite
        with self._rows.at(row["step"]):
            _append_line(path, json.dumps(finite))
        for sink, trouble in zip(self._sinks, self._sink_rows, strict=True):
            with trouble.at(row["step"]):
                sink(finite)
        return finite

    def _fetch(self) -> None:
        for metrics in jax.device_get(self._pending):
            skipped = int(metrics.pop("skipped"))
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped > self._skipped else 0
            self._skipped = skipped
            self._names = sorted(metrics)
            self._values.append([float(metrics[name]) for name in self._names])
        self._pending = []

    def _speed(self, step: int) -> dict[str, float]:
        now, paused = time.perf_counter(), self._pauses()
        seconds, done = max(now - self._mark - (paused - self._paused), 1e-9), step - self._first_step
        rate = self._frames / seconds if self._frames else math.nan
        devices = jax.devices()
        peak = peak_flops(devices[0].device_kind)
        speed = {
            "frames_per_second": rate,
            "frames_per_second_per_device": rate / len(devices),
            "mfu": rate * self._flops_per_frame / (len(devices) * peak) if self._flops_per_frame and peak else math.nan,
            "data_wait_ms": 1000 * self._waited / self._steps if self._steps else math.nan,
            "seconds": now - self._opened,
            "eta_seconds": (self._config.steps - step) * (now - self._warm) / done if done else math.nan,
        }
        self._mark, self._paused, self._frames, self._steps, self._waited = now, paused, 0, 0, 0.0
        return speed

    def _pauses(self) -> float:
        seconds = self.clock.seconds()
        return seconds["checkpoint"] + seconds["validation"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`, up to the first line that is not a complete row; empty if there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _last_clock(path: Path) -> dict[str, float]:
    """What the last row says of the clock."""
    last = next(reversed(read_rows(path)), {})
    return {k.removeprefix("seconds/"): float(v) for k, v in last.items() if k.startswith("seconds/")}


def _append_line(path: Path, line: str) -> None:
    """All of it or, where the disk is full, nothing."""
    data = f"{line}\n".encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        if file.write(data) != len(data):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _truncate(path: Path, step: int) -> None:
    if not path.exists() or jax.process_index():
        return
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
