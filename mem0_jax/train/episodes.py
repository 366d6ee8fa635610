"""What policies are taught: the episodes of datasets, as the deployed policy will see them."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import jax
import numpy as np
from tokenizers import Tokenizer

from mem0_jax.config import to_dict
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.mixture import Mixture
from mem0_jax.data.normalize import NormStats
from mem0_jax.data.packed import open_dataset
from mem0_jax.data.pictures import EpisodeDataset
from mem0_jax.data.robot import RMBENCH, Robot, matching, rmbench, robot_of
from mem0_jax.data.subset import hold_out
from mem0_jax.data.transforms import ColorJitter
from mem0_jax.disk import disk_told, write_whole
from mem0_jax.errors import UserError
from mem0_jax.family import PolicyFamily, family_of
from mem0_jax.policies.base import Params, Policy
from mem0_jax.policies.bundle import Bundle, load_backbone, load_bundle, read_description, save_bundle
from mem0_jax.policies.inputs import Camera, Inputs, check_widths, make_source
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.flops import training_flops
from mem0_jax.train.from_bundle import check_continues, load_optimizer
from mem0_jax.train.job import WORDS, DataSettings, Job, job_settings
from mem0_jax.train.state import TrainState, blueprint
from mem0_jax.train.validation import Validation

if TYPE_CHECKING:
    from mem0_jax.train.run import Prepared

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episodes:
    """The episodes of a job; see `train.run.Lessons`.

    Attributes:
        job: the settings, its model completed by the tokenizer.
        training: the episodes to train on.
        held_out: those to validate on, by dataset.
        stats, inputs, processor: of the bundle to be.
        made: what the bundle tells of how it came to be.
    """

    job: Job
    training: EpisodeDataset
    held_out: tuple[EpisodeDataset, ...]
    stats: NormStats
    inputs: Inputs
    processor: Any = None
    made: Mapping[str, Any] = field(default_factory=lambda: {"made_by": "mem0-jax train"})

    @classmethod
    def read(cls, job: Job) -> Self:
        """Raises UserError: datasets or statistics that are missing or do not fit together."""
        data = job.data
        with told_to_the_user():
            opened = [open_dataset(folder) for folder in data.datasets]
            split = [hold_out(dataset, data.held_out, data.seed) for dataset in opened]
            training, held_out = ([pair[i] for pair in split] for i in (0, 1))
            mixed = Mixture(training, data.weights or None) if len(training) > 1 else training[0]
            robot = robot_of(mixed)
            check_offers(opened, data)
            inputs, spec = make_inputs(data, robot), job.family.policy(job.model).spec
            check_widths(inputs.robot, spec)
            if data.norm_stats:
                stats = NormStats.load(data.norm_stats)
            else:
                stats = NormStats.from_datasets(cast(Any, training), inputs.robot, spec.horizon)
        return cls(job, mixed, tuple(held_out), stats, inputs)

    def words(self) -> Tokenizer:
        """See `Lessons`, as of all below."""
        with told_to_the_user():
            return self.job.family.word_tokenizer(self.training.texts(self.job.data.text)[1])

    def completed(self, tokenizer: Tokenizer) -> Self:
        """The model with the tokenizer's ids, the vocabulary that goes with it, and the precision's dtype."""
        job, family = self.job, self.job.family
        vocabulary = family.vocabulary(job.model)
        if job.init_from:
            found = read_description(Path(job.init_from).absolute())[0]
            check_start(job, found)
            vocabulary = family_of(found).vocabulary(found)
        elif job.data.tokenizer == WORDS:
            vocabulary = tokenizer.get_vocab_size()
        with told_to_the_user():
            model = family.completed(job.model, tokenizer, vocabulary, job.compute_dtype)
        processor = family.processor(tokenizer, model, self.inputs)
        self._check_texts(processor)
        return dataclasses.replace(self, job=dataclasses.replace(job, model=model), processor=processor)

    def _check_texts(self, processor: Any) -> None:
        """Raises UserError: an instruction that cannot be a prompt."""
        with told_to_the_user():
            ids, texts = self.training.texts(self.job.data.text)
        for number in np.unique(ids):
            try:
                processor.prompt(texts[number])
            except UserError as error:
                fix = "set --config.data.max_length to that or more" if "max_length" in str(error) else "mend its text"
                raise UserError(f"{error}; {fix}") from error

    def policy(self) -> Policy:
        return self.job.family.policy(self.job.model)

    def config(self) -> TrainConfig:
        return self.job.train_config()

    def settings(self) -> dict[str, Any]:
        """What must not change when a run continues, besides the trainer's own settings."""
        return job_settings(self.job) | {"statistics": self.stats.to_json()}

    def extras(self, prepared: Prepared) -> dict[str, Any]:
        job, policy, config = self.job, prepared.policy, prepared.config
        if job.init_optimizer:
            plan = blueprint(policy, config)
            check_continues(job.init_from, config.optimizer, jax.eval_shape(plan.optimizer.init, plan.params))
        trained_on, held_out = len(self.training.episodes), sum(len(part.episodes) for part in self.held_out)
        _log.info(
            "%d episodes to train on, %d held out; steps of %d lanes x %d frames; hardware %s",
            *(trained_on, held_out, job.lanes, job.frames, job.hardware),
        )
        return {
            "optimizer": partial(load_optimizer, job.init_from) if job.init_optimizer else None,
            "validate": Validation(self, policy, prepared.layout) if config.validate_every else None,
            "settings": self.settings(),
            "flops": partial(training_flops, job.model, job.data.max_length),
        }

    def initial(self, key: jax.Array, shardings: Any) -> Params:
        """A policy's parameters are taken whole; a backbone alone gets fresh heads and memory."""
        folder, family = Path(self.job.init_from).absolute(), self.job.family
        if isinstance(family_of(read_description(folder)[0]), PolicyFamily):
            return load_bundle(folder, shardings=shardings).params
        own = family.backbone
        heads = jax.jit(lambda key: {k: v for k, v in family.init(self.job.model)(key).items() if k != own})
        inner = shardings and {path.removeprefix(f"{own}/"): sharding for path, sharding in shardings.items()}
        return heads(key) | {own: load_backbone(folder, shardings=inner).params}

    def bundle(self, params: Params) -> Bundle:
        """The policy of plain parameters with all it needs."""
        job, data = self.job, self.job.data
        made = {"steps": job.train.steps, "init_from": job.init_from, "datasets": list(data.datasets)}
        return Bundle(job.model, params, self.stats, self.processor.tokenizer, self.inputs, {**self.made, **made})

    def folder(self, workdir: Path) -> Path:
        """Where the bundle goes."""
        return workdir / "bundle"

    def leave(self, prepared: Prepared, workdir: Path, state: TrainState | None) -> None:
        """The bundle, of the moving averages where the job keeps them, and `job.json`, the completed settings."""
        if state is None:
            return
        params, layout = state.averaged_params, prepared.layout
        bundle = self.bundle(prepared.plain(params if layout is None else layout.whole(params)))
        folder = self.folder(workdir)
        if jax.process_index() == 0:
            with disk_told(folder, "the run is saved, and the same command writes the bundle"):
                write_whole(workdir / "job.json", json.dumps(to_dict(self.job), indent=1))
                save_bundle(bundle, folder)

    def source(self, first: int, count: int) -> LaneSource:
        job, data = self.job, self.job.data
        return self._source(
            self.training,
            lanes=job.lanes,
            frames=job.frames,
            cache_frames=data.cache_gib > 0,
            cache_bytes=int(data.cache_gib * 2**30),
            jitter=ColorJitter(data.jitter, data.jitter, data.jitter) if data.jitter else None,
            first_lane=first,
            num_local_lanes=count,
            schedule=data.schedule,
            workers=data.workers,
            strict=data.strict,
        )

    def held_out_sources(self, lanes: int, frames: int, first: int, count: int) -> list[LaneSource]:
        """The held-out episodes of each dataset, each once in the first passes of its lanes, without jitter.

        Of `lanes` in all, this host plays `count` from `first` on.
        """
        return [
            self._source(dataset, lanes=lanes, frames=frames, first_lane=first, num_local_lanes=count)
            for dataset in self.held_out
        ]

    def _source(self, dataset: EpisodeDataset, **arguments: Any) -> LaneSource:
        with told_to_the_user():
            spec, seed = self.policy().spec, self.job.data.seed
            return make_source(dataset, self.inputs, self.stats, spec, self.processor, seed=seed, **arguments)


