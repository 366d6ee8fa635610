"""Vision tower and text stack together. Axis letters as in `positions`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.text import TextStack
from mem0_jax.backbones.qwen3_vl.vision import VisionTower
from mem0_jax.nn.layers import Linear

Array = jax.Array


class Features(NamedTuple):
    """What `encode` gives: the last layer's hidden states [B, S, H] before and after the final norm.

    transformers 4.57 calls the first `hidden_states[-1]`, transformers 5 the second.
    """

    hidden: Array
    normed: Array


class Qwen3VL(nnx.Module):
    """The backbone; parameters under `visual` and `language_model`, and `lm_head` where it is not tied."""

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs):
        self.visual = VisionTower(config.vision, rngs)
        self.language_model = TextStack(config.text, rngs)
        if not config.text.tie_word_embeddings:
            self.lm_head = Linear(config.text.hidden_size, config.text.vocab_size, rngs, bias=False)

    def encode(self, arrays: dict[str, Array], dtype=jnp.float32, *, remat: bool | str = False) -> Features:
        """Encodes a batch of prompts with images.

        Args:
            arrays: from `positions.arrays_of` (as JAX or NumPy arrays). uint8 patches are mapped to [-1, 1].
            dtype: compute dtype of both stacks.
            remat: recompute layers in the backward pass.
        """
        batch, views = arrays["patches"].shape[:2]
        images = {
            k: arrays[k].reshape(batch * views, *arrays[k].shape[2:]) for k in ("patches", "patch_mask", "grid_id")
        }
        tables = {k: arrays[k] for k in ("row_column", "table_index", "table_weight")}
        tokens, deepstack = self.visual(normalised(images.pop("patches"), dtype), images | tables, remat=remat)
        tokens = tokens.reshape(batch, -1, tokens.shape[-1])
        if deepstack is not None:
            deepstack = deepstack.reshape(len(deepstack), *tokens.shape)
        hidden = self.language_model(tokens, deepstack, arrays, dtype, remat=remat)
        return Features(hidden, self.language_model.norm(hidden))


def normalised(patches: Array, dtype) -> Array:
    """uint8 pixels to [-1, 1] (mean and std 0.5 of the Qwen3-VL image processor); floats pass as they are."""
    if patches.dtype == jnp.uint8:
        patches = patches.astype(jnp.float32) / 127.5 - 1.0
    return patches.astype(dtype)
