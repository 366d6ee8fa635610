"""Mem-0 on one Mn task, whose episodes have several subtasks; the classifier learns where each ends.

The memory is emptied after the end of a subtask, as `model.memory.memory_accumulation` says.
"""

from ml_collections import ConfigDict

from mem0_jax.configs import m1_mix


def get_config() -> ConfigDict:
    """Settings of `mem0-jax train`."""
    config = m1_mix.get_config()
    config.data.datasets = ("data/press_button",)
    config.train.steps = 30000
    return config
