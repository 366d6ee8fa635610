"""One step of training as a pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import optax

from mem0_jax.train.optim import OptimizerState
from mem0_jax.train.state import TrainState

if TYPE_CHECKING:
    from mem0_jax.policies.base import Policy

TrainStep = Callable[[TrainState, dict[str, Any]], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(policy: Policy, optimizer: optax.GradientTransformation) -> TrainStep:
    """Build `train_step(state, batch) -> (state, metrics)`; jit it with `donate_argnums=0`.

    `batch` is a dict of arrays [L, T, ...]: L lanes of T consecutive frames. `metrics` holds the policy's own entries
    plus `loss`, `grad_norm` (before clipping) and `skipped` (updates left out so far), all arrays [] on the device.

    The memory moves on even where the update is left out: the frames were seen, and a lane that missed the start of an
    episode would remember the wrong one. A memory that is itself not finite heals when its lane starts a new episode.
    """

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.key(state.seed), state.step)

        def loss_of(params: dict[str, Any]) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
            loss, metrics, carry = policy.loss(params, state.carry, batch, rng, train=True)
            _check_carry(state.carry, carry)
            return loss, (metrics, carry)

        (loss, (metrics, carry)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        opt_state = cast(OptimizerState, opt_state)
        params = cast(dict[str, Any], optax.apply_updates(state.params, updates))
        metrics = {**metrics, "loss": loss, "grad_norm": opt_state.grad_norm, "skipped": opt_state.skipped}
        return TrainState(state.step + 1, params, opt_state, carry, state.seed), metrics

    return train_step


def _check_carry(before: Any, after: Any) -> None:
    """While tracing: a memory that changes its form would compile again each step and fit no checkpoint."""
    forms = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), memory) for memory in (before, after)]
    if forms[0] != forms[1]:
        raise TypeError(f"the policy's loss returned a memory of another form: {forms[1]}, expected {forms[0]}")
