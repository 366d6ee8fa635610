"""DiT action head: denoises an action chunk under context tokens (cross-attention) and the proprioceptive state.

Axis letters: B samples (context rows), R draws per sample, C chunk length, A action width, S context tokens,
E context width, D inner width, P block pairs. Blocks alternate cross- and self-attention and are scanned in pairs.
Source: RMBench `.../action_model/ActionHeader.py`, `cross_attention_dit.py` (behaviour); diffusers' layers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.config import check_ranges
from mem0_jax.nn.attention import attend, merge_heads, split_heads
from mem0_jax.nn.layers import Embedding, Linear, dropout, gelu_tanh, layer_norm, sinusoid, split_key
from mem0_jax.nn.stack import scan_layers, stacked

Array = jax.Array
TIME_FEATURES = 256


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the head; the defaults are the released ones (DiT-B).

    Attributes:
        width: inner width D = heads * head width.
        num_heads: attention heads.
        num_layers: blocks, even: cross, self, cross, ...
        context_width: width E of the context tokens.
        hidden_size: width of the state and output MLPs.
        action_dim, state_dim: widths of one action and of the state.
        horizon: actions in a chunk.
        max_positions: rows of the learned position table.
        dropout: rate in attention outputs and MLPs while training.
    """

    width: int = 768
    num_heads: int = 12
    num_layers: int = 16
    context_width: int = 2048
    hidden_size: int = 2048
    output_dim: int = 2048
    action_dim: int = 16
    state_dim: int = 16
    horizon: int = 30
    max_positions: int = 1024
    dropout: float = 0.2

    def __post_init__(self):
        sizes = ("width", "num_heads", "num_layers", "context_width", "hidden_size", "output_dim", "action_dim")
        sizes += ("state_dim", "horizon", "max_positions")
        check_ranges(self, **dict.fromkeys(sizes, "[1, inf)"), dropout="[0, 1)")
        if self.num_layers % 2:
            raise ValueError(f"num_layers must be even (cross, self pairs), got {self.num_layers}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.horizon > self.max_positions:
            raise ValueError(f"horizon {self.horizon} exceeds max_positions {self.max_positions}")


class MLP(nnx.Module):
    """Two linear layers with ReLU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs):
        self.layer1, self.layer2 = Linear(inputs, hidden, rngs), Linear(hidden, outputs, rngs)

    def __call__(self, x: Array) -> Array:
        return self.layer2(jax.nn.relu(self.layer1(x)))


class Modulation(NamedTuple):
    """All that the head makes of a timestep, for B samples or, with B = 1, for all alike.

    Attributes:
        tau: [B, D], joins the actions.
        blocks: scale and shift of adaLN in the cross- and the self-attention blocks, two of [P, B, 2 D].
        out: shift and scale of the last norm, [B, 2 D].
    """

    tau: Array
    blocks: tuple[Array, Array]
    out: Array


class ActionEncoder(nnx.Module):
    """Noisy actions [B, C, A] and features [B, D] of their timesteps to tokens [B, C, D]."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        self.layer1 = Linear(config.action_dim, config.width, rngs)
        self.layer2 = Linear(2 * config.width, config.width, rngs)
        self.layer3 = Linear(config.width, config.width, rngs)

    def __call__(self, actions: Array, tau: Array) -> Array:
        x = self.layer1(actions)
        tau = jnp.broadcast_to(tau[:, None].astype(x.dtype), x.shape)
        return self.layer3(jax.nn.silu(self.layer2(jnp.concatenate([x, tau], -1))))


class Block(nnx.Module):
    """adaLN, attention, residual; plain LayerNorm, tanh-GELU MLP, residual."""

    def __init__(self, config: DiTConfig, key_width: int, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = Linear(width, 2 * width, rngs)
        self.to_q = Linear(width, width, rngs)
        self.to_k, self.to_v = Linear(key_width, width, rngs), Linear(key_width, width, rngs)
        self.to_out = Linear(width, width, rngs)
        self.ff_in, self.ff_out = Linear(width, 4 * width, rngs), Linear(4 * width, width, rngs)
        self.heads, self.rate = config.num_heads, config.dropout

    def keys_values(self, context: Array) -> tuple[Array, Array]:
        """[B, S, key width] -> two of [B, S, heads, head width]."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def __call__(self, x: Array, modulation: Array, context: tuple[Array, Array] | None, key: Array | None) -> Array:
        """x [B, 1 + C, D], `norm1` of the time embedding after SiLU; context None means self-attention."""
        keys = split_key(key, 4)
        scale, shift = jnp.split(modulation[:, None], 2, -1)
        h = layer_norm(x, 1e-5) * (1 + scale) + shift
        k, v = self.keys_values(h) if context is None else context
        attended = self.to_out(merge_heads(attend(split_heads(self.to_q(h), self.heads), k, v)))
        x = x + dropout(dropout(attended, self.rate, keys[0]), self.rate, keys[1])
        h = dropout(gelu_tanh(self.ff_in(layer_norm(x, 1e-5))), self.rate, keys[2])
        return x + dropout(self.ff_out(h), self.rate, keys[3])


class BlockPair(nnx.Module):
    """A cross-attention block, then a self-attention block."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        self.cross = Block(config, config.context_width, rngs)
        self.self = Block(config, config.width, rngs)

    def modulation(self, time: Array) -> tuple[Array, Array]:
        """Of both blocks, from the time embedding after SiLU [B, D]."""
        return self.cross.norm1(time), self.self.norm1(time)


class DiTHead(nnx.Module):
    """The velocity field of the flow."""

    def __init__(self, config: DiTConfig, rngs: nnx.Rngs):
        self.time_linear_1 = Linear(TIME_FEATURES, config.width, rngs)
        self.time_linear_2 = Linear(config.width, config.width, rngs)
        self.blocks = stacked(lambda r: BlockPair(config, r), config.num_layers // 2, rngs)
        self.proj_out_1 = Linear(config.width, 2 * config.width, rngs)
        self.proj_out_2 = Linear(config.width, config.output_dim, rngs)
        self.state_encoder = MLP(config.state_dim, config.hidden_size, config.width, rngs)
        self.action_encoder = ActionEncoder(config, rngs)
        self.action_decoder = MLP(config.output_dim, config.hidden_size, config.action_dim, rngs)
        self.position_embedding = Embedding(config.max_positions, config.width, rngs)
        self.config = config

    def condition(self, context: Array, state: Array) -> tuple[tuple[Array, Array], Array]:
        """What does not change over draws and solver steps.

        Args:
            context: [B, S, E].
            state: [B, A].

        Returns:
            Keys and values of the context for every pair, [P, B, S, heads, head width] each; the state token [B, 1, D].
        """
        _, kv = scan_layers(self.blocks, lambda pair, carry, _: (carry, pair.cross.keys_values(context)), None)
        return kv, self.state_encoder(state)[:, None]

    def velocity(
        self,
        condition: tuple[tuple[Array, Array], Array],
        actions: Array,
        timestep: Array | Modulation,
        key: Array | None = None,
        *,
        remat: bool | str = False,
    ) -> Array:
        """Velocity of the noisy `actions` [B, C, A] at integer `timestep` [B], or its `modulation`: [B, C, A].

        `key` turns dropout on; `remat` recomputes block pairs in the backward pass.
        """
        kv, state_token = condition
        config = self.config
        length = actions.shape[1]
        if isinstance(timestep, Modulation):
            time, (tau, blocks, out_modulation) = None, timestep
        else:  # in training every sample has a time of its own: nothing to share, and blocks are recomputed whole
            time, tau, blocks = self._time(timestep), self._tau(timestep), None
            out_modulation = self.proj_out_1(time)
        tokens = self.action_encoder(actions, tau) + self.position_embedding.embedding[...][:length]
        x = jnp.concatenate([state_token, tokens], 1)

        def body(pair, x, scanned):
            kv, key, modulation = scanned
            keys = split_key(key, 2)
            cross, self_ = pair.modulation(time) if modulation is None else modulation
            x = pair.cross(x, cross, kv, keys[0])
            return pair.self(x, self_, None, keys[1]), None

        keys = None if key is None else jax.random.split(key, config.num_layers // 2)
        x, _ = scan_layers(self.blocks, body, x, (kv, keys, blocks), remat=remat)
        shift, scale = jnp.split(out_modulation[:, None], 2, -1)
        out = self.proj_out_2(layer_norm(x, 1e-6) * (1 + scale) + shift)
        return self.action_decoder(out[:, -length:])

    def modulation(self, timestep: Array) -> Modulation:
        """What `velocity` needs to know of integer timesteps [B]."""
        time = self._time(timestep)
        _, blocks = scan_layers(self.blocks, lambda pair, carry, _: (carry, pair.modulation(time)), None)
        return Modulation(self._tau(timestep), blocks, self.proj_out_1(time))

    def _tau(self, timestep: Array) -> Array:
        return sinusoid(timestep, self.config.width, max_period=10000.0, cos_first=False)

    def _time(self, timestep: Array) -> Array:
        feature = sinusoid(timestep, TIME_FEATURES, max_period=10000.0, cos_first=True, shift=1)
        return jax.nn.silu(self.time_linear_2(jax.nn.silu(self.time_linear_1(feature))))


def repeat_condition(condition, times: int):
    """Tiles the sample axis of a condition `times` times (draw r of sample i is row r * B + i)."""
    (k, v), token = condition
    many = [1, times, 1, 1, 1]
    return (jnp.tile(k, many), jnp.tile(v, many)), jnp.tile(token, [times, 1, 1])
