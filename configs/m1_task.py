"""Mem-0 on one M1 task: 30 000 steps, otherwise `m1_mix`. Name the task's dataset:

mem0-jax train --config=m1_task --workdir=runs/put_back_block --config.data.datasets="('data/put_back_block',)"
"""

from ml_collections import ConfigDict

from mem0_jax.configs import m1_mix


def get_config() -> ConfigDict:
    """Settings of `mem0-jax train`."""
    config = m1_mix.get_config()
    config.data.datasets = ("data/put_back_block",)
    config.train.steps = 30000
    return config
