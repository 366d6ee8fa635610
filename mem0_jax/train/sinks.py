"""Where rows of the log go besides its own files: TensorBoard and Weights & Biases, imported only when asked for.

A row is a dict with `step`; every number of it becomes a scalar at that step.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from mem0_jax.config import to_dict
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
    writer = _library("tensorboardX", "tensorboard").SummaryWriter(str(workdir / "tensorboard"))

    def write(row: dict[str, Any]) -> None:
        for name, value in _numbers(row):
            writer.add_scalar(name, value, row["step"])

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _wandb(job: Any, workdir: Path) -> Iterator[Sink]:
    wandb = _library("wandb", "wandb")
    identity = workdir / "wandb_id.txt"  # so that a continued run continues its curves
    if not identity.exists():
        identity.write_text(uuid.uuid4().hex[:8])
    run = wandb.init(
        project=job.train.project,
        id=identity.read_text().strip(),
        resume="allow",
        dir=str(workdir),
        name=workdir.resolve().name,
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
