"""EVO1: InternVL3 features and a flow head of cross-attention blocks; no memory."""

from mem0_jax.policies.evo1.config import EVO1Config
from mem0_jax.policies.evo1.policy import EVO1

__all__ = ["EVO1", "EVO1Config"]
