"""The inputs of a training job: datasets, statistics, tokenizer, model, found to fit together before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
from tokenizers import Tokenizer

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.normalize import NormStats
from mem0_jax.data.packed import open_dataset
from mem0_jax.data.pictures import EpisodeDataset
from mem0_jax.data.robot import RMBENCH, Robot, matching, rmbench, robot_of
from mem0_jax.data.subset import hold_out
from mem0_jax.data.transforms import ColorJitter
from mem0_jax.distributed.hardware import HARDWARE
from mem0_jax.distributed.layout import Layout, make_layout
from mem0_jax.distributed.mesh import make_mesh, parse_mesh
from mem0_jax.errors import UserError
from mem0_jax.family import family_of, policy_family_of
from mem0_jax.policies.base import Params, Trainable
from mem0_jax.policies.bundle import Bundle, read_description
from mem0_jax.policies.inputs import Camera, Inputs, check_widths, make_source
from mem0_jax.tokenizer import load_tokenizer
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.from_bundle import check_continues
from mem0_jax.train.job import WORDS, DataSettings, Job
from mem0_jax.train.lora import LoraPolicy
from mem0_jax.train.optim import make_optimizer
from mem0_jax.train.state import create_params


@dataclass(frozen=True)
class Prepared:
    """A job whose inputs were read and found to fit together.

    Attributes:
        job: the settings, its model completed by the tokenizer.
        policy: what is trained, with low-rank factors where the job asks for them.
        training: the episodes to train on.
        held_out: those to validate on, by dataset.
        stats, processor, inputs: of the bundle to be.
    """

    job: Job
    policy: Trainable
    training: EpisodeDataset
    held_out: tuple[EpisodeDataset, ...]
    stats: NormStats
    processor: Any
    inputs: Inputs

    def bundle(self, params: Params, provenance: dict[str, Any]) -> Bundle:
        """The plain policy of trained parameters, low-rank factors merged, with all it needs."""
        if isinstance(self.policy, LoraPolicy):
            params = self.policy.merge(params)
        return Bundle(self.job.model, params, self.stats, self.processor.tokenizer, self.inputs, provenance)


def prepare(job: Job) -> Prepared:
    """Read everything a job names; nothing is written.

    Raises:
        UserError: datasets, bundle, tokenizer, statistics or devices that are missing or do not fit together.
    """
    devices = HARDWARE[job.hardware]["devices"]
    if devices != jax.device_count():
        raise UserError(
            f"hardware {job.hardware!r} has {devices} devices, there are {jax.device_count()} here; choose another "
            f"with --config.hardware, one of {', '.join(HARDWARE)}"
        )
    data = job.data
    with told_to_the_user():
        split = [hold_out(open_dataset(folder), data.held_out, data.seed) for folder in data.datasets]
        training, held_out = ([pair[i] for pair in split] for i in (0, 1))
        mixed = Mixture(training, data.weights or None) if len(training) > 1 else training[0]
        inputs = make_inputs(data, robot_of(mixed))
        spec = policy_family_of(job.model).policy(job.model).spec
        check_widths(inputs.robot, spec)
        stats = (
            NormStats.load(data.norm_stats)
            if data.norm_stats
            else NormStats.from_datasets(cast(Any, training), inputs.robot, spec.horizon)
        )
        tokenizer = _tokenizer(job, mixed)
        job = dataclasses.replace(job, model=_completed_model(job, tokenizer))
    family = policy_family_of(job.model)
    policy: Trainable = family.policy(job.model)
    policy = LoraPolicy(policy, job.lora) if job.lora else policy
    if job.init_optimizer:
        config = job.train_config()
        params = _abstract_params(policy, config)
        optimizer = make_optimizer(
            config.optimizer, policy.learning_rate_groups, policy.no_gradient, config.freeze, params
        )
        check_continues(job.init_from, config.optimizer, jax.eval_shape(optimizer.init, params))
    processor = family.processor(tokenizer, job.model, inputs)
    return Prepared(job, policy, mixed, tuple(held_out), stats, processor, inputs)


def make_inputs(data: DataSettings, robot: Robot) -> Inputs:
    """The chain of transforms that settings ask for, of a dataset's robot.

    Raises:
        ValueError: names of numbers that the robot has not.
    """
    robot = rmbench(data.normalization) if robot == RMBENCH else robot
    vectors = []
    for kind in ("state", "action"):
        vector = getattr(robot, kind)
        known = (*robot.state.names, *robot.action.names)
        raw, periodic = (
            tuple(name for name in matching(chosen, known, what) if name in vector.names)
            for what, chosen in (("raw", data.raw), ("periodic", data.periodic))
        )
        raw = raw if data.raw else vector.raw
        vectors.append(dataclasses.replace(vector, raw=raw, periodic=periodic, period=data.period))
    shared = [name for name in robot.action.names if name in robot.state.names]
    return Inputs(
        cameras=tuple(Camera(feature, size) for feature, size in data.views),
        resample=data.resample,
        deploy_resample=data.deploy_resample,
        text=data.text,
        max_length=data.max_length,
        normalization=data.normalization,
        clip=data.clip,
        robot=Robot(*vectors, delta=matching(data.delta, shared, "delta")),
    )


@contextmanager
def told_to_the_user() -> Iterator[None]:
    """The data's own errors, which name the file and the fix, as errors that the command line prints."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from error


