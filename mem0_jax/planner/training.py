"""A planner's training job from its settings to its last checkpoint; `planner.merge` makes a bundle of that."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from mem0_jax.backbones.chat import Grid
from mem0_jax.config import to_dict
from mem0_jax.data.pipeline import make_loader
from mem0_jax.disk import write_whole
from mem0_jax.distributed.hardware import HARDWARE
from mem0_jax.distributed.layout import Layout, make_layout
from mem0_jax.distributed.mesh import make_mesh, parse_mesh
from mem0_jax.errors import UserError
from mem0_jax.family import ChatFamily, chat_family_of, family_of
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.planner.job import PlannerJob
from mem0_jax.planner.policy import PlannerPolicy
from mem0_jax.planner.questions import Question, read_questions
from mem0_jax.planner.rows import Encoded, Encoder, RowSource, grids_of, word_tokenizer
from mem0_jax.policies.base import Params, Trainable
from mem0_jax.policies.bundle import load_backbone, read_description
from mem0_jax.tokenizer import load_tokenizer
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.job import WORDS
from mem0_jax.train.log import Sink
from mem0_jax.train.loop import Extras, FitResult, fit
from mem0_jax.train.lora import LoraPolicy
from mem0_jax.train.prepare import told_to_the_user
from mem0_jax.train.sinks import open_sinks
from mem0_jax.train.state import create_params
from mem0_jax.train.workdir import only_run

JOB, TOKENIZER = "job.json", "tokenizer.json"  # in the folder of a run


@dataclass(frozen=True)
class PreparedPlanner:
    """A job whose inputs were read and found to fit together.

    Attributes:
        job: the settings, its model completed by tokenizer or bundle.
        policy: what is trained, with low-rank factors where the job asks for them.
        config: the trainer's settings.
        rows: to train on, in tokens.
        tokenizer: of the planner to be.
        layout: where the run lies on the mesh of its hardware; None on one device.
    """

    job: PlannerJob
    policy: Trainable
    config: TrainConfig
    rows: list[Encoded]
    tokenizer: Tokenizer
    layout: Layout | None

    def source(self) -> RowSource:
        """This host's lanes of the batches."""
        data, lanes = self.job.data, self.config.lanes
        first, count = (0, lanes) if self.layout is None else self.layout.local_lanes(lanes)
        return RowSource(
            self.rows,
            self.job.model.backbone,
            data.images,
            lanes=lanes,
            parts=self.job.train.accumulate,
            seed=data.seed,
            cache_bytes=int(data.cache_gib * 2**30),
            first_lane=first,
            num_local_lanes=count,
        )


def prepare(job: PlannerJob) -> PreparedPlanner:
    """Read everything a job names; nothing is written.

    Raises:
        UserError: rows, bundle, tokenizer or devices that are missing or do not fit together.
    """
    devices = HARDWARE[job.hardware]["devices"]
    if devices != jax.device_count():
        raise UserError(
            f"hardware {job.hardware!r} has {devices} devices, there are {jax.device_count()} here; choose another "
            f"with --config.hardware, one of {', '.join(HARDWARE)}"
        )
    data = job.data
    with told_to_the_user():
        questions = {Path(folder): read_questions(folder) for folder in data.questions}
    tokenizer = _tokenizer(job, [question for asked in questions.values() for question in asked])
    job = _completed(job, tokenizer)
    encoder = Encoder(tokenizer, job.model.backbone, data.images, data.cutoff)
    rows = [row for folder, asked in questions.items() for row in encoder.rows(folder, asked)]
    policy, config = make_policy(job, grids_of(rows)), job.train_config(len(rows))
    layout = None
    if devices > 1:
        abstract = jax.eval_shape(lambda: create_params(policy, config.seed, config.bfloat16))
        layout = make_layout(abstract, policy.logical_axes, make_mesh(parse_mesh(HARDWARE[job.hardware]["mesh"])))
    return PreparedPlanner(job, policy, config, rows, tokenizer, layout)


def make_policy(job: PlannerJob, grids: tuple[Grid, ...] = ()) -> Trainable:
    """What a completed job trains, for images of the sizes `grids`."""
    policy = PlannerPolicy(job.model, grids)
    return LoraPolicy(policy, job.lora) if job.lora else policy


def _tokenizer(job: PlannerJob, questions: Sequence[Question]) -> Tokenizer:
    if job.data.tokenizer == WORDS:
        return word_tokenizer(questions, chat_family_of(job.model.backbone).marks)
    return load_tokenizer(job.data.tokenizer or Path(job.init_from) / TOKENIZER)


def _completed(job: PlannerJob, tokenizer: Tokenizer) -> PlannerJob:
    """The job with the model of its bundle, or the vocabulary and ids of its tokenizer, and its precision's dtype."""
    backbone = job.model.backbone
    if job.init_from:
        backbone = read_description(Path(job.init_from).absolute())[0]
        if not isinstance(family_of(backbone), ChatFamily):
            raise UserError(f"{job.init_from} is a policy: a planner starts from a bundle of a backbone alone")
    family = chat_family_of(backbone)
    if not job.init_from:
        size = tokenizer.get_vocab_size() if job.data.tokenizer == WORDS else None
        backbone = family.completed(backbone, tokenizer, size)
    family.check_tokenizer(tokenizer, backbone)
    return dataclasses.replace(job, model=dataclasses.replace(job.model, backbone=backbone, dtype=job.compute_dtype))


@same_numbers
def train_planner(job: PlannerJob, workdir: Path, progress: Sink | None = None) -> FitResult:
    """Train in `workdir`, or continue the run it holds; see `fit` for what it writes and returns.

    Besides: `job.json`, the completed settings, and `tokenizer.json`; with the checkpoints, all that `merge` needs.

    Raises:
        UserError: see `prepare` and `fit`.
    """
    prepared = prepare(job)
    job = prepared.job
    with only_run(workdir), open_sinks(job, workdir) as sinks:
        extras = Extras(
            initial=_initial_params(prepared) if job.init_from else None,
            settings=job.settings(),
            sinks=sinks,
            layout=prepared.layout,
        )
        if not (workdir / JOB).exists():
            _describe(prepared, workdir)
        threads = None if job.data.threads < 0 else job.data.threads
        with make_loader(prepared.source(), threads=threads, prefetch=job.data.prefetch) as loader:
            result = fit(prepared.policy, lambda: loader, prepared.config, workdir, progress, extras)
        _describe(prepared, workdir)  # what a run may change when it continues
    return result


def _describe(prepared: PreparedPlanner, workdir: Path) -> None:
    """Writes what `merge` needs besides the checkpoints."""
    if jax.process_index():
        return
    description = {"rows": len(prepared.rows), "job": to_dict(prepared.job)}
    write_whole(workdir / TOKENIZER, prepared.tokenizer.to_str(pretty=True))
    write_whole(workdir / JOB, json.dumps(description, indent=1))


def _initial_params(prepared: PreparedPlanner) -> Callable[[jax.Array], Params]:
    """Reads the parameters of the bundle a job starts from, when asked, into their shards; low-rank factors are new."""
    policy, layout = prepared.policy, prepared.layout

    def initial(key: jax.Array) -> Params:
        where = None if layout is None else layout.params()
        dtype = jnp.bfloat16 if prepared.config.bfloat16 and isinstance(policy, LoraPolicy) else jnp.float32
        params = load_backbone(prepared.job.init_from, dtype, where).params
        return policy.adapt(params, key) if isinstance(policy, LoraPolicy) else params

    return initial
