"""Elementary layers.

Compute follows activations: parameters are cast to the dtype of the input, so one cast of the input decides the
precision of a whole tower. Statistics of norms are float32 always. Axis letters: I input width, O output width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
_kernel_init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


class Linear(nnx.Module):
    """`x @ kernel + bias`, kernel [I, O]."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, bias: bool = True):
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None

    def __call__(self, x: Array) -> Array:
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
    """Table [rows, O] looked up by integer ids; gives float32 unless `dtype` says otherwise."""

    def __init__(self, rows: int, width: int, rngs: nnx.Rngs):
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width)))

    def __call__(self, ids: Array, dtype=jnp.float32) -> Array:
        return self.embedding[...].astype(dtype)[ids]


def layer_norm(x: Array, eps: float) -> Array:
    """LayerNorm over the last axis without affine parameters, float32 inside."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis with scale and bias."""

    def __init__(self, width: int, *, eps: float = 1e-5):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        y = layer_norm(x.astype(jnp.float32), self.eps) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis with scale (Zhang and Sennrich, 2019), float32 inside."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (self.scale[...] * y).astype(x.dtype)


def gelu_exact(x: Array) -> Array:
    """x * Phi(x) with the error function."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU: not interchangeable with `gelu_exact` at parity tolerances."""
    return jax.nn.gelu(x, approximate=True)


def sinusoid(position: Array, width: int, *, max_period: float, cos_first: bool, shift: int = 0) -> Array:
    """Sinusoidal features of `position` [...] -> [..., width], float32.

    With half = width // 2 the frequencies are exp(-ln(max_period) * i / (half - shift)), i = 0 .. half - 1.
    """
    half = width // 2
    frequency = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angle = position[..., None].astype(jnp.float32) * frequency
    parts = [jnp.cos(angle), jnp.sin(angle)] if cos_first else [jnp.sin(angle), jnp.cos(angle)]
    if width % 2:
        parts.append(jnp.zeros_like(angle[..., :1]))
    return jnp.concatenate(parts, -1)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; `key=None` or rate 0 is the identity."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split_key(key: Array | None, n: int) -> list[Array | None]:
    """`jax.random.split` that lets the deterministic `None` through."""
    return [None] * n if key is None else list(jax.random.split(key, n))