def check_start(job: Job, found: Any) -> None:
    """Raises UserError: a bundle of this configuration is neither the policy that is trained nor its backbone."""
    inner = job.family.backbone and family_of(getattr(job.model, job.family.backbone)).name
    name, fitting = family_of(found).name, [known for known in (job.policy, inner) if known]
    if name not in fitting:
        raise UserError(
            f"init_from: {job.init_from} holds a {name}, and a {job.policy} is trained; name a bundle of "
            f"{' or '.join(fitting)}"
        )


def check_offers(datasets: Sequence[Any], data: DataSettings) -> None:
    """Raises UserError: a dataset lacks a camera or a text that is to be trained on."""
    shared = [camera for camera in datasets[0].cameras if all(camera in other.cameras for other in datasets)]
    for dataset in datasets:
        if missing := [camera for camera, _ in data.views if camera not in dataset.cameras]:
            has = f"this dataset has {', '.join(map(repr, dataset.cameras)) or 'none'}"
            fix = f'choose with --config.data.cameras="{tuple(shared[:2])!r}"'
            none = "all datasets need a camera of one name" if len(datasets) > 1 else "a policy needs pictures"
            raise UserError(
                f"{dataset.root}: there is no camera {', '.join(map(repr, missing))}; {has}: {fix if shared else none}"
            )
        if data.text != "task" and data.text not in dataset.features:
            raise UserError(
                f"{dataset.root}: there is no text {data.text!r}; --config.data.text=task takes those of its tasks"
            )


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
