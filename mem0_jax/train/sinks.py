"""Where rows of the log go besides its own files: TensorBoard and Weights & Biases, imported only when asked for.

A row is a dict with `step`; every number of it becomes a scalar at that step.
"""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from mem0_jax.config import to_dict
from mem0_jax.disk import safe_name, write_whole
from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install
from mem0_jax.train.log import Sink


@contextmanager
def open_sinks(job: Any, workdir: Path) -> Iterator[tuple[Sink, ...]]:
    """The sinks that the settings of a job (its `train.log_to`) ask for, closed at the end.

    Raises:
        UserError: a library is not installed.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    with ExitStack() as stack:
        if jax.process_index():  # process 0 writes for all
            yield ()
            return
        yield tuple(stack.enter_context(makers[name](job, workdir)) for name in job.train.log_to)


@contextmanager
def _tensorboard(job: Any, workdir: Path) -> Iterator[Sink]:
    _library("tensorboardX", "tensorboard")
    # Not its SummaryWriter, whose thread ends where the disk is full and then lets the run wait for ever.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import scalar

    folder, files = workdir / "tensorboard", []
    folder.mkdir(exist_ok=True)

    def write(row: dict[str, Any]) -> None:
        try:
            files[:] = files or [EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")]
            for name, value in _numbers(row):
                files[0].write_event(Event(wall_time=time.time(), step=row["step"], summary=scalar(name, value)))
            files[0].flush()
        except OSError:
            files.clear()  # behind half a record nothing could be read: the next row begins another file
            raise

    try:
        yield write
    finally:
        for file in files:
            file.close()


@contextmanager
def _wandb(job: Any, workdir: Path) -> Iterator[Sink]:
    wandb = _library("wandb", "wandb")
    identity = workdir / "wandb_id.txt"  # so that a continued run continues its curves
    if not identity.exists():
        write_whole(identity, uuid.uuid4().hex[:8])
    run = wandb.init(
        project=job.train.project,
        id=identity.read_text().strip(),
        resume="allow",
        dir=str(workdir),
        name=safe_name(workdir.resolve().name),
        config=to_dict(job),
    )

    def write(row: dict[str, Any]) -> None:
        run.log(dict(_numbers(row)), step=row["step"])

    try:
        yield write
    finally:
        run.finish()


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"train.log_to: {module} is not installed: {how_to_install(extra)}") from None


def _numbers(row: dict[str, Any]) -> Sequence[tuple[str, float]]:
    return [(name, float(value)) for name, value in row.items() if name != "step" and value is not None]
