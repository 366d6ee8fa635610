"""Training: settings, optimizer, step, loop, checkpoints and log. The parts that need JAX are imported by their modules."""

from mem0_jax.train.config import OptimizerConfig, TrainConfig

__all__ = ["OptimizerConfig", "TrainConfig"]
