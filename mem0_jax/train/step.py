"""One step of training as a pure function.

Axes: L lanes, T consecutive frames of a batch, A parts of it that are computed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import optax

from mem0_jax import tree
from mem0_jax.train.metrics import COUNTS
from mem0_jax.train.optim import OptimizerState
from mem0_jax.train.state import TrainState

if TYPE_CHECKING:
    from mem0_jax.policies.base import Trainable

TrainStep = Callable[[TrainState, dict[str, Any]], tuple[TrainState, dict[str, jax.Array]]]
Variables = dict[str, jax.Array]  # trained parameters by path


def make_train_step(
    policy: Trainable, optimizer: optax.GradientTransformation, accumulate: int = 1, ema_decay: float = 0.0
) -> TrainStep:
    """Build `train_step(state, batch) -> (state, metrics)`; jit it with `donate_argnums=0`.

    `batch` is a dict of arrays [L, T, ...]: L lanes of T consecutive frames. `metrics` holds the policy's own entries
    plus `loss`, `grad_norm` (before clipping) and `skipped` (updates left out so far), all arrays [] on the device.
    Only parameters that the optimizer trains are differentiated.

    With `accumulate` A > 1 the frames are cut into A runs of T / A, computed in order with the memory carried from one
    to the next, and the gradient is the mean of theirs. Because a memory stores features without their gradient, that
    is the gradient of the whole batch, up to rounding and to random numbers, which each run draws anew.

    The memory moves on even where the update is left out: the frames were seen, and a lane that missed the start of an
    episode would remember the wrong one. A memory that is itself not finite heals when its lane starts a new episode.
    """

    def train_step(state: TrainState, batch: dict[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
        flat = tree.flatten(state.params)

        def loss_of(variables: Variables, carry: Any, batch: dict[str, Any], rng: jax.Array) -> Any:
            params = tree.unflatten({path: variables.get(path, leaf) for path, leaf in flat.items()})
            loss, metrics, after = policy.loss(params, carry, batch, rng, train=True)
            _check_carry(carry, after)
            return loss, ({**metrics, "loss": loss}, after)

        differentiate = jax.grad(loss_of, has_aux=True)
        variables = {path: flat[path] for path in tree.flatten(state.opt_state.mu)}
        if accumulate == 1:
            gradients, (metrics, carry) = differentiate(variables, state.carry, batch, rng)
        else:
            gradients, metrics, carry = _accumulate(differentiate, variables, state.carry, batch, rng, accumulate)
        updates, opt_state = optimizer.update(tree.unflatten(gradients), state.opt_state, state.params)
        opt_state, updates = cast(OptimizerState, opt_state), tree.flatten(cast(dict[str, Any], updates))
        variables = cast(Variables, optax.apply_updates(variables, {path: updates[path] for path in variables}))
        params = tree.unflatten({path: variables.get(path, leaf) for path, leaf in flat.items()})
        ema = state.ema and _average(state.ema, variables, state.opt_state.count, opt_state.count, ema_decay)
        metrics = {**metrics, "grad_norm": opt_state.grad_norm, "skipped": opt_state.skipped}
        return TrainState(state.step + 1, params, opt_state, carry, state.seed, ema), metrics

    return train_step


def _accumulate(
    differentiate: Callable[..., Any], variables: Variables, carry: Any, batch: dict[str, Any], rng: Any, parts: int
) -> tuple[Variables, dict[str, jax.Array], Any]:
    """Mean gradient and metrics (sums of what is counted) over the parts of a batch, and the memory after the last."""

    def cut(value: Any) -> jax.Array:
        lanes, frames, *rest = jnp.shape(value)
        if frames % parts:
            raise ValueError(f"{frames} frames of a lane cannot be cut into {parts} equal parts")
        return jnp.moveaxis(jnp.reshape(value, (lanes, parts, frames // parts, *rest)), 1, 0)

    def one(state: tuple[Any, Variables], part: tuple[dict[str, Any], jax.Array]) -> Any:
        carry, total = state
        gradients, (metrics, carry) = differentiate(variables, carry, *part)
        return (carry, {path: total[path] + g.astype(jnp.float32) / parts for path, g in gradients.items()}), metrics

    zeros = {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in variables.items()}
    cuts = jax.tree.map(cut, batch), jax.random.split(rng, parts)
    (carry, total), metrics = jax.lax.scan(one, (carry, zeros), cuts)
    return total, {name: jnp.sum(v, 0) if name in COUNTS else jnp.mean(v, 0) for name, v in metrics.items()}, carry


def _average(
    ema: dict[str, Any], variables: Variables, before: jax.Array, after: jax.Array, decay: float
) -> dict[str, Any]:
    """Moving averages, ema + (1 - d) (p - ema), after an update; as they were where it was left out.

    d = min(decay, (1 + n) / (10 + n)) after n updates forgets the initial parameters sooner (the rule of TensorFlow's
    `ExponentialMovingAverage` with `num_updates`).
    """
    rate = 1.0 - jnp.minimum(decay, (1.0 + after) / (10.0 + after))
    rate = jnp.where(after > before, rate, 0.0)
    averages = tree.flatten(ema)
    return tree.unflatten({p: average + rate * (variables[p] - average) for p, average in averages.items()})


def _check_carry(before: Any, after: Any) -> None:
    """While tracing: a memory that changes its form would compile again each step and fit no checkpoint."""
    forms = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), memory) for memory in (before, after)]
    if forms[0] != forms[1]:
        raise TypeError(f"the policy's loss returned a memory of another form: {forms[1]}, expected {forms[0]}")
