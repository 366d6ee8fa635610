"""What planners are taught: the answers to questions; `planner.merge` makes a bundle of such a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from mem0_jax.config import to_dict
from mem0_jax.disk import write_whole
from mem0_jax.errors import UserError
from mem0_jax.family import ChatFamily, chat_family_of, family_of
from mem0_jax.planner.job import PlannerJob
from mem0_jax.planner.policy import PlannerPolicy
from mem0_jax.planner.questions import Question, read_questions
from mem0_jax.planner.rows import Encoded, Encoder, RowSource, grids_of, word_tokenizer
from mem0_jax.policies.base import Params, Trainable
from mem0_jax.policies.bundle import load_backbone, read_description
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.episodes import told_to_the_user
from mem0_jax.train.job import WORDS
from mem0_jax.train.log import Sink
from mem0_jax.train.loop import FitResult
from mem0_jax.train.lora import adapted
from mem0_jax.train.run import Prepared, run
from mem0_jax.train.state import TrainState

JOB, TOKENIZER = "job.json", "tokenizer.json"  # in the folder of a run


@dataclass(frozen=True)
class Questions:
    """The questions of a job; see `train.run.Lessons`.

    Attributes:
        job: the settings, its model completed by tokenizer or bundle.
        asked: by folder.
        rows: the same in tokens, once there is a tokenizer.
    """

    job: PlannerJob
    asked: Mapping[Path, list[Question]]
    rows: tuple[Encoded, ...] = ()

    @classmethod
    def read(cls, job: PlannerJob) -> Self:
        """Raises UserError: a folder without questions."""
        with told_to_the_user():
            return cls(job, {Path(folder): read_questions(folder) for folder in job.data.questions})

    def words(self) -> Tokenizer:
        """See `Lessons`, as of all below."""
        questions = [question for asked in self.asked.values() for question in asked]
        return word_tokenizer(questions, chat_family_of(self.job.model.backbone).marks)

    def completed(self, tokenizer: Tokenizer) -> Self:
        """The model of the job's bundle, or with the vocabulary and ids of the tokenizer, and the precision's dtype."""
        job, backbone = self.job, self.job.model.backbone
        if job.init_from:
            backbone = read_description(Path(job.init_from).absolute())[0]
            if not isinstance(family_of(backbone), ChatFamily):
                raise UserError(f"{job.init_from} is a policy: a planner starts from a bundle of a backbone alone")
        family = chat_family_of(backbone)
        if not job.init_from:
            size = tokenizer.get_vocab_size() if job.data.tokenizer == WORDS else None
            backbone = family.completed(backbone, tokenizer, size)
        family.check_tokenizer(tokenizer, backbone)
        model = dataclasses.replace(job.model, backbone=backbone, dtype=job.compute_dtype)
        encoder = Encoder(tokenizer, backbone, job.data.images, job.data.cutoff)
        rows = tuple(row for folder, asked in self.asked.items() for row in encoder.rows(folder, asked))
        return dataclasses.replace(self, job=dataclasses.replace(job, model=model), rows=rows)

    def policy(self) -> Trainable:
        return PlannerPolicy(self.job.model, grids_of(self.rows))

    def config(self) -> TrainConfig:
        return self.job.train_config(len(self.rows))

    def source(self, first: int, count: int) -> RowSource:
        data = self.job.data
        return RowSource(
            self.rows,
            self.job.model.backbone,
            data.images,
            lanes=self.config().lanes,
            parts=self.job.train.accumulate,
            seed=data.seed,
            cache_bytes=int(data.cache_gib * 2**30),
            first_lane=first,
            num_local_lanes=count,
        )

    def extras(self, prepared: Prepared) -> dict[str, Any]:
        return {"settings": self.job.settings()}

    def initial(self, key: jax.Array, shardings: Any) -> Params:
        frozen = self.job.lora and self.config().bfloat16
        return load_backbone(self.job.init_from, jnp.bfloat16 if frozen else jnp.float32, shardings).params

    def leave(self, prepared: Prepared, workdir: Path, state: TrainState | None) -> None:
        """All that `merge` needs with the checkpoints: the completed settings and the tokenizer; what a run may change
        when it continues is written again at its end."""
        if jax.process_index() or (state is None and (workdir / JOB).exists()):
            return
        description = {"rows": len(self.rows), "job": to_dict(self.job)}
        write_whole(workdir / TOKENIZER, prepared.tokenizer.to_str(pretty=True))
        write_whole(workdir / JOB, json.dumps(description, indent=1))


def make_policy(job: PlannerJob) -> Trainable:
    """What a completed job trains, for no images yet."""
    return adapted(PlannerPolicy(job.model, ()), job.lora)


def train_planner(job: PlannerJob, workdir: Path, progress: Sink | None = None) -> FitResult:
    """See `train.run.run`; the folder holds all that `merge` needs."""
    return run(job, workdir, progress, Questions.read)
