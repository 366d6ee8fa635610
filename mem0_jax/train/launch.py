"""A training job from its settings to its bundle."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from mem0_jax.config import to_dict
from mem0_jax.data.pipeline import make_loader
from mem0_jax.disk import disk_told, write_whole
from mem0_jax.distributed.layout import Layout
from mem0_jax.family import PolicyFamily, family_of, policy_family_of
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.policies.base import Params
from mem0_jax.policies.bundle import load_backbone, load_bundle, read_description, save_bundle
from mem0_jax.train.flops import training_flops
from mem0_jax.train.from_bundle import load_optimizer
from mem0_jax.train.job import Job, job_settings
from mem0_jax.train.log import Sink
from mem0_jax.train.loop import Extras, FitResult, fit
from mem0_jax.train.lora import LoraPolicy
from mem0_jax.train.prepare import Prepared, lane_source, make_run_layout, prepare
from mem0_jax.train.sinks import open_sinks
from mem0_jax.train.validation import Validation
from mem0_jax.train.workdir import only_run

_log = logging.getLogger(__name__)


@same_numbers
def train(job: Job, workdir: Path, progress: Sink | None = None) -> tuple[FitResult, Path]:
    """Train in `workdir`, or continue the run it holds; returns what `fit` does and the bundle's folder.

    The bundle, `workdir/bundle`, holds the moving averages where the job keeps them. The settings, completed by what
    tokenizer and bundle decide, are in `workdir/job.json`.

    Raises:
        UserError: see `prepare` and `fit`.
    """
    prepared = prepare(job)
    job, config = prepared.job, prepared.job.train_config()
    layout = make_run_layout(prepared)
    source = lane_source(prepared, layout)
    trained_on, held_out = len(prepared.training.episodes), sum(len(part.episodes) for part in prepared.held_out)
    _log.info(
        "%d episodes to train on, %d held out; steps of %d lanes x %d frames; hardware %s",
        *(trained_on, held_out, job.lanes, job.frames, job.hardware),
    )
    with only_run(workdir), open_sinks(job, workdir) as sinks:
        extras = Extras(
            initial=initial_params(prepared, layout) if job.init_from else None,
            optimizer=partial(load_optimizer, job.init_from) if job.init_optimizer else None,
            validate=Validation(prepared, layout) if config.validate_every else None,
            settings=job_settings(job) | {"statistics": prepared.stats.to_json()},
            flops=lambda trained: training_flops(job.model, job.data.max_length, trained),
            sinks=sinks,
            layout=layout,
        )
        threads = None if job.data.threads < 0 else job.data.threads
        with make_loader(source, threads=threads, prefetch=job.data.prefetch) as loader:
            result = fit(prepared.policy, lambda: loader, config, workdir, progress, extras)
        _write_bundle(prepared, layout, result, workdir)
    return result, workdir / "bundle"


def _write_bundle(prepared: Prepared, layout: Layout | None, result: FitResult, workdir: Path) -> None:
    job, params = prepared.job, result.state.averaged_params
    made = {"made_by": "mem0-jax train", "steps": job.train_config().steps, "init_from": job.init_from}
    params = params if layout is None else layout.whole(params)
    bundle = prepared.bundle(params, made | {"datasets": list(job.data.datasets)})
    if jax.process_index() == 0:
        with disk_told(workdir / "bundle", "the run is saved, and the same command writes the bundle"):
            write_whole(workdir / "job.json", json.dumps(to_dict(job), indent=1))
            save_bundle(bundle, workdir / "bundle")


def initial_params(prepared: Prepared, layout: Layout | None = None) -> Callable[[jax.Array], Params]:
    """Reads the parameters of the bundle a job starts from, when they are asked for, into the shards of `layout`.

    A policy's are taken whole; a backbone alone gets fresh heads and memory. Low-rank factors are fresh.
    """
    job, policy = prepared.job, prepared.policy
    where = None if layout is None else layout.params()

    def initial(key: jax.Array) -> Params:
        folder = Path(job.init_from).absolute()
        if isinstance(family_of(read_description(folder)[0]), PolicyFamily):
            params = load_bundle(folder, shardings=where).params
        else:
            own = policy_family_of(job.model)
            heads = jax.jit(lambda key: {k: v for k, v in own.init(job.model)(key).items() if k != own.backbone})
            inner = where and {path.removeprefix(f"{own.backbone}/"): sharding for path, sharding in where.items()}
            params = heads(key) | {own.backbone: load_backbone(folder, shardings=inner).params}
        return policy.adapt(params, key) if isinstance(policy, LoraPolicy) else params

    return initial
