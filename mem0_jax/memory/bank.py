"""MemoryBank: a sliding window of past image features and the first one, read by cross-attention.

Nothing in it is recurrent: it stores the raw, detached features. So a run of T consecutive frames is one banded
attention over [carried window, new frames], and `step` is a run of one.

Axis letters: L lanes (training) or sessions (serving), T consecutive frames, W window length, H width, N heads,
J = W + T stored positions of a run (carried window, newest last, then the new frames), R = W ranks (0 = newest).
Source: RMBench `policy/Mem-0/source/models/execution_module/memory_bank/memory_bank.py` (behaviour).
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from mem0_jax.config import check_ranges
from mem0_jax.nn.attention import merge_heads, split_heads
from mem0_jax.nn.layers import LayerNorm, Linear, dropout, sinusoid, split_key

Array = jax.Array
RANK_PERIOD = 30.0  # the reference's constant, whatever the window length


@dataclass(frozen=True)
class MemoryConfig:
    """Sizes and rules of the bank.

    Attributes:
        window_size: frames kept in the sliding window.
        num_heads: attention heads of both branches.
        memory_accumulation: positive subtask-end labels after which a lane's memory is cleared; 0 never clears.
        dropout: rate on the attention weights while training.
        branches: the branches that read memory; a branch left out passes the current feature through.
    """

    window_size: int = 30
    num_heads: int = 8
    memory_accumulation: int = 8
    dropout: float = 0.1
    branches: tuple[str, ...] = ("window", "anchor")

    def __post_init__(self):
        check_ranges(
            self, window_size="[1, 1e6]", num_heads="[1, inf)", memory_accumulation="[0, 1e6]", dropout="[0, 1)"
        )
        if unknown := set(self.branches) - {"window", "anchor"}:
            raise ValueError(f"memory branches must be among 'window', 'anchor'; got {sorted(unknown)}")


@struct.dataclass
class MemoryState:
    """What is carried between runs, one row a lane.

    Attributes:
        window: [L, W, H] stored features, newest last; only the last `count` are valid.
        count: int32 [L].
        anchor: [L, H] first stored feature; valid when count > 0.
        end_count: int32 [L] positive subtask-end labels since the last clear.
        episode: int32 [L] episode of the last frame, -1 at first.
    """

    window: Array
    count: Array
    anchor: Array
    end_count: Array
    episode: Array


class Reading(NamedTuple):
    """window and anchor: outputs [L, T, H]; attention: window attention by rank, mean over heads [L, T, W]."""

    window: Array
    anchor: Array
    attention: Array


def init_state(lanes: int, config: MemoryConfig, width: int, dtype=jnp.float32) -> MemoryState:
    """Empty memories."""
    zeros = jnp.zeros((lanes,), jnp.int32)
    return MemoryState(
        window=jnp.zeros((lanes, config.window_size, width), dtype),
        count=zeros,
        anchor=jnp.zeros((lanes, width), dtype),
        end_count=zeros,
        episode=zeros - 1,
    )


def reset(state: MemoryState, lanes: Array | np.ndarray) -> MemoryState:
    """Empties the memories where `lanes` (bool [L]) is True."""
    return dataclasses.replace(
        state, count=jnp.where(lanes, 0, state.count), end_count=jnp.where(lanes, 0, state.end_count)
    )


def write(state: MemoryState, x: Array, count: Array) -> MemoryState:
    """Stores frames without reading: what `MemoryBank.sequence` does to memories within an episode, without labels.

    Args:
        state: memories, of lanes that go on with their episode (see `reset`).
        x: image features [L, T, H].
        count: int32 [L]; of each lane the first so many of the T frames are stored.
    """
    x, window = x.astype(state.window.dtype), state.window.shape[1]
    # The newest frame always stands last in the window, so a lane's new window ends at its own last frame of x.
    newest = count[:, None] + jnp.arange(window)  # places of the new window in [old window, x]
    first = (state.count == 0) & (count > 0)
    return dataclasses.replace(
        state,
        window=jnp.take_along_axis(jnp.concatenate([state.window, x], 1), newest[..., None], 1),
        count=jnp.minimum(state.count + count, window),
        anchor=jnp.where(first[:, None], x[:, 0], state.anchor),
    )


class Attention(nnx.Module):
    """The four projections of one branch."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.q, self.k, self.v, self.out = (Linear(width, width, rngs) for _ in range(4))


