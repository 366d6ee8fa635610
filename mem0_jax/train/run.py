"""The story of a training run, from its settings to what it leaves behind; policies, planners and the demo share it.

What differs between them, and no more, is said by `Lessons`: `train.episodes` for policies, `planner.training` for
planners.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import jax
from tokenizers import Tokenizer

from mem0_jax.data.pipeline import Source, make_loader
from mem0_jax.distributed.hardware import FIRST, HARDWARE
from mem0_jax.distributed.layout import Layout, make_layout
from mem0_jax.distributed.mesh import make_mesh, parse_mesh
from mem0_jax.errors import UserError
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.policies.base import Params, Trainable
from mem0_jax.tokenizer import load_tokenizer
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.episodes import Episodes
from mem0_jax.train.job import WORDS
from mem0_jax.train.log import Sink
from mem0_jax.train.loop import Extras, FitResult, fit
from mem0_jax.train.lora import LoraPolicy, adapted
from mem0_jax.train.sinks import open_sinks
from mem0_jax.train.state import TrainState, blueprint
from mem0_jax.train.workdir import only_run

_log = logging.getLogger(__name__)


class Lessons(Protocol):
    """What is taught, and from what: the data of a job. Nothing is written but by `leave`."""

    @property
    def job(self) -> Any:
        """The settings, the model completed once there was a tokenizer."""
        ...

    def words(self) -> Tokenizer:
        """A tokenizer with one token a word of the data's own texts."""
        ...

    def completed(self, tokenizer: Tokenizer) -> Self:
        """With the model's configuration completed by the tokenizer, or the bundle that training starts from."""
        ...

    def policy(self) -> Trainable:
        """What is trained, without low-rank factors."""
        ...

    def config(self) -> TrainConfig:
        """The trainer's settings."""
        ...

    def source(self, first: int, count: int) -> Source:
        """`count` lanes of the batches, from `first` on."""
        ...

    def extras(self, prepared: Prepared) -> dict[str, Any]:
        """Fields of `Extras` besides `initial`, `sinks` and `layout`."""
        ...

    def initial(self, key: jax.Array, shardings: Any) -> Params:
        """Parameters from the bundle of `init_from`."""
        ...

    def leave(self, prepared: Prepared, workdir: Path, state: TrainState | None) -> None:
        """Writes what a run leaves besides logs and checkpoints; before the first step, with None, and at the end."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A job whose inputs were read and found to fit together.

    Attributes:
        lessons: completed.
        policy: what is trained, with low-rank factors where the job asks for them.
        config: the trainer's settings.
        tokenizer: of the model.
        layout: where the run lies on the mesh of its hardware; None on one device.
    """

    lessons: Any
    policy: Trainable
    config: TrainConfig
    tokenizer: Tokenizer
    layout: Layout | None

    @property
    def job(self) -> Any:
        """The completed settings."""
        return self.lessons.job

    def source(self) -> Source:
        """This host's lanes of the batches."""
        lanes = self.config.lanes
        return self.lessons.source(*((0, lanes) if self.layout is None else self.layout.local_lanes(lanes)))

    def plain(self, params: Params) -> Params:
        """Parameters of what is trained alone, low-rank factors merged."""
        return self.policy.merge(params) if isinstance(self.policy, LoraPolicy) else params


@same_numbers
def prepare(job: Any, read: Callable[[Any], Lessons] = Episodes.read) -> Prepared:
    """Read everything a job names; nothing is written.

    Raises:
        UserError: data, bundle, tokenizer, statistics or devices that are missing or do not fit together.
    """
    # 1. The devices that the settings count on are there.
    hardware = HARDWARE[job.hardware]
    if job.hardware != FIRST and hardware["devices"] != jax.device_count():
        raise UserError(
            f"hardware {job.hardware!r} has {hardware['devices']} devices, there are {jax.device_count()} here; choose "
            f"another with --config.hardware, one of {', '.join(HARDWARE)}"
        )
    # 2. The data.
    lessons = read(job)
    # 3. The tokenizer, and the model's configuration, which depends on it.
    named = job.data.tokenizer
    tokenizer = lessons.words() if named == WORDS else load_tokenizer(named or Path(job.init_from) / "tokenizer.json")
    lessons = lessons.completed(tokenizer)
    # 4. What is trained.
    policy, config = adapted(lessons.policy(), job.lora), lessons.config()
    # 5. Where its parameters lie.
    layout = None
    if hardware["devices"] > 1:
        abstract = blueprint(policy, config).params
        layout = make_layout(abstract, policy.logical_axes, make_mesh(parse_mesh(hardware["mesh"])))
    return Prepared(lessons, policy, config, tokenizer, layout)


@same_numbers
def run(
    job: Any, workdir: Path, progress: Sink | None = None, read: Callable[[Any], Lessons] = Episodes.read
) -> FitResult:
    """Train in `workdir`, or continue the run it holds; see `fit` for what it writes and returns.

    Args:
        job: a `Job`, or whatever `read` takes.
        workdir: folder of the run; besides what `fit` writes it holds what `Lessons.leave` does.
        progress: called with every row of the log.
        read: makes the lessons of a job.
    Raises:
        UserError: see `prepare` and `fit`.
    """
    prepared = prepare(job, read)
    lessons, job = prepared.lessons, prepared.job
    # 6. The batches, and what else the lessons know of the run: settings to compare, validation, operations of a frame.
    source, more = prepared.source(), lessons.extras(prepared)
    with only_run(workdir), open_sinks(job, workdir) as sinks:
        # 7. The first parameters, where they are not random: read when they are asked for, into their shards.
        initial = _initial(prepared) if job.init_from else None
        extras = Extras(initial=initial, sinks=sinks, layout=prepared.layout, **more)
        lessons.leave(prepared, workdir, None)
        # 8. The steps.
        threads = None if job.data.threads < 0 else job.data.threads
        with make_loader(source, threads=threads, prefetch=job.data.prefetch) as loader:
            result = fit(prepared.policy, lambda: loader, prepared.config, workdir, progress, extras)
        # 9. What is left: a bundle, or what one is made of.
        lessons.leave(prepared, workdir, result.state)
    return result


def _initial(prepared: Prepared) -> Callable[[jax.Array], Params]:
    policy, layout = prepared.policy, prepared.layout

    def initial(key: jax.Array) -> Params:
        params = prepared.lessons.initial(key, None if layout is None else layout.params())
        return policy.adapt(params, key) if isinstance(policy, LoraPolicy) else params

    return initial
