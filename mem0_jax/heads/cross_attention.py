"""Flow head whose action tokens attend to a context, not to each other, until a linear layer over all of them.

Axis letters: B samples, C chunk length, A action width, D state width, S context tokens, E width, K blocks, N kinds of
robots. Source: LeRobot 0.6 `policies/evo1`, MINT-SJTU/Evo-1 (behaviour).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.config import check_ranges
from mem0_jax.nn import layers
from mem0_jax.nn.attention import attend, merge_heads, split_heads
from mem0_jax.nn.layers import LayerNorm, gelu_exact
from mem0_jax.nn.stack import scan_layers, stacked

Array = jax.Array


@dataclass(frozen=True)
class CrossAttentionConfig:
    """Sizes of the head; the defaults are the released ones.

    Attributes:
        width: E, that of the context, too.
        hidden_size, state_hidden_size: of the output's and the state's MLP.
        num_heads, num_layers: of the blocks.
        action_dim, state_dim, horizon: A, D, C.
        times: rows of the table of times.
        categories: kinds of robots, N; with more than one, each has its own weights to read states and actions with.
        dropout: of attention weights while training.
    """

    width: int = 896
    hidden_size: int = 1024
    state_hidden_size: int = 1024
    num_heads: int = 8
    num_layers: int = 8
    action_dim: int = 24
    state_dim: int = 24
    horizon: int = 50
    times: int = 1000
    categories: int = 1
    dropout: float = 0.0

    def __post_init__(self):
        sizes = ("width", "hidden_size", "state_hidden_size", "num_heads", "num_layers", "action_dim", "state_dim")
        check_ranges(self, **dict.fromkeys((*sizes, "horizon", "times", "categories"), "[1, inf)"), dropout="[0, 1)")
        if self.width % self.num_heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even, and a multiple of num_heads {self.num_heads}")


class Linear(layers.Linear):
    """The same, drawn as torch draws it: kernel and bias uniform within 1 / sqrt(I), or the kernel within `bound` and
    the bias 0."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, bound: float = 0.0):
        self.kernel = nnx.Param(_uniform(rngs, (inputs, outputs), bound or inputs**-0.5))
        self.bias = nnx.Param(jnp.zeros((outputs,)) if bound else _uniform(rngs, (outputs,), inputs**-0.5))


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], bound: float) -> Array:
    return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)


