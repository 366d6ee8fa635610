"""Scaled dot-product attention.

Axis letters: B batch, Q queries, K keys, N query heads, G key/value heads (N a multiple of G), D head width.
"""

import jax
import jax.numpy as jnp

from mem0_jax.nn.layers import dropout

Array = jax.Array


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    bias: Array | None = None,
    dropout_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(q k^T / sqrt(D)) v with the softmax in float32.

    Args:
        q: [B, Q, N, D].
        k: [B, K, G, D]. Consecutive groups of N / G query heads share a key/value head.
        v: [B, K, G, D].
        mask: bool, broadcastable to [B, Q, K]; True lets a query see a key. None sees all.
        bias: float32, broadcastable to [B, Q, K], added to the logits; -inf hides a key.
        dropout_rate: rate of dropout on the attention weights, active when `key` is given.
        key: dropout key.

    Returns:
        [B, Q, N, D] in the dtype of q.
    """
    batch, queries, heads, depth = q.shape
    groups = k.shape[2]
    grouped = q.reshape(batch, queries, groups, heads // groups, depth)
    logits = jnp.einsum("bqgnd,bkgd->bgnqk", grouped, k, preferred_element_type=jnp.float32) * depth**-0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    if bias is not None:
        logits = logits + bias[:, None, None]
    weights = dropout(jax.nn.softmax(logits, -1), dropout_rate, key).astype(v.dtype)
    return jnp.einsum("bgnqk,bkgd->bqgnd", weights, v).reshape(batch, queries, heads, depth)


def split_heads(x: Array, heads: int) -> Array:
    """[..., N*D] -> [..., N, D]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """[..., N, D] -> [..., N*D]."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
