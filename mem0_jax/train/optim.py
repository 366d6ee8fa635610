"""AdamW with a learning rate a group, as torch computes it.

Sources: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); the documented updates of
`torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_`; schedule and skipping of the Mem-0 reference
(source/training/train_low.py, source/training/utils/trainer_tools.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mem0_jax import tree
from mem0_jax.train.config import OptimizerConfig, SettingsError, check_groups

__all__ = ["OptimizerConfig", "OptimizerState", "learning_rates", "make_optimizer"]

CLIP_EPSILON = 1e-6  # torch's clip_grad_norm_ divides by norm + 1e-6


class OptimizerState(NamedTuple):
    """State of the transformation `make_optimizer` returns.

    Attributes:
        count: int32 [], updates applied; the position in the learning-rate schedule.
        skipped: int32 [], updates left out because the gradient was not finite.
        grad_norm: float32 [], global norm of the latest gradient before clipping.
        mu, nu: nested dicts of float32, first and second moment of every trained leaf; other leaves have none.
    """

    count: jax.Array
    skipped: jax.Array
    grad_norm: jax.Array
    mu: dict[str, Any]
    nu: dict[str, Any]


def learning_rates(config: OptimizerConfig, step: Any) -> dict[str, Any]:
    """Learning rate of every group for the update after `step` applied ones.

    lr = peak * (f * (1 - r) + r), r = floor / peak, with f rising linearly from 0 over the warm-up and then
    (cosine) 0.5 * (1 + cos(pi * progress)): even the warm-up starts at the floor, not at zero.

    Args:
        config: the optimizer's settings.
        step: a whole number (gives floats, computed in float64) or an int32 array [] (gives float32 arrays []).
    """
    traced = isinstance(step, jax.Array)
    factor = _schedule(config, step, jnp if traced else np)
    rates = {}
    for group, peak in config.learning_rates.items():
        floor = config.floors.get(group, 0.0)
        rate = floor + factor * (peak - floor)
        rates[group] = rate if traced else float(rate)
    return rates


def _schedule(config: OptimizerConfig, step: Any, xp: Any) -> Any:
    warmup = config.warmup_steps
    rising = step / max(1, warmup)
    if config.schedule == "constant":
        falling = 1.0
    else:
        # 0.5 * (1 + cos(2 x)) = cos(x)^2, which keeps its relative precision in float32 where the factor nears 0.
        progress = xp.clip((step - warmup) / max(1, config.total_steps - warmup), 0.0, 1.0)
        falling = xp.cos(0.5 * math.pi * progress) ** 2
    return xp.where(step < warmup, rising, falling)


def make_optimizer(
    config: OptimizerConfig,
    policy_groups: Sequence[tuple[str, str]],
    no_gradient: Sequence[str],
    freeze: Sequence[str],
    params: Mapping[str, Any],
) -> optax.GradientTransformation:
    """Build the optimizer of a policy's parameters.

    Each update clips the global norm of the trained leaves' gradients to `config.clip_norm`, then takes an AdamW step
    with decoupled weight decay on every trained leaf but those of `config.no_decay`. Where that norm is not finite
    nothing changes (parameters, moments, place in the schedule) except the count of skipped updates.

    Args:
        config: settings; its groups must be the policy's.
        policy_groups: (group, path regex), first match wins, every leaf in one group.
        no_gradient: regexes of whole paths of leaves that no gradient reaches: neither trained nor decayed.
        freeze: the same for leaves that this run leaves alone.
        params: nested dict of arrays or `jax.ShapeDtypeStruct`; only paths and shapes are read.
    Returns:
        A transformation with `OptimizerState`; `update` needs the parameters.
    Raises:
        TreeError: rules and parameters do not fit together.
        SettingsError: groups and learning rates do not, or nothing is left to train.
    """
    paths = list(tree.flatten(params))
    groups = tree.match_rules(policy_groups, paths)
    check_groups(config.learning_rates, groups.values())
    untrained = tree.select(no_gradient, paths, "no_gradient") | tree.select(freeze, paths, "freeze")
    kept = tree.select(config.no_decay, paths, "no_decay")
    decay = {path: 0.0 if path in kept else config.weight_decay for path in paths}
    # Sorted, so that the norm's sum, and its rounding, do not depend on the order of the dict's keys.
    trained = sorted(set(paths) - untrained)
    if not trained:
        raise SettingsError("freeze and no_gradient together leave no parameter to train")

    def init(params: optax.Params) -> OptimizerState:
        flat = tree.flatten(_as_dict(params))
        # Two separate sets of zeros: buffers shared between leaves could not be donated.
        mu, nu = ({path: jnp.zeros(flat[path].shape, jnp.float32) for path in trained} for _ in range(2))
        zero = jnp.zeros((), jnp.int32)
        return OptimizerState(zero, zero, jnp.zeros((), jnp.float32), tree.unflatten(mu), tree.unflatten(nu))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, OptimizerState]:
        if params is None:
            raise ValueError("this optimizer decays weights: call update(gradients, state, params)")
        assert isinstance(state, OptimizerState)
        return _update(config, groups, decay, trained, _as_dict(updates), state, _as_dict(params))

    return optax.GradientTransformation(init, update)


def _update(
    config: OptimizerConfig,
    groups: Mapping[str, str],
    decay: Mapping[str, float],
    trained: Sequence[str],
    gradients: dict[str, Any],
    state: OptimizerState,
    params: dict[str, Any],
) -> tuple[dict[str, Any], OptimizerState]:
    flat_params, flat_gradients = tree.flatten(params), tree.flatten(gradients)
    grads = {path: flat_gradients[path].astype(jnp.float32) for path in trained}
    # One norm over all trained leaves, in float32 whatever they are kept in: it clips, and tells whether all is finite.
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in grads.values()))
    finite = jnp.isfinite(norm)
    scale = jnp.minimum(config.clip_norm / (norm + CLIP_EPSILON), 1.0) if config.clip_norm else jnp.float32(1.0)
    count = state.count + 1
    rates = learning_rates(config, state.count)
    # 1 - b^count, without the cancellation that costs float32 five digits at the first step for b2 = 0.999.
    correction1, correction2 = (-jnp.expm1(count * math.log(b)) if b else 1.0 for b in (config.b1, config.b2))

    old_mu, old_nu = tree.flatten(state.mu), tree.flatten(state.nu)
    # Adding -0.0 leaves every float as it is, bit for bit; adding 0.0 would turn -0.0 into 0.0.
    deltas = {path: jnp.full(leaf.shape, -0.0, leaf.dtype) for path, leaf in flat_params.items()}
    mu, nu = {}, {}
    for path in trained:
        gradient, param = grads[path] * scale, flat_params[path]
        first = config.b1 * old_mu[path] + (1 - config.b1) * gradient
        second = config.b2 * old_nu[path] + (1 - config.b2) * jnp.square(gradient)
        direction = (first / correction1) / (jnp.sqrt(second / correction2) + config.eps)
        # Decoupled: the decay is not divided by the second moment (Loshchilov and Hutter, 2019).
        delta = -rates[groups[path]] * (direction + decay[path] * param.astype(jnp.float32))
        # A step that is not finite leaves everything as it was; a branch would need two programs.
        deltas[path] = jnp.where(finite, delta.astype(param.dtype), deltas[path])
        mu[path] = jnp.where(finite, first, old_mu[path])
        nu[path] = jnp.where(finite, second, old_nu[path])
    new_state = OptimizerState(
        count=jnp.where(finite, count, state.count),
        skipped=state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32),
        grad_norm=norm,
        mu=tree.unflatten(mu),
        nu=tree.unflatten(nu),
    )
    return tree.unflatten(deltas), new_state


def _as_dict(params: Any) -> dict[str, Any]:
    if not isinstance(params, dict):
        raise TypeError(f"parameters and gradients: expected a nested dict, got {type(params).__name__}")
    return params
