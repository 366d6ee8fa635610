"""Layers of a causal decoder, as the Qwen models have them.

Axis letters: B samples, S tokens, H width, R rows of image tokens of a sample, M places of a cache, G key/value heads,
D head width.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.nn import rope
from mem0_jax.nn.attention import attend, merge_heads, split_heads
from mem0_jax.nn.layers import Linear, RMSNorm

Array = jax.Array


class Sizes(Protocol):
    """What the layers ask of a configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def rms_norm_eps(self) -> float: ...


class KeysValues(NamedTuple):
    """Keys (normalised and rotated) and values of one layer, [B, S, G, D] of tokens or [B, M, G, D] of a cache."""

    keys: Array
    values: Array


class Attention(nnx.Module):
    """Grouped-query self-attention.

    Args:
        config: its sizes.
        rngs: of the parameters.
        bias: q, k and v have one.
        norms: q and k are normalised per head before the rotation.
    """

    def __init__(self, config: Sizes, rngs: nnx.Rngs, *, bias: bool, norms: bool):
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(config.hidden_size, queries * config.head_dim, rngs, bias=bias)
        self.k_proj = Linear(config.hidden_size, groups * config.head_dim, rngs, bias=bias)
        self.v_proj = Linear(config.hidden_size, groups * config.head_dim, rngs, bias=bias)
        self.o_proj = Linear(queries * config.head_dim, config.hidden_size, rngs, bias=False)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_dim, eps=config.rms_norm_eps) if norms else None for _ in range(2)
        )
        self.queries, self.groups = queries, groups

    def __call__(
        self, x: Array, angle: Array, mask: Array, cache: KeysValues | None = None, place: Array | int = 0
    ) -> tuple[Array, KeysValues]:
        """Tokens x [B, S, H] attend to themselves, or with a cache to all of it once they are in it, from `place` on.

        `mask` is bool, broadcastable to [B, S, S] or [B, S, M]. Returns the output [B, S, H] and what was attended to.
        """
        q, k = split_heads(self.q_proj(x), self.queries), split_heads(self.k_proj(x), self.groups)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = rope.rotate(q, angle), rope.rotate(k, angle), split_heads(self.v_proj(x), self.groups)
        if cache is not None:
            k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, place, 1) for old, new in zip(cache, (k, v)))
        return self.o_proj(merge_heads(attend(q, k, v, mask))), KeysValues(k, v)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: Sizes, rngs: nnx.Rngs):
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, rngs, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, rngs, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, rngs, bias=False)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Pre-norm decoder layer; `bias` and `norms` as of `Attention`."""

    def __init__(self, config: Sizes, rngs: nnx.Rngs, *, bias: bool = False, norms: bool = False):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, rngs, bias=bias, norms=norms)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x: Array,
        angle: Array,
        mask: Array,
        cache: KeysValues | None = None,
        place: Array | int = 0,
        heard: Array | None = None,
    ) -> tuple[Array, KeysValues]:
        """The tokens after this layer, and its keys and values; arguments as of `Attention`. Where `heard` bool
        [B, S, 1] is given and False, a token gets nothing from its attention."""
        attended, seen = self.self_attn(self.input_layernorm(x), angle, mask, cache, place)
        x = x + (attended if heard is None else jnp.where(heard, attended, 0))
        return x + self.mlp(self.post_attention_layernorm(x)), seen


def at_slots(slot: Array, rows: Array) -> Array:
    """Image tokens where they belong in their prompt: `rows` [B, R, H] by int `slot` [B, S], zeros where that is -1.

    By a one-hot product, not a gather: its gradient is a product again instead of a scatter.
    """
    placed = jax.nn.one_hot(slot, rows.shape[1], dtype=rows.dtype)
    return jnp.einsum("bsr,brh->bsh", placed, rows, precision=jax.lax.Precision.HIGHEST)
