"""Training: settings, optimizer, step, loop, checkpoints and log; all but the settings are imported by module."""

from mem0_jax.train.config import OptimizerConfig, TrainConfig

__all__ = ["OptimizerConfig", "TrainConfig"]
