"""The training loop: one call that starts or continues a run in a folder."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from mem0_jax import tree
from mem0_jax.disk import disk_told
from mem0_jax.distributed.layout import Layout
from mem0_jax.errors import UserError
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.train.checkpoint import CheckpointError, Checkpoints, Restored
from mem0_jax.train.config import OptimizerConfig, SettingsError, TrainConfig
from mem0_jax.train.log import MetricsLog, Sink, Trouble, read_rows
from mem0_jax.train.optim import OptimizerState
from mem0_jax.train.state import TrainState, blueprint, create_params
from mem0_jax.train.step import make_train_step
from mem0_jax.train.watch import (
    Profiler,
    StopRequest,
    Watchdog,
    check_disk,
    memory_plan,
    out_of_memory,
    tree_bytes,
)
from mem0_jax.train.workdir import only_run

if TYPE_CHECKING:
    from mem0_jax.policies.base import Trainable

# Steps handed to the device before the loop waits for the oldest: enough to keep it busy, while each holds a batch.
MAX_IN_FLIGHT = 2
# Settings a run may change when it continues; any other would make it a different run.
FREE_SETTINGS = {
    *("steps", "log_every", "save_every", "keep", "keep_best", "validate_every", "metrics_window"),
    *("watchdog_seconds", "profile_at", "profile_steps"),
}
_log = logging.getLogger(__name__)


class BatchIterator(Protocol):
    """What a loader must be: an iterator over dicts of NumPy arrays [L, T, ...] that can tell and take its place."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> Any:
        """JSON values for the batch that `next` would give."""
        ...

    def set_state(self, state: Any) -> None:
        """Makes the batch of another iterator's `get_state` the next one."""
        ...


