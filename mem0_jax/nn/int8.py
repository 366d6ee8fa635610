"""Weights as 8-bit integers with one scale an output: a quarter of float32's bytes, half of bfloat16's.

Only weights are rounded; activations and sums keep their dtype. Axis letters: I input width, O output width.
Source: symmetric per-channel rounding to nearest ("absmax"), as in LLM.int8() (Dettmers et al., 2022), without its
mixed-precision outliers.
"""

from dataclasses import dataclass
from types import EllipsisType

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A kernel [I, O] that stands where `nn.layers.Linear` has its own: `x @ kernel` is all that is asked of it.

    Attributes:
        values: int8 [I, O], -127 to 127.
        scale: float32 [O]; the kernel is `values * scale`.
    """

    values: Array
    scale: Array

    def __getitem__(self, index: EllipsisType) -> "Int8":
        return self

    def astype(self, dtype) -> "Int8":
        """Itself: the product has the dtype of the activations."""
        return self

    def __rmatmul__(self, x: Array) -> Array:
        # Integers up to 127 are exact in bfloat16 too; scaling the sums, not the weights, keeps the kernel out of
        # memory in any wider type where the compiler converts it on the way into the product.
        sums = jnp.matmul(x, self.values.astype(x.dtype), preferred_element_type=jnp.float32)
        return (sums * self.scale).astype(x.dtype)


def quantized(kernel: Array) -> Int8:
    """The nearest `Int8` to a kernel [I, O]; off by at most half a scale anywhere."""
    kernel = kernel.astype(jnp.float32)
    largest = jnp.abs(kernel).max(0)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return Int8(jnp.round(kernel / scale).astype(jnp.int8), scale)
