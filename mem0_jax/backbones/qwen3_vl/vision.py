"""The vision tower.

Axis letters: I images, P patches, C numbers of a patch, D tower width, M image tokens (P / merge^2), H text width,
G distinct grids, K deepstack taps. Names follow Hugging Face's.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.qwen3_vl.config import VisionConfig
from mem0_jax.nn import rope
from mem0_jax.nn.attention import attend, merge_heads, split_heads
from mem0_jax.nn.layers import Embedding, LayerNorm, Linear, gelu_exact, gelu_tanh
from mem0_jax.nn.stack import scan_layers, stacked

Array = jax.Array
NORM_EPS = 1e-6


class Attention(nnx.Module):
    """Full self-attention within one image."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.q, self.k, self.v, self.proj = (Linear(width, width, rngs) for _ in range(4))
        self.heads = config.num_heads

    def __call__(self, x: Array, angle: Array, mask: Array) -> Array:
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        return self.proj(merge_heads(attend(rope.rotate(q, angle), rope.rotate(k, angle), v, mask)))


class Block(nnx.Module):
    """Pre-norm transformer block with a tanh-GELU MLP."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (LayerNorm(config.hidden_size, eps=NORM_EPS) for _ in range(2))
        self.attn = Attention(config, rngs)
        self.linear_fc1 = Linear(config.hidden_size, config.intermediate_size, rngs)
        self.linear_fc2 = Linear(config.intermediate_size, config.hidden_size, rngs)

    def __call__(self, x: Array, angle: Array, mask: Array) -> Array:
        x = x + self.attn(self.norm1(x), angle, mask)
        return x + self.linear_fc2(gelu_tanh(self.linear_fc1(self.norm2(x))))


class Merger(nnx.Module):
    """Joins merge x merge neighbouring patches into one token of the text width: [I, P, D] -> [I, M, H]."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs, *, norm_after_shuffle: bool):
        self.joined = config.hidden_size * config.spatial_merge_size**2
        self.norm_after_shuffle = norm_after_shuffle
        self.norm = LayerNorm(self.joined if norm_after_shuffle else config.hidden_size, eps=NORM_EPS)
        self.linear_fc1 = Linear(self.joined, self.joined, rngs)
        self.linear_fc2 = Linear(self.joined, config.out_hidden_size, rngs)

    def __call__(self, x: Array) -> Array:
        shape = (x.shape[0], -1, self.joined)
        x = self.norm(x.reshape(shape)) if self.norm_after_shuffle else self.norm(x).reshape(shape)
        return self.linear_fc2(gelu_exact(self.linear_fc1(x)))


class VisionTower(nnx.Module):
    """Patches to image tokens, with deepstack features for the first text layers."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.patch_embed = Linear(config.patch_width, config.hidden_size, rngs)
        self.pos_embed = Embedding(config.num_position_embeddings, config.hidden_size, rngs)
        self.blocks = stacked(lambda r: Block(config, r), config.depth, rngs)
        self.merger = Merger(config, rngs, norm_after_shuffle=False)
        self.taps = config.deepstack_visual_indexes
        self.deepstack_mergers = (
            stacked(lambda r: Merger(config, r, norm_after_shuffle=True), len(self.taps), rngs) if self.taps else None
        )
        self.head_width = config.hidden_size // config.num_heads

    def __call__(
        self, patches: Array, arrays: dict[str, Array], *, remat: bool | str = False
    ) -> tuple[Array, Array | None]:
        """Encodes images.

        Args:
            patches: [I, P, C] normalised, in the compute dtype.
            arrays: patch_mask, grid_id, row_column, table_index, table_weight of `positions.arrays_of`.
            remat: recompute blocks in the backward pass.

        Returns:
            Image tokens [I, M, H] and deepstack features [K, I, M, H] (None without taps).
        """
        table = self.pos_embed.embedding[...][arrays["table_index"]]  # [G, P, 4, D]
        learned = (table * arrays["table_weight"][..., None]).sum(2)
        angle = rope.vision_angles(arrays["row_column"], self.head_width)[arrays["grid_id"]]
        mask = arrays["patch_mask"][:, None]
        x = self.patch_embed(patches) + learned[arrays["grid_id"]].astype(patches.dtype)

        def body(block, x, _):
            x = block(x, angle, mask)
            return x, x if self.taps else None

        x, hidden = scan_layers(self.blocks, body, x, remat=remat)
        if self.deepstack_mergers is None:
            return self.merger(x), None
        tapped = hidden[jnp.array(self.taps)]
        _, deepstack = scan_layers(self.deepstack_mergers, lambda merger, carry, h: (carry, merger(h)), None, tapped)
        return self.merger(x), deepstack
