"""Vision tower, projector and text stack together.

Axis letters: B samples, V images of a sample, N pixels along a side, M tokens of an image, S tokens of a prompt,
H text width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.internvl3.config import InternVL3Config, TextConfig
from mem0_jax.backbones.internvl3.vision import Projector, VisionTower, normalised, pixel_shuffle
from mem0_jax.nn import rope
from mem0_jax.nn.decoder import Layer, at_slots
from mem0_jax.nn.layers import Embedding, RMSNorm
from mem0_jax.nn.stack import scan_layers, stacked

Array = jax.Array


class TextStack(nnx.Module):
    """Token embeddings, decoder layers with biases on q, k and v, final norm."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs)
        self.layers = stacked(lambda r: Layer(config, r, bias=True), config.num_hidden_layers, rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.config = config

    def embed(self, tokens: Array, arrays: dict[str, Array], dtype) -> Array:
        """Embeddings [B, S, H]: those of `tokens` [B, R, H] stand where `image_slot` says."""
        words = self.embed_tokens(arrays["input_ids"], dtype)
        is_image = (arrays["image_slot"] >= 0)[..., None]
        return jnp.where(is_image, at_slots(arrays["image_slot"], tokens.astype(dtype)), words)

    def __call__(
        self, x: Array, arrays: dict[str, Array], *, silent_hidden: bool = False, remat: bool | str = False
    ) -> Array:
        """Hidden states [B, S, H] after the final norm.

        Args:
            x: embeddings [B, S, H].
            arrays: `position` int [B, S] and `visible` bool [B, S]: which tokens may be attended to.
            silent_hidden: a token that may not be attended to attends to nothing itself: its attention adds 0. It is
                what a kernel gives that never computes such rows.
            remat: recompute layers in the backward pass.
        """
        config, visible = self.config, arrays["visible"]
        angle = arrays["position"][..., None].astype(jnp.float32) * rope.inverse_frequencies(
            config.head_dim, config.rope_theta
        )
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool)) & visible[:, None]
        heard = visible[..., None] if silent_hidden else None

        def body(layer, x, _):
            return layer(x, angle, mask, heard=heard)[0], None

        return self.norm(scan_layers(self.layers, body, x, remat=remat)[0])


class InternVL3(nnx.Module):
    """The backbone; parameters under `vision_tower`, `projector` and `language_model`."""

    def __init__(self, config: InternVL3Config, rngs: nnx.Rngs):
        self.vision_tower = VisionTower(config.vision, rngs)
        self.projector = Projector(config, rngs)
        self.language_model = TextStack(config.text, rngs)
        self.config = config

    def image_tokens(self, pixels: Array, dtype=jnp.float32, *, remat: bool | str = False) -> Array:
        """uint8 pixels [I, N, N, 3] to tokens [I, M, H]."""
        patches = self.vision_tower(normalised(pixels, dtype), remat=remat)[:, 1:]
        return self.projector(pixel_shuffle(patches, self.config.vision.side, self.config.merge))

    def encode(
        self,
        arrays: dict[str, Array],
        dtype=jnp.float32,
        *,
        black: bool = False,
        silent_hidden: bool = False,
        remat: bool | str = False,
    ) -> Array:
        """Encodes a batch of prompts with images: hidden states [B, S, H] after the final norm, in `dtype`.

        Args:
            arrays: of `processor.Processor.prepare`: pixels [B, V, N, N, 3], input_ids, position, visible, image_slot.
            dtype: compute dtype of both stacks.
            black: slots may point to the tokens of a black image, which follow those of `pixels`.
            silent_hidden: see `TextStack`.
            remat: recompute layers in the backward pass.
        """
        pixels = arrays["pixels"]
        batch, views = pixels.shape[:2]
        tokens = self.image_tokens(pixels.reshape(batch * views, *pixels.shape[2:]), dtype, remat=remat)
        tokens = tokens.reshape(batch, -1, tokens.shape[-1])
        if black:
            last = self.image_tokens(jnp.zeros((1, *pixels.shape[2:]), pixels.dtype), dtype, remat=remat)
            tokens = jnp.concatenate([tokens, jnp.broadcast_to(last, (batch, *last.shape[1:]))], 1)
        x = self.language_model.embed(tokens, arrays, dtype)
        return self.language_model(x, arrays, silent_hidden=silent_hidden, remat=remat)