class DataError(UserError):
    """The loader ended early or gave a batch of another form."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run was saved; the message says how to continue it."""


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
        state: after the last step.
        rows: all rows of the metrics log, see `MetricsLog`.
        resumed_from: step this call continued after, or None.
        seconds: of this call; `compile_seconds` of it until the first step was done.
    """

    state: TrainState
    rows: list[dict[str, Any]]
    resumed_from: int | None
    seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Extras:
    """What a run may have besides a policy, data and settings.

    Attributes:
        initial: makes the parameters of a new run from a key, in place of the policy's `init`.
        optimizer: reads (steps done, settings, optimizer state) of the run that a new run goes on from, given the form
            of that state with its shardings, see `load_optimizer`; this run's own settings count.
        validate: gets the state and returns figures by name, of which "score" ranks checkpoints, the lower the better.
        settings: further settings as JSON values; they are saved, and must be equal when the run continues.
        flops: operations a frame takes, by formula from the paths of the trained parameters, for the log's `mfu`.
        sinks: called with every row of the log, validations included.
        layout: the mesh of several devices or processes, and where state and batches lie on it; None is one device.
            Each process's loader then gives the lanes of `layout.local_lanes`.
    """

    initial: Callable[[jax.Array], dict[str, Any]] | None = None
    optimizer: Callable[[OptimizerState], tuple[int, OptimizerConfig, OptimizerState]] | None = None
    validate: Callable[[TrainState], dict[str, float]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    flops: Callable[[Iterable[str]], float] | None = None
    sinks: tuple[Sink, ...] = ()
    layout: Layout | None = None


@same_numbers
def fit(
    policy: Trainable,
    loader_factory: Callable[[], BatchIterator],
    config: TrainConfig,
    workdir: str | Path,
    progress: Callable[[dict[str, Any]], None] | None = None,
    extras: Extras | None = None,
) -> FitResult:
    """Train `policy` for `config.steps` batches, continuing whatever run `workdir` holds.

    On the same machine a run that was killed, or stopped with Ctrl-C, and called again gives bit for bit the numbers of
    an uninterrupted one: parameters, memory, data position and the log's open window come from the last checkpoint.

    Args:
        policy: see `Trainable`; its `init` must be traceable, for a resumed run only asks for its shapes.
        loader_factory: makes the batch iterator, standing at its beginning.
        config: see `TrainConfig`.
        workdir: folder of the run, made if absent: `checkpoints/`, `metrics.jsonl`, `validation.jsonl`; `hang.txt` and
            `profile/` where asked for. The processes of a run share it, and process 0 writes the logs; another run is
            refused while this one lives.
        progress: called with every row of the metrics log.
        extras: see `Extras`.
    Raises:
        CheckpointError: `workdir` holds a run with other settings or another model.
        DataError: the loader failed, ended before `config.steps`, or its batches have the wrong leading axes.
        DivergedError: the gradient stayed non-finite.
        OutOfMemoryError: as it says.
        LockedError: another run is under way in `workdir`.
        DiskError: the disk refused; it is looked at before the first step. A checkpoint that cannot be written is a
            warning, unless it is the last one.
        TrainingInterrupted: after Ctrl-C or SIGTERM, once the run is saved.
    """
    started = time.perf_counter()
    workdir = Path(workdir)
    kept = f"what {workdir / 'checkpoints'} holds is kept, and the same command continues"
    with (
        only_run(workdir) as still_ours,
        disk_told(workdir, kept),
        Checkpoints(workdir / "checkpoints", config.keep, config.keep_best) as checkpoints,
        StopRequest() as stop,
    ):
        run = _Run(policy, loader_factory(), config, workdir, checkpoints, progress, extras or Extras())
        run.before_save = still_ours
        with run.bar, run.watchdog:
            stopped = False
            while run.step < config.steps and not stopped:
                run.advance()
                stopped = stop.reached(run.step)
            if run.step < config.steps:
                run.save()
                checkpoints.wait()
            else:
                run.finish()
    if stopped or stop.requested:  # at the end as well: what the caller goes on to is not what was asked for
        raise TrainingInterrupted(
            f"stopped after step {run.step} of {config.steps}, saved in {workdir}; "
            "run the same command again to continue from there"
        )
    rows = read_rows(workdir / "metrics.jsonl")
    return FitResult(run.state, rows, run.resumed_from, time.perf_counter() - started, run.compile_seconds)


class _Run:
    """The moving parts of one `fit`."""

    def __init__(
        self,
        policy: Trainable,
        loader: BatchIterator,
        config: TrainConfig,
        workdir: Path,
        checkpoints: Checkpoints,
        progress: Callable[[dict[str, Any]], None] | None,
        extras: Extras,
    ) -> None:
        self._loader, self._config, self._checkpoints, self._progress = loader, config, checkpoints, progress
        self._validate, self._settings = extras.validate, config.settings() | dict(extras.settings)
        self._layout = extras.layout
        began = time.perf_counter()
        self._plan: dict[str, int] = {}
        with self._memory_explained():
            restored, optimizer = self._start(policy, workdir, extras)
        self.step = int(self.state.step)
        self.compile_seconds = 0.0
        step = make_train_step(policy, optimizer, config.accumulate, config.ema_decay)
        self._train_step = (
            jax.jit(step, donate_argnums=0) if self._layout is None else self._layout.jit_step(step, self.state)
        )
        log = restored and restored.extra["log"]
        flops = extras.flops(tree.flatten(self.state.opt_state.mu)) if extras.flops else 0.0
        self._metrics = MetricsLog(workdir, config, self.step, log, flops, extras.sinks, began)
        # Quiet where nobody watches: `disable=None` asks whether the output is a terminal.
        quiet = None if jax.process_index() == 0 else True
        self.bar = tqdm(total=config.steps, initial=self.step, disable=quiet, unit="step", dynamic_ncols=True)
        hang = "hang.txt" if jax.process_count() == 1 else f"hang_{jax.process_index()}.txt"
        self.watchdog = Watchdog(workdir / hang, config.watchdog_seconds)
        self._saves = Trouble("checkpoints")
        self._profiler = Profiler(workdir / "profile", config.profile_at, config.profile_steps)
        self._in_flight: deque[jax.Array] = deque()
        self._row_due: int | None = None
        self._first = self.step
        self.before_save: Callable[[], None] = lambda: None

    def _start(self, policy: Trainable, workdir: Path, extras: Extras) -> tuple[Restored | None, Any]:
        """Make or restore the state; returns what was restored, and the optimizer."""
        config = self._config
        abstract, optimizer, state, template = blueprint(policy, config)
        if self._layout is not None:
            template = self._layout.with_shardings(template)
        self._plan = memory_plan(template, {})
        _log.info("%s parameters, %s of them trained", *(_millions(t) for t in (abstract, template.opt_state.mu)))
        restored = self._checkpoints.restore(template)
        self.resumed_from: int | None = None
        if restored is None:
            check_disk(workdir, 2 * tree_bytes(template), "a pair of checkpoints of this run")
            make = partial(create_params, policy, config.seed, config.bfloat16, extras.initial)
            self.state = self._first_state(make, state, abstract, traceable=extras.initial is None)
            if extras.optimizer is not None:
                # The fresh moments go before the others come: a large model has no room for both.
                self.state = replace(self.state, opt_state=template.opt_state)
                step, _, opt_state = extras.optimizer(template.opt_state)
                begun = jax.device_put(np.int32(step), self.state.step.sharding)
                self.state = replace(self.state, step=begun, opt_state=opt_state)
        else:
            _check_settings(workdir, restored.extra["config"], self._settings)
            self.state = restored.state
            self.resumed_from = int(restored.state.step)
            try:
                self._loader.set_state(restored.extra["data"])
            except ValueError as error:
                raise CheckpointError(f"{workdir} holds a run on other data: {error}") from error
            _log.info("%s: continuing after step %d", workdir, self.resumed_from)
        return restored, optimizer

    def _first_state(
        self, make: Callable[[], dict[str, Any]], state: Callable[..., TrainState], abstract: dict, traceable: bool
    ) -> TrainState:
        if self._layout is not None and traceable:
            return self._layout.create(lambda: state(make()))
        params = make()
        _check_params(params, abstract)
        if self._layout is not None:
            return self._layout.create(state, self._layout.put_params(params))
        # Committed to the device, as what a checkpoint gives: for others the step would be another program.
        return jax.device_put(state(params), jax.local_devices()[0])

    def advance(self) -> None:
        """Train on one batch; write the row, the validation and the checkpoint that fall due."""
        self._profiler.before_step(self.step)
        batch, waited = self._next_batch()
        self._metrics.clock.switch("compile" if self.step == self._first else "steps")
        with self._memory_explained():
            self._take_step(batch, waited)
            self.bar.update()
            if self.step % self._config.log_every == 0:
                self._row_due = self.step
            validated = self._validated()
            if validated is not None or self.step % self._config.save_every == 0:
                with self._saves.at(self.step):
                    self.save(validated)
        self.watchdog.step()

    @contextmanager
    def _memory_explained(self) -> Iterator[None]:
        """Turns an error of exhausted memory into one that says what the run needs."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if (clear := out_of_memory(error, self._plan)) is not None:
                raise clear from error
            raise

    def _next_batch(self) -> tuple[dict[str, np.ndarray], float]:
        asked = time.perf_counter()
        with self._metrics.clock.during("data"):
            try:
                batch = next(self._loader)
            except StopIteration:
                raise DataError(
                    f"the loader ended after {self.step} of {self._config.steps} batches; it must repeat its data"
                ) from None
            except (OSError, ValueError) as error:  # what readers of datasets raise, naming file and fix
                raise DataError(str(error)) from error
        if self.step == self._first:
            lanes = self._config.lanes
            _check_batch(batch, lanes if self._layout is None else self._layout.local_lanes(lanes)[1])
            self._plan = memory_plan(self.state, batch)
        return batch, time.perf_counter() - asked

    def _take_step(self, batch: dict[str, np.ndarray], waited: float) -> None:
        placed = batch if self._layout is None else self._layout.batch(batch, self._config.lanes)
        if self.step == self._first:
            _log.info("compiling the first step, which may take minutes")
        self.state, metrics = self._train_step(self.state, placed)
        self._write_due_row()  # of the steps before, while the device works on this one
        self.step += 1
        lanes, frames = next(iter(placed.values())).shape[:2]
        self._metrics.add(metrics, lanes * frames, waited)
        self._throttle(metrics["loss"])

    def _validated(self) -> dict[str, float] | None:
        """What the validation that falls due finds."""
        if self._validate is None or not self._config.validate_every or self.step % self._config.validate_every:
            return None
        self.watchdog.pause()
        self._settle()
        with self._metrics.clock.during("validation"):
            found = self._validate(self.state)
        self._metrics.write_validation(self.step, found)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name != "score")
        _log.info("validation after step %d: %s", self.step, figures)
        return found

    def save(self, validated: Mapping[str, float] | None = None) -> None:
        """Write the row that is due, if any, then checkpoint the present step."""
        self.before_save()
        self.watchdog.pause()
        self._settle()
        self._write_due_row()
        score = (validated or {}).get("score", math.nan)
        with self._metrics.clock.during("checkpoint"):
            log = self._metrics.snapshot()
            extra = {"config": self._settings, "data": self._loader.get_state(), "log": log}
            self._checkpoints.save(self.state, extra, score if math.isfinite(score) else None)

    def finish(self) -> None:
        """Write the last row, even of fewer steps, and the last checkpoint."""
        self._profiler.stop()
        if self.step > self._first and (self._row_due or self.step % self._config.log_every):
            self._row_due = self.step
        self.save()

    def _write_due_row(self) -> None:
        if self._row_due is None:
            return
        row = self._metrics.write_row(self._row_due)
        self._row_due = None
        self.bar.set_postfix({name: row[name] for name in ("loss", "frames_per_second", "skipped")})
        if self._progress is not None and jax.process_index() == 0:
            self._progress(row)

    def _throttle(self, loss: jax.Array) -> None:
        if self.step == self._first + 1:  # the first step compiles
            loss.block_until_ready()
            self.compile_seconds = self._metrics.warmed_up(self.step)
            _log.info("the first step, which compiles, took %.0f s", self.compile_seconds)
        self._in_flight.append(loss)
        if len(self._in_flight) > MAX_IN_FLIGHT:
            self._in_flight.popleft().block_until_ready()

    def _settle(self) -> None:
        """Wait for the steps handed to the device, so that their time does not count for what comes next."""
        while self._in_flight:
            self._in_flight.popleft().block_until_ready()


