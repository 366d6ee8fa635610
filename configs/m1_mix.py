"""Mem-0 on the five M1 tasks together: the reference's recipe (RMBench, policy/Mem-0), 448 frames a step.

Start from a converted Qwen3-VL-2B-Instruct, or from a converted checkpoint to fine-tune:

    mem0-jax train --config=configs/m1_mix.py --workdir=runs/m1_mix --config.hardware=gpu8
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mem0_jax.train.job import DataSettings, Job


def get_config() -> ConfigDict:
    """50 000 steps, 8 lanes of 56 consecutive frames."""
    data = DataSettings(datasets=("data/m1_mix",), held_out=5)
    job = Job(data, init_from="checkpoints/qwen3_vl_2b", hardware="gpu8", policy="mem0")
    config = ConfigDict(asdict(job))
    config.model.remat = True
    config.train.steps = 50000
    config.train.ema_decay = 0.0
    config.train.validate_every = 1000
    config.train.keep_best = 1
    return config