def _tokenizer(job: Job, dataset: EpisodeDataset) -> Tokenizer:
    if job.data.tokenizer == WORDS:
        return policy_family_of(job.model).word_tokenizer(dataset.texts(job.data.text)[1])
    return load_tokenizer(job.data.tokenizer or Path(job.init_from) / "tokenizer.json")


def _completed_model(job: Job, tokenizer: Tokenizer) -> Any:
    """The model with the tokenizer's ids, the vocabulary that goes with it, and the dtype of the job's precision."""
    family = policy_family_of(job.model)
    vocabulary = family.vocabulary(job.model)
    if job.init_from:
        found = read_description(Path(job.init_from).absolute())[0]
        vocabulary = family_of(found).vocabulary(found)
    elif job.data.tokenizer == WORDS:
        vocabulary = tokenizer.get_vocab_size()
    return family.completed(job.model, tokenizer, vocabulary, job.compute_dtype)


def _abstract_params(policy: Trainable, config: TrainConfig) -> Params:
    return jax.eval_shape(lambda: create_params(policy, config.seed, config.bfloat16))


def make_run_layout(prepared: Prepared) -> Layout | None:
    """Where the run lies on the mesh of its hardware; None on one device."""
    job = prepared.job
    if jax.device_count() == 1:
        return None
    abstract = _abstract_params(prepared.policy, job.train_config())
    mesh = make_mesh(parse_mesh(HARDWARE[job.hardware]["mesh"]))
    return make_layout(abstract, prepared.policy.logical_axes, mesh)


def lane_source(prepared: Prepared, layout: Layout | None) -> LaneSource:
    """This host's lanes of the training episodes."""
    job, data = prepared.job, prepared.job.data
    first, count = (0, job.lanes) if layout is None else layout.local_lanes(job.lanes)
    return _source(
        prepared,
        prepared.training,
        lanes=job.lanes,
        frames=job.frames,
        seed=data.seed,
        cache_frames=data.cache_gib > 0,
        cache_bytes=int(data.cache_gib * 2**30),
        jitter=ColorJitter(data.jitter, data.jitter, data.jitter) if data.jitter else None,
        first_lane=first,
        num_local_lanes=count,
        schedule=data.schedule,
        workers=data.workers,
        strict=data.strict,
    )


def held_out_sources(prepared: Prepared, lanes: int, frames: int, first: int, count: int) -> list[LaneSource]:
    """The held-out episodes of each dataset, each once in the first passes of its lanes, without jitter.

    Of `lanes` in all, this host plays `count` from `first` on.
    """
    seed = prepared.job.data.seed
    return [
        _source(prepared, dataset, lanes=lanes, frames=frames, seed=seed, first_lane=first, num_local_lanes=count)
        for dataset in prepared.held_out
    ]


def _source(prepared: Prepared, dataset: EpisodeDataset, **arguments: Any) -> LaneSource:
    with told_to_the_user():
        spec = policy_family_of(prepared.job.model).policy(prepared.job.model).spec
        return make_source(dataset, prepared.inputs, prepared.stats, spec, prepared.processor, **arguments)
