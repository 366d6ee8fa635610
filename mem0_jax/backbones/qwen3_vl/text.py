"""The text stack: a causal decoder with per-head q/k norms, SwiGLU and multi-axis rotary positions.

Axis letters: B samples, S tokens, H width, K deepstack taps, R rows of image tokens of a sample (all its views),
M places of a cache, G key/value heads, D head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.qwen3_vl.config import TextConfig
from mem0_jax.nn import rope
from mem0_jax.nn.attention import attend, merge_heads, split_heads
from mem0_jax.nn.layers import Embedding, Linear, RMSNorm
from mem0_jax.nn.stack import scan_layers, stacked

Array = jax.Array


class KeysValues(NamedTuple):
    """Keys (normalised and rotated) and values of one layer, [B, S, G, D] of tokens or [B, M, G, D] of a cache."""

    keys: Array
    values: Array


class Attention(nnx.Module):
    """Grouped-query self-attention; q and k are normalised per head before the rotation."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        queries, groups = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(config.hidden_size, queries * config.head_dim, rngs, bias=False)
        self.k_proj = Linear(config.hidden_size, groups * config.head_dim, rngs, bias=False)
        self.v_proj = Linear(config.hidden_size, groups * config.head_dim, rngs, bias=False)
        self.o_proj = Linear(queries * config.head_dim, config.hidden_size, rngs, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(config.head_dim, eps=config.rms_norm_eps) for _ in range(2))
        self.queries, self.groups = queries, groups

    def __call__(
        self, x: Array, angle: Array, mask: Array, cache: KeysValues | None = None, place: Array | int = 0
    ) -> tuple[Array, KeysValues]:
        """Tokens x [B, S, H] attend to themselves, or with a cache to all of it once they are in it, from `place` on.

        `mask` is bool, broadcastable to [B, S, S] or [B, S, M]. Returns the output [B, S, H] and what was attended to.
        """
        q = rope.rotate(self.q_norm(split_heads(self.q_proj(x), self.queries)), angle)
        k = rope.rotate(self.k_norm(split_heads(self.k_proj(x), self.groups)), angle)
        v = split_heads(self.v_proj(x), self.groups)
        if cache is not None:
            k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, place, 1) for old, new in zip(cache, (k, v)))
        return self.o_proj(merge_heads(attend(q, k, v, mask))), KeysValues(k, v)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, rngs, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, rngs, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, rngs, bias=False)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Pre-norm decoder layer."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: Array, angle: Array, mask: Array, cache: KeysValues | None = None, place: Array | int = 0
    ) -> tuple[Array, KeysValues]:
        """The tokens after this layer, and its keys and values; arguments as of `Attention`."""
        attended, seen = self.self_attn(self.input_layernorm(x), angle, mask, cache, place)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), seen


class TextStack(nnx.Module):
    """Token embeddings, decoder layers, final norm. The embedding table is tied to the language-model head."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs)
        self.layers = stacked(lambda r: Layer(config, r), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.config = config

    def __call__(
        self, tokens: Array, deepstack: Array | None, arrays: dict[str, Array], dtype, *, remat: bool | str = False
    ) -> Array:
        """Runs the decoder.

        Args:
            tokens: image tokens [B, R, H] that `image_slot` points to.
            deepstack: [K, B, R, H], added at the image slots after text layers 0 .. K-1, or None.
            arrays: input_ids, attention_mask, position, image_slot of `positions.arrays_of`.
            dtype: compute dtype.
            remat: recompute layers in the backward pass.

        Returns:
            Hidden states of the last layer before the final norm, [B, S, H].
        """
        config = self.config
        # Placing by a one-hot product, not a gather: its gradient is a product again instead of a scatter.
        slot = jax.nn.one_hot(arrays["image_slot"], tokens.shape[1], dtype=dtype)  # all zeros where -1
        is_image = (arrays["image_slot"] >= 0)[..., None]

        def at_slots(image_rows: Array) -> Array:
            return jnp.einsum("bsr,brh->bsh", slot, image_rows.astype(dtype), precision=jax.lax.Precision.HIGHEST)

        x = jnp.where(is_image, at_slots(tokens), self.embed_tokens(arrays["input_ids"], dtype))
        angle = rope.mrope_angles(
            jnp.moveaxis(arrays["position"], 1, 0), config.head_dim, config.rope_theta, config.mrope_section
        )
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        mask = causal & arrays["attention_mask"][:, None]

        def add_deepstack(deepstack: Array, x: Array, index: Array) -> Array:
            return x + at_slots(deepstack[index])

        def body(layer, x, index):
            x, _ = layer(x, angle, mask)
            if deepstack is not None:
                x = jax.lax.cond(index < len(deepstack), add_deepstack, lambda _, x, __: x, deepstack, x, index)
            return x, None

        return scan_layers(self.layers, body, x, jnp.arange(config.num_hidden_layers), remat=remat)[0]