class ByCategory(nnx.Module):
    """A linear layer with weights of their own for each of N kinds of robots, kernel [N, I, O] and bias [N, O], drawn
    after Glorot and Bengio (2010); of one kind, a `Linear`."""

    def __init__(self, inputs: int, outputs: int, categories: int, rngs: nnx.Rngs):
        if categories == 1:
            one = Linear(inputs, outputs, rngs)
            self.kernel, self.bias = one.kernel, one.bias
        else:
            self.kernel = nnx.Param(_uniform(rngs, (categories, inputs, outputs), (6 / (inputs + outputs)) ** 0.5))
            self.bias = nnx.Param(jnp.zeros((categories, outputs)))

    def __call__(self, x: Array, category: Array) -> Array:
        """x [B, ..., I] of rows of the kinds int [B]: [B, ..., O]."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        if kernel.ndim == 2:
            return x @ kernel + bias
        middle = (1,) * (x.ndim - 2)
        return jnp.einsum("b...i,bio->b...o", x, kernel[category]) + bias[category].reshape(len(x), *middle, -1)


class Table(nnx.Module):
    """Rows that come with a checkpoint and are never trained; fresh ones are interleaved sines and cosines
    (Vaswani et al., 2017)."""

    def __init__(self, rows: int, width: int):
        frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(0, width, 2) / width)
        angle = jnp.arange(rows)[:, None] * frequency
        self.embedding = nnx.Param(jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(rows, width))

    def __call__(self) -> Array:
        """All rows [rows, E], for which there is no gradient."""
        return jax.lax.stop_gradient(self.embedding[...])


class Encoder(nnx.Module):
    """Vectors to tokens: `layers` linear layers with ReLU between."""

    def __init__(self, sizes: tuple[int, ...], categories: int, rngs: nnx.Rngs):
        self.count = len(sizes) - 1
        for i, (inputs, outputs) in enumerate(pairwise(sizes), 1):
            setattr(self, f"layer{i}", ByCategory(inputs, outputs, categories, rngs))

    def __call__(self, x: Array, category: Array, added: Array | None = None) -> Array:
        """x [B, ..., I] to [B, ..., E]; `added` joins after the first ReLU."""
        for i in range(1, self.count + 1):
            x = getattr(self, f"layer{i}")(x, category)
            x = jax.nn.relu(x) if i < self.count else x
            x = x + added if i == 1 and added is not None else x
        return x


class Block(nnx.Module):
    """Attention to the context, residual; norm, time, GELU MLP, residual."""

    def __init__(self, config: CrossAttentionConfig, rngs: nnx.Rngs):
        width = config.width
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        # As of one matrix for all three, [E, 3 E] (Glorot and Bengio, 2010).
        self.q, self.k, self.v = (Linear(width, width, rngs, bound=(6 / (4 * width)) ** 0.5) for _ in range(3))
        self.out = Linear(width, width, rngs)
        self.ff_in, self.ff_out = Linear(width, 4 * width, rngs), Linear(4 * width, width, rngs)
        self.heads, self.rate = config.num_heads, config.dropout

    def keys_values(self, context: Array) -> tuple[Array, Array]:
        """[B, S, E] -> two of [B, S, heads, head width]."""
        return split_heads(self.k(context), self.heads), split_heads(self.v(context), self.heads)

    def attended(self, x: Array, kv: tuple[Array, Array], weight: Array, key: Array | None) -> Array:
        """What attention adds to x [B, C, E]."""
        q = split_heads(self.q(self.norm1(x)), self.heads)
        return self.out(merge_heads(attend(q, *kv, bias=weight[:, None], dropout_rate=self.rate, key=key)))

    def __call__(self, x: Array, time: Array, kv: tuple[Array, Array], weight: Array, key: Array | None) -> Array:
        """x [B, C, E] at the time rows [B, E]; `weight` is that of a `Condition`."""
        x = x + self.attended(x, kv, weight, key)
        h = self.norm2(x) + time[:, None]
        return x + self.ff_out(gelu_exact(self.ff_in(h)))


class Condition(NamedTuple):
    """What does not change over the solver's steps.

    Attributes:
        kv: keys and values of the context in every block, two of [K, B, S + 1, heads, head width].
        weight: float32 [B, S + 1], logarithm of how many tokens each stands for.
        category: int [B].
    """

    kv: tuple[Array, Array]
    weight: Array
    category: Array


class CrossAttentionHead(nnx.Module):
    """The velocity field of the flow. A chunk of one action is read by one linear layer, `single`."""

    def __init__(self, config: CrossAttentionConfig, rngs: nnx.Rngs):
        width, action, kinds = config.width, config.action_dim, config.categories
        self.time_table = Table(config.times, width)
        if config.horizon > 1:
            self.position_table = Table(config.horizon, width)
            self.action_encoder = Encoder((action, width, width, width), kinds, rngs)
        else:
            self.single = Linear(action, width, rngs)
        self.state_encoder = Encoder((config.state_dim, config.state_hidden_size, width), kinds, rngs)
        self.blocks = stacked(lambda r: Block(config, r), config.num_layers, rngs)
        self.norm_out = LayerNorm(width)
        self.pool = Linear(config.horizon * width, width, rngs)
        self.decoder = Encoder((width, config.hidden_size, config.horizon * action), kinds, rngs)
        self.config = config

    def condition(self, context: Array, copies: Array, state: Array, category: Array) -> Condition:
        """Of context tokens [B, S, E] and how many alike each stands for, int [B, S]; of states [B, D] of robots of
        the kinds int [B]. The state's token comes last."""
        context = jnp.concatenate([context, self.state_encoder(state, category)[:, None]], 1)
        weight = jnp.log(jnp.pad(copies, [(0, 0), (0, 1)], constant_values=1).astype(jnp.float32))
        _, kv = scan_layers(self.blocks, lambda block, carry, _: (carry, block.keys_values(context)), None)
        return Condition(kv, weight, category)

    def tokens(self, actions: Array, category: Array) -> Array:
        """Noisy actions [B, C, A] as tokens [B, C, E]."""
        if self.config.horizon == 1:
            return self.single(actions)
        return self.action_encoder(actions, category, self.position_table())

    def velocity(
        self,
        condition: Condition,
        actions: Array,
        time: Array,
        key: Array | None = None,
        *,
        remat: bool | str = False,
    ) -> Array:
        """Velocity of the noisy `actions` [B, C, A] at the rows `time` int [B] of the table: [B, C, A].

        `key` turns dropout on; `remat` recomputes blocks in the backward pass.
        """
        config, rows = self.config, self.time_table()[time]

        def body(block, x, scanned):
            kv, key = scanned
            return block(x, rows, kv, condition.weight, key), None

        keys = None if key is None else jax.random.split(key, config.num_layers)
        x, _ = scan_layers(
            self.blocks, body, self.tokens(actions, condition.category), (condition.kv, keys), remat=remat
        )
        return self.decode(self.norm_out(x), condition.category)

    def decode(self, x: Array, category: Array) -> Array:
        """Tokens [B, C, E] after the last norm to velocities [B, C, A]."""
        pooled = self.pool(x.reshape(len(x), -1)) if self.config.horizon > 1 else x[:, 0]
        return self.decoder(pooled, category).reshape(len(x), self.config.horizon, -1)


def repeat_condition(condition: Condition, times: int) -> Condition:
    """Tiles the sample axis of a condition (draw r of sample i is row r * B + i)."""
    kv = jax.tree.map(lambda x: jnp.tile(x, [1, times, 1, 1, 1]), condition.kv)
    return Condition(kv, jnp.tile(condition.weight, [times, 1]), jnp.tile(condition.category, times))
