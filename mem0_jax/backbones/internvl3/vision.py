"""The vision tower and the projector.

Axis letters: I images, N pixels along a side, P patches of an image, D tower width, M image tokens, H text width.
Names follow Hugging Face's.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.internvl3.config import InternVL3Config, VisionConfig
from mem0_jax.nn.attention import attend, merge_heads, split_heads
from mem0_jax.nn.layers import LayerNorm, Linear, gelu_exact
from mem0_jax.nn.stack import scan_layers, stacked

Array = jax.Array
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Attention(nnx.Module):
    """Full self-attention within one image."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.q, self.k, self.v, self.proj = (Linear(width, width, rngs) for _ in range(4))
        self.heads = config.num_attention_heads

    def __call__(self, x: Array) -> Array:
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        return self.proj(merge_heads(attend(q, k, v)))


class Block(nnx.Module):
    """Pre-norm transformer block with an exact GELU; what it adds is scaled number by number (Touvron et al., 2021)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.norm1, self.norm2 = (LayerNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        self.attn = Attention(config, rngs)
        self.fc1 = Linear(width, config.intermediate_size, rngs)
        self.fc2 = Linear(config.intermediate_size, width, rngs)
        self.lambda_1, self.lambda_2 = (nnx.Param(jnp.full((width,), 0.1)) for _ in range(2))

    def __call__(self, x: Array) -> Array:
        x = x + self.lambda_1[...].astype(x.dtype) * self.attn(self.norm1(x))
        return x + self.lambda_2[...].astype(x.dtype) * self.fc2(gelu_exact(self.fc1(self.norm2(x))))


class VisionTower(nnx.Module):
    """Images to features of their patches; the last block is followed by no norm."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        self.patch_embed = Linear(3 * config.patch_size**2, width, rngs)
        self.cls_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, width)))
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.side**2 + 1, width)))
        self.blocks = stacked(lambda r: Block(config, r), config.num_hidden_layers, rngs)
        self.config = config

    def embed(self, pixels: Array) -> Array:
        """Normalised pixels [I, N, N, 3]: class token and patches, row by row, with their positions: [I, 1 + P, D]."""
        side, patch = self.config.side, self.config.patch_size
        cut = pixels.reshape(-1, side, patch, side, patch, 3).transpose(0, 1, 3, 5, 2, 4)
        patches = self.patch_embed(cut.reshape(len(pixels), side**2, -1))
        first = jnp.broadcast_to(self.cls_token[...].astype(pixels.dtype), (len(pixels), 1, patches.shape[-1]))
        return jnp.concatenate([first, patches], 1) + self.position[...].astype(pixels.dtype)

    def __call__(self, pixels: Array, *, remat: bool | str = False) -> Array:
        """Features of the class token and the patches [I, 1 + P, D]; `remat` recomputes blocks in the backward pass."""
        return scan_layers(self.blocks, lambda block, x, _: (block(x), None), self.embed(pixels), remat=remat)[0]


def normalised(pixels: Array, dtype) -> Array:
    """uint8 pixels [..., 3] to ImageNet's mean and deviation. The arithmetic is in `dtype`, as in the original: in
    bfloat16 that rounds four times."""
    mean, std = (jnp.asarray(values, dtype) for values in (MEAN, STD))
    return ((pixels.astype(jnp.float32) / 255).astype(dtype) - mean) / std


def pixel_shuffle(patches: Array, side: int, merge: int) -> Array:
    """Patches [I, P, D] of a grid of `side` rows, row by row, to [I, M, merge^2 D]: each token has those of a square,
    row by row."""
    squares = patches.reshape(-1, side // merge, merge, side // merge, merge, patches.shape[-1])
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(len(patches), (side // merge) ** 2, -1)


class Projector(nnx.Module):
    """Tokens of the shuffle [I, M, merge^2 D] to the text width [I, M, H]."""

    def __init__(self, config: InternVL3Config, rngs: nnx.Rngs):
        joined, width = config.vision.hidden_size * config.merge**2, config.text.hidden_size
        self.norm = LayerNorm(joined, eps=config.projector_norm_eps)
        self.linear_1, self.linear_2 = Linear(joined, width, rngs), Linear(width, width, rngs)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(gelu_exact(self.linear_1(self.norm(x))))
