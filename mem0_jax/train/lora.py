"""Low-rank adaptation (Hu et al., 2021): chosen kernels stay as they are and get a trained product of two thin factors.

Axis letters: I input width, O output width, R rank, ... leading axes of stacked layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mem0_jax import tree
from mem0_jax.policies.base import Batch, Params, State, Trainable
from mem0_jax.train.config import LoraConfig, SettingsError

FACTORS = ("lora_a", "lora_b")


@jax.tree_util.register_pytree_node_class
class LowRank:
    """Stands where a layer expects its kernel: x @ kernel + alpha / R (x @ a) @ b, never forming a @ b."""

    def __init__(self, kernel: Any, a: Any, b: Any, scale: float):
        self.kernel, self.a, self.b, self.scale = kernel, a, b, scale

    def tree_flatten(self) -> tuple[tuple[Any, ...], float]:
        """Arrays to trace and the scale, for JAX."""
        return (self.kernel, self.a, self.b), self.scale

    @classmethod
    def tree_unflatten(cls, scale: float, children: tuple[Any, ...]) -> LowRank:
        """The inverse of `tree_flatten`."""
        kernel, a, b = children
        return cls(kernel, a, b, scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return self.kernel.shape

    def __getitem__(self, index: Any) -> LowRank:
        if index is not Ellipsis:
            raise TypeError("a kernel with low-rank factors can only be multiplied")
        return self

    def astype(self, dtype: Any) -> LowRank:
        """Kernel and factors cast to `dtype`."""
        return LowRank(self.kernel.astype(dtype), self.a.astype(dtype), self.b.astype(dtype), self.scale)

    def __rmul__(self, rows: jax.Array) -> LowRank:
        """diag(s) (W + a b) = diag(s) W + (diag(s) a) b, for s as a column [I, 1]."""
        return LowRank(rows * self.kernel, rows * self.a, self.b, self.scale)

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel + ((x @ self.a) @ self.b) * self.scale


class LoraPolicy:
    """A policy whose chosen kernels have factors `lora_a` [..., I, R] and `lora_b` [..., R, O] beside them.

    Which parameters are trained is the optimizer's matter, see `TrainConfig.freeze`.
    """

    def __init__(self, policy: Trainable, config: LoraConfig):
        self.policy, self.config = policy, config
        self.learning_rate_groups, self.no_gradient = policy.learning_rate_groups, policy.no_gradient
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
        self._kernels = _kernels(abstract, config)
        axes = tree.match_rules(policy.logical_axes, tree.flatten(abstract))
        self.logical_axes = (*_factor_axes(axes, self._kernels), *policy.logical_axes)

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: `b` is zero, so that they compute what the policy's own would."""
        return self.adapt(self.policy.init(key), key)

    def adapt(self, params: Params, key: jax.Array) -> Params:
        """Add fresh factors to the parameters of the policy."""
        flat = tree.flatten(params)
        for number, path in enumerate(self._kernels):
            *layers, inputs, outputs = flat[path].shape
            a, b = (f"{path.removesuffix('kernel')}{factor}" for factor in FACTORS)
            draw = jax.random.normal(jax.random.fold_in(key, number), (*layers, inputs, self.config.rank))
            flat[a] = draw / jnp.sqrt(inputs)
            flat[b] = jnp.zeros((*layers, self.config.rank, outputs))
        return tree.unflatten(flat)

    def merge(self, params: Params) -> Params:
        """Parameters of the policy alone that compute the same: kernel + alpha / R a b."""
        flat = tree.flatten(params)
        for path in self._kernels:
            low = self._take(flat, path)
            product = jnp.matmul(low.a, low.b, precision=jax.lax.Precision.HIGHEST)
            flat[path] = (low.kernel.astype(jnp.float32) + product * low.scale).astype(low.kernel.dtype)
        return tree.unflatten(flat)

    def init_state(self, lanes: int) -> State:
        """See `Trainable`."""
        return self.policy.init_state(lanes)

    def loss(self, params: Params, state: State, batch: Batch, rng: jax.Array, train: bool) -> Any:
        """See `Trainable`."""
        return self.policy.loss(self.composed(params), state, batch, rng, train)

    def composed(self, params: Params) -> Params:
        """Parameters that the policy itself can compute with, whose kernels have their factors in them."""
        flat = tree.flatten(params)
        for path in self._kernels:
            flat[path] = self._take(flat, path)
        return tree.unflatten(flat)

    def _take(self, flat: dict[str, Any], path: str) -> LowRank:
        a, b = (flat.pop(f"{path.removesuffix('kernel')}{factor}") for factor in FACTORS)
        return LowRank(flat[path], a, b, self.config.alpha / self.config.rank)


def adapted(policy: Trainable, config: LoraConfig | None) -> Trainable:
    """A policy with low-rank factors, where there is a configuration of them."""
    return policy if config is None else LoraPolicy(policy, config)


def _kernels(abstract: Params, config: LoraConfig) -> list[str]:
    flat = tree.flatten(abstract)
    if not config.kernels:
        raise SettingsError("lora.kernels: name at least one pattern of kernels")
    chosen = sorted(tree.select(config.kernels, flat, "lora.kernels"))
    wrong = [path for path in chosen if not path.endswith("/kernel") or len(flat[path].shape) < 2]
    if wrong:
        raise SettingsError(f"lora.kernels: only kernels can be adapted, not {', '.join(wrong)}")
    return chosen


def _factor_axes(axes: Mapping[str, str], kernels: Sequence[str]) -> list[tuple[str, str]]:
    """Each factor keeps the axis it shares with its kernel."""
    rules = []
    for path in kernels:
        *layers, inputs, outputs = axes[path].split()
        stem = re.escape(path.removesuffix("kernel"))
        rules.append((" ".join([*layers, inputs, "small"]), f"{stem}{FACTORS[0]}"))
        rules.append((" ".join([*layers, "small", outputs]), f"{stem}{FACTORS[1]}"))
    return rules
