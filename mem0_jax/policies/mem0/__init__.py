"""Mem-0: its configuration, its functions, and what the rest of the house asks of it (`family`)."""

from mem0_jax.policies.mem0.config import Mem0Config
from mem0_jax.policies.mem0.policy import Mem0

__all__ = ["Mem0", "Mem0Config"]
