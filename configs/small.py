"""A Mem-0 of the demo's size from random weights, for a CPU: to try a dataset, or the trainer itself.

mem0-jax train --config=small --workdir=runs/small --config.data.datasets="('runs/demo/dataset',)"
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mem0_jax.config import from_dict
from mem0_jax.configs import demo
from mem0_jax.family import policy_family
from mem0_jax.train.job import DataSettings, Job


def get_config() -> ConfigDict:
    """The demo's model; its batches, 16 lanes of one frame, and learning rates."""
    settings = demo.get_config()
    data = DataSettings(
        datasets=("runs/demo/dataset",),
        camera_size=tuple(settings.data.camera_size),
        deploy_resample="bilinear",
        tokenizer="words",
        max_length=settings.data.max_length,
        jitter=settings.data.jitter,
        held_out=8,
        cache_gib=2.0,
        threads=1,
        prefetch=4,
    )
    model = from_dict(policy_family(settings.policy).config, settings.model.to_dict())
    config = ConfigDict(asdict(Job(data, model, policy=settings.policy)))
    train, rate = config.train, settings.train.learning_rate
    for group in train.learning_rates:
        train.learning_rates[group], train.floors[group] = rate, rate * settings.train.floor
    train.precision = "float32"
    train.batch_size = train.lanes = settings.train.lanes
    train.steps = settings.train.steps
    train.warmup_ratio = settings.train.warmup_steps / settings.train.steps
    train.b2 = settings.train.b2
    train.log_every, train.save_every, train.validate_every = 50, 1000, 1000
    return config
