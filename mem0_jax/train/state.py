"""Everything a training run carries from step to step, as one pytree of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from mem0_jax import tree
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.optim import OptimizerState, make_optimizer

if TYPE_CHECKING:
    from mem0_jax.policies.base import Trainable


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
        ema: nested dict of float32, the moving average of every trained parameter; empty where none is kept.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: OptimizerState
    carry: Any
    seed: jax.Array
    ema: dict[str, Any] = field(default_factory=dict)

    @property
    def skipped(self) -> jax.Array:
        """int32 [], updates left out because the gradient was not finite."""
        return self.opt_state.skipped

    @property
    def averaged_params(self) -> dict[str, Any]:
        """The parameters to use: the moving averages, in the parameters' dtypes, where there are any."""
        flat, averages = tree.flatten(self.params), tree.flatten(self.ema)
        return tree.unflatten({p: averages[p].astype(v.dtype) if p in averages else v for p, v in flat.items()})


def create_params(
    policy: Trainable,
    seed: int,
    bfloat16: Sequence[str] = (),
    initial: Callable[[jax.Array], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Initial parameters of a run, those whose path matches one of `bfloat16` in that dtype.

    `initial` makes them in place of `policy.init`; its key is apart from those of the steps.
    """
    params = (initial or policy.init)(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))
    flat = tree.flatten(params)
    for path in tree.select(bfloat16, flat, "bfloat16"):
        flat[path] = flat[path].astype(jnp.bfloat16)
    return tree.unflatten(flat)


def create_state(
    policy: Trainable,
    optimizer: optax.GradientTransformation,
    params: dict[str, Any],
    seed: int,
    lanes: int,
    ema: bool = False,
) -> TrainState:
    """State before the first step, with its own copy of `params` (the step donates its buffers)."""
    opt_state = cast(OptimizerState, optimizer.init(params))
    flat = tree.flatten(params)
    averages = {path: flat[path].astype(jnp.float32) for path in tree.flatten(opt_state.mu)} if ema else {}
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        carry=policy.init_state(lanes),
        seed=jnp.asarray(seed, jnp.uint32),
        ema=tree.unflatten(averages),
    )
    # A buffer that appears twice, or that the policy keeps, must not be donated.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True), state)


class Blueprint(NamedTuple):
    """What a run will hold, before anything of it is there.

    Attributes:
        params: shapes and dtypes of its parameters.
        optimizer: of these.
        state: parameters -> the state before the first step.
        template: shapes and dtypes of that.
    """

    params: dict[str, Any]
    optimizer: optax.GradientTransformation
    state: Callable[[dict[str, Any]], TrainState]
    template: TrainState


def blueprint(policy: Trainable, config: TrainConfig) -> Blueprint:
    """The blueprint of a run. Raises SettingsError: settings and policy do not fit together."""
    params = jax.eval_shape(lambda: create_params(policy, config.seed, config.bfloat16))
    optimizer = make_optimizer(config.optimizer, policy.learning_rate_groups, policy.no_gradient, config.freeze, params)

    def state(params: dict[str, Any]) -> TrainState:
        return create_state(policy, optimizer, params, config.seed, config.lanes, config.ema_decay > 0)

    return Blueprint(params, optimizer, state, jax.eval_shape(state, params))
