"""Everything a training run carries from step to step, as one pytree of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from mem0_jax.train.optim import OptimizerState

if TYPE_CHECKING:
    from mem0_jax.policies.base import Policy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """State of a run.

    Attributes:
        step: int32 [], batches consumed; applied updates are `opt_state.count`, the others `opt_state.skipped`.
        params: nested dict of arrays.
        opt_state: see `OptimizerState`.
        carry: the policy's memory after the latest batch; `()` for a policy without memory.
        seed: uint32 []; the key of a step is this seed's key folded with `step`, so nothing else need be kept.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: OptimizerState
    carry: Any
    seed: jax.Array

    @property
    def skipped(self) -> jax.Array:
        """int32 [], updates left out because the gradient was not finite."""
        return self.opt_state.skipped


def create_params(policy: Policy, seed: int) -> dict[str, Any]:
    """Initial parameters of a run: `policy.init` with a key of its own, apart from those of the steps."""
    return policy.init(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))


def create_state(
    policy: Policy, optimizer: optax.GradientTransformation, params: dict[str, Any], seed: int, lanes: int
) -> TrainState:
    """State before the first step, with its own copy of `params` (the step donates its buffers)."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),  # pyright: ignore[reportArgumentType]
        carry=policy.init_state(lanes),
        seed=jnp.asarray(seed, jnp.uint32),
    )
    # A buffer that appears twice, or that the policy keeps, must not be donated.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), state)
