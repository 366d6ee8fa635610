"""A Mem-0 of mem0_jax as a policy of RMBench, which looks for the functions of `deploy_policy` here."""

from .deploy_policy import eval, get_model, reset_model

__all__ = ["eval", "get_model", "reset_model"]
