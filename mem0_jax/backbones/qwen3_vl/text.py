"""The text stack: a causal decoder with per-head q/k norms, SwiGLU and multi-axis rotary positions.

Axis letters: B samples, S tokens, H width, K deepstack taps, R rows of image tokens of a sample (all its views).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.qwen3_vl.config import TextConfig
from mem0_jax.nn import rope
from mem0_jax.nn.decoder import Layer, at_slots
from mem0_jax.nn.layers import Embedding, RMSNorm
from mem0_jax.nn.stack import scan_layers, stacked

Array = jax.Array


class TextStack(nnx.Module):
    """Token embeddings, decoder layers, final norm. The embedding table is tied to the language-model head."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs)
        self.layers = stacked(lambda r: Layer(config, r, norms=True), config.num_hidden_layers, rngs)
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
        is_image = (arrays["image_slot"] >= 0)[..., None]

        def placed(image_rows: Array) -> Array:
            return at_slots(arrays["image_slot"], image_rows.astype(dtype))

        x = jnp.where(is_image, placed(tokens), self.embed_tokens(arrays["input_ids"], dtype))
        angle = rope.mrope_angles(
            jnp.moveaxis(arrays["position"], 1, 0), config.head_dim, config.rope_theta, config.mrope_section
        )
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        mask = causal & arrays["attention_mask"][:, None]

        def add_deepstack(deepstack: Array, x: Array, index: Array) -> Array:
            return x + placed(deepstack[index])

        def body(layer, x, index):
            x, _ = layer(x, angle, mask)
            if deepstack is not None:
                x = jax.lax.cond(index < len(deepstack), add_deepstack, lambda _, x, __: x, deepstack, x, index)
            return x, None

        return scan_layers(self.layers, body, x, jnp.arange(config.num_hidden_layers), remat=remat)[0]