def _check_params(params: dict[str, Any], abstract: dict[str, Any]) -> None:
    found, expected = tree.flatten(params), tree.flatten(abstract)
    problems = [f"{path}: unknown to the model" for path in found if path not in expected]
    problems += [
        f"{path}: expected {list(leaf.shape)}, got {list(found[path].shape) if path in found else 'nothing'}"
        for path, leaf in expected.items()
        if path not in found or found[path].shape != leaf.shape
    ]
    if problems:
        raise SettingsError("the parameters to start from are not those of the model:\n  " + "\n  ".join(problems))


def _millions(parameters: Any) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(parameters)) / 1e6:.4g} M"


def _check_settings(workdir: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before, after = _by_name(saved), _by_name(now)
    changed = [
        f"{name}: {before.get(name)!r} saved, {after.get(name)!r} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in FREE_SETTINGS
    ]
    if changed:
        longer = any(line.startswith("optimizer.total_steps:") for line in changed)
        raise CheckpointError(
            f"{workdir} holds a run with other settings:\n  "
            + "\n  ".join(changed)
            + "\nGive it the saved settings to continue, or start in a new folder."
            + (" A schedule of another length is another run, which may begin from this one's bundle." * longer)
        )


def _by_name(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    named = {}
    for name, value in config.items():
        named |= _by_name(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return named


def _check_batch(batch: Mapping[str, np.ndarray], lanes: int) -> None:
    shapes = {name: np.shape(value) for name, value in batch.items()}
    frames = {shape[1] for shape in shapes.values() if len(shape) > 1}
    if not shapes or len(frames) != 1 or any(len(s) < 2 or s[0] != lanes for s in shapes.values()):
        listing = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"
        raise DataError(f"batch: expected arrays [lanes={lanes}, frames, ...] with equal frames, got {listing}")