class MemoryBank(nnx.Module):
    """The two branches and the rank encoder."""

    def __init__(self, width: int, config: MemoryConfig, rngs: nnx.Rngs):
        self.rank_linear_1 = Linear(width // 4, width, rngs)
        self.rank_linear_2 = Linear(width, width, rngs)
        self.cross_attn1, self.cross_attn2 = Attention(width, rngs), Attention(width, rngs)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.config = config

    def step(
        self, state: MemoryState, x: Array, episode: Array, end: Array | None = None
    ) -> tuple[Reading, MemoryState]:
        """`sequence` of one frame: x [L, H], episode int [L], end int [L] (None: no labels); outputs without T."""
        end = jnp.zeros_like(episode) if end is None else end
        reading, state = self.sequence(state, x[:, None], episode[:, None], end[:, None])
        return Reading(*(y[:, 0] for y in reading)), state

    def sequence(
        self, state: MemoryState, x: Array, episode: Array, end: Array, key: Array | None = None
    ) -> tuple[Reading, MemoryState]:
        """T consecutive frames of every lane: each reads what came before it, then is stored.

        Args:
            state: memories at the start.
            x: image features [L, T, H]. Gradients flow through the current feature, never through a stored one.
            episode: int32 [L, T]. Where it differs from the frame before, the memory starts empty.
            end: int32 [L, T] subtask-end labels; after `memory_accumulation` positive ones the memory is emptied.
            key: dropout key; None is deterministic.

        Returns:
            The reading and the memories after the last frame. With nothing stored both outputs are x itself.
        """
        # One axis of places for old and new: what a frame sees is then a band of it, and no frame waits for another.
        stored = jnp.concatenate([state.window, jax.lax.stop_gradient(x).astype(state.window.dtype)], 1)
        first, carried, after = _segments(state, episode, end, self.config)
        window_key, anchor_key = split_key(key, 2)
        anchor = self._anchors(state, stored, first, carried)
        # A frame's own place is window_size + t: where its memory begins before it, something is stored.
        filled = (first < self.config.window_size + jnp.arange(x.shape[1]))[..., None]
        window_out, attention = self._read_window(x, stored, first, window_key)
        anchor_out = self._read_anchor(x, anchor, anchor_key)
        reading = Reading(
            jnp.where(filled, window_out, x) if "window" in self.config.branches else x,
            jnp.where(filled, anchor_out, x) if "anchor" in self.config.branches else x,
            jnp.where(filled, attention, 0.0),
        )
        return reading, _store(state, stored, episode, after)

    def _anchors(self, state: MemoryState, stored: Array, first: Array, carried: Array) -> Array:
        # The anchor is the episode's first frame: among the places here, unless the episode began before them.
        own = jnp.take_along_axis(stored, jnp.minimum(first, stored.shape[1] - 1)[..., None], 1)
        return jnp.where(carried[..., None], state.anchor[:, None], own)

    def _read_anchor(self, x: Array, anchor: Array, key: Array | None) -> Array:
        # One key: its attention weight is 1 whatever the query, so q and k projections have no influence.
        attention = self.cross_attn2
        value = split_heads(attention.v(self.norm2(anchor.astype(x.dtype))), self.config.num_heads)
        weight = dropout(jnp.ones((*value.shape[:-1], 1), x.dtype), self.config.dropout, key)
        return x + attention.out(merge_heads(weight * value))

    def _read_window(self, x: Array, stored: Array, first: Array, key: Array | None) -> tuple[Array, Array]:
        """Attention to LN(stored + rank embedding) without forming it for every (frame, rank) pair.

        With centred feature f and rank embedding p, LN(f + p) = (f + p) / s * scale + bias, where s depends on
        |f|^2 + 2 f.p + |p|^2. Keys and values are linear in LN's output, so projections of f and of p suffice.
        """
        config, attention, norm = self.config, self.cross_attn1, self.norm1
        window, run, dtype, width = config.window_size, x.shape[1], x.dtype, x.shape[-1]
        # Centred once, for the mean of a sum is the sum of the means.
        features = _centred(stored)
        ranks = _centred(self._rank_embedding())
        rank = window - 1 + jnp.arange(run)[:, None] - jnp.arange(window + run)  # [T, J], 0 = newest
        inside = (rank >= 0) & (rank < window)
        clipped = jnp.clip(rank, 0, window - 1)

        # What depends on (frame, rank) is computed on R ranks and moved to J places, and back: gathers, no products.
        def by_position(x):  # [..., T, R] -> [..., T, J]
            return jnp.take_along_axis(x, jnp.broadcast_to(clipped, (*x.shape[:-1], window + run)), -1)

        def by_rank(x):  # [..., T, J] -> [..., T, R]
            position = window - 1 + jnp.arange(run)[:, None] - jnp.arange(window)
            return jnp.take_along_axis(x, jnp.broadcast_to(position, (*x.shape[:-1], window)), -1)

        # Squared length of each sum f + p by the three terms of the formula above, and with it 1 / s.
        cross = jnp.einsum("ljh,rh->ljr", features, ranks)
        cross = cross[:, jnp.arange(window + run), clipped]  # [L, T, J]
        square = jnp.square(features).sum(-1)[:, None] + 2 * cross + jnp.square(ranks).sum(-1)[clipped]
        square = jnp.maximum(square, 0.0)  # rounding, where a feature all but cancels a rank
        inverse = jax.lax.rsqrt(square / width + norm.eps)[:, None]  # [L, 1, T, J]

        def project(linear, part):  # the norm's scale belongs to the projection; its bias is added by the caller
            kernel = (norm.scale[...][:, None] * linear.kernel[...]).astype(dtype)
            return split_heads(part.astype(dtype) @ kernel, config.num_heads)

        q = split_heads(attention.q(norm(x)), config.num_heads) * (width // config.num_heads) ** -0.5
        # The constant part of the keys adds the same number to every logit of a query and drops out of the softmax.
        logits = jnp.einsum("ltnd,ljnd->lntj", q, project(attention.k, features))
        logits = logits + by_position(jnp.einsum("ltnd,rnd->lntr", q, project(attention.k, ranks)))
        # 1 / s multiplies whole keys, so it can wait until the logits, which are far fewer.
        visible = inside & (jnp.arange(window + run) >= first[..., None])  # [L, T, J]
        logits = jnp.where(visible[:, None], logits.astype(jnp.float32) * inverse, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, -1)
        dropped = dropout(weights, config.dropout, key)
        # It multiplies whole values as well: the weights take it, and the bias, which has no s, is added after.
        scaled = (dropped * inverse).astype(dtype)
        value = jnp.einsum("lntj,ljnd->ltnd", scaled, project(attention.v, features))
        value = value + jnp.einsum("lntr,rnd->ltnd", by_rank(scaled), project(attention.v, ranks))
        constant = split_heads(attention.v(norm.bias[...].astype(dtype)), config.num_heads)
        value = value + jnp.moveaxis(dropped.sum(-1), 1, 2)[..., None].astype(dtype) * constant
        return x + attention.out(merge_heads(value)), by_rank(weights.mean(1))

    def _rank_embedding(self) -> Array:
        rank = jnp.arange(1, self.config.window_size + 1)
        width = self.rank_linear_1.kernel.shape[0]
        feature = sinusoid(rank, width, max_period=RANK_PERIOD, cos_first=True)
        return self.rank_linear_2(jax.nn.silu(self.rank_linear_1(feature)))


def _centred(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x - x.mean(-1, keepdims=True)


def _segments(
    state: MemoryState, episode: Array, end: Array, config: MemoryConfig
) -> tuple[Array, Array, tuple[Array, Array, Array]]:
    """The integer bookkeeping of a run, in positions of [carried window, new frames].

    Returns:
        first: int32 [L, T], oldest position of the memory each frame sees (its own position: nothing stored).
        carried: bool [L, T], the anchor is the carried one.
        after: (first, carried, end_count) after the last frame, each [L].
    """
    window = config.window_size

    def frame(carry, inputs):
        first, carried, end_count, last = carry
        now, episode, end = inputs
        # Another episode: the memory begins at this frame, and no anchor from before counts.
        fresh = episode != last
        first, carried = jnp.where(fresh, now, first), carried & ~fresh
        seen = (first, carried)  # a frame reads before its own label empties anything
        end_count = jnp.where(fresh, 0, end_count) + (end > 0)
        clear = (end_count >= config.memory_accumulation) & (config.memory_accumulation > 0)
        first, carried = jnp.where(clear, now + 1, first), carried & ~clear
        return (first, carried, jnp.where(clear, 0, end_count), episode), seen

    start = (window - state.count, state.count > 0, state.end_count, state.episode)
    positions = window + jnp.arange(episode.shape[1])
    (first, carried, end_count, _), seen = jax.lax.scan(frame, start, (positions, episode.T, end.T))
    return seen[0].T, seen[1].T, (first, carried, end_count)


def _store(state: MemoryState, stored: Array, episode: Array, after: tuple[Array, Array, Array]) -> MemoryState:
    first, carried, end_count = after
    own = jnp.take_along_axis(stored, jnp.minimum(first, stored.shape[1] - 1)[:, None, None], 1)[:, 0]
    return MemoryState(
        window=stored[:, -state.window.shape[1] :],
        count=jnp.minimum(stored.shape[1] - first, state.window.shape[1]),
        anchor=jnp.where(carried[:, None], state.anchor, own),
        end_count=end_count,
        episode=episode[:, -1],
    )
