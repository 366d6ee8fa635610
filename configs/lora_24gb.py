"""Fine-tuning on one GPU of 24 GB: low-rank factors of the backbone's text layers, everything else trained whole.

Frozen weights are in bfloat16: parameters take 4.9 GiB, the optimizer 1.9, gradients 0.9; the rest is for activations.
A step of 56 frames is computed in 7 parts of one frame of 8 lanes.
"""

from ml_collections import ConfigDict

from mem0_jax.configs import m1_mix


def get_config() -> ConfigDict:
    """Settings of `mem0-jax train`."""
    config = m1_mix.get_config()
    config.init_from = "checkpoints/m1_mix"
    config.hardware = "gpu1"
    config.data.datasets = ("data/put_back_block",)
    config.train.preset = "lora"
    config.train.learning_rates.backbone = 1e-4
    config.train.floors.backbone = 5e-6
    config.train.batch_size = 56
    config.train.accumulate = 7
    config.train.steps = 10000
    return config
