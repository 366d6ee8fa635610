"""Qwen3-VL learns answers: rows as it reads them, logits of what it should say; see `backbones.chat.Lessons`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.backbones.chat import Grid, PixelBounds
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.images import fitted_size, image_patches
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.positions import grid_tables, image_slots, token_positions
from mem0_jax.nn import module


class Lessons:
    """Rows of a model of these sizes."""

    def __init__(self, config: Qwen3VLConfig):
        self.config, self.mark = config, config.tokens.image
        self._bind = module.bind(partial(Qwen3VL, config))

    def grid(self, height: int, width: int, bounds: PixelBounds) -> Grid:
        """Of an image of so many pixels."""
        patch = self.config.vision.patch_size
        height, width = fitted_size(height, width, patch * self.config.vision.spatial_merge_size, bounds)
        return 1, height // patch, width // patch

    def tokens(self, grid: Grid) -> int:
        """Of an image."""
        return grid[1] * grid[2] // self.config.vision.spatial_merge_size**2

    def patches(self, image: np.ndarray, bounds: PixelBounds) -> tuple[np.ndarray, Grid]:
        """See `images.image_patches`."""
        return image_patches(image, self.config.vision, bounds)

    def arrays(
        self, ids: np.ndarray, images: Sequence[tuple[np.ndarray, int]], grids: Sequence[Grid], size: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """patches [V, P, C], patch_mask [V, P], grid_id [V], input_ids, attention_mask, image_slot [S], position [3, S]
        of a row, see `positions.arrays_of`."""
        config, (views, longest, length) = self.config, size
        row = np.full((1, length), config.tokens.pad, np.int32)
        row[0, : len(ids)] = ids
        mask = np.arange(length)[None] < len(ids)
        patches = np.zeros((views, longest, config.vision.patch_width), np.uint8)
        patch_mask, grid_id = np.zeros((views, longest), bool), np.zeros(views, np.int32)
        for view, (own, number) in enumerate(images):
            patches[view, : len(own)], patch_mask[view, : len(own)], grid_id[view] = own, True, number
        seen = [grids[number] for _, number in images]
        most = longest // config.vision.spatial_merge_size**2
        return {
            "patches": patches,
            "patch_mask": patch_mask,
            "grid_id": grid_id,
            "input_ids": row[0],
            "attention_mask": mask[0],
            "position": token_positions(row, mask, seen, config)[0],
            "image_slot": image_slots(row, [[self.tokens(grid) for grid in seen]], most, config.tokens.image)[0],
        }

    def logits(self, params: Any, batch: Mapping[str, Any], grids: Sequence[Grid], dtype: str, remat: Any) -> jax.Array:
        """Logits float32 [B, A, vocabulary] of each token of the answers, given all before it.

        Only these positions meet the vocabulary: [B, S, vocabulary] is never formed.
        """
        model = self._bind(params)
        tables = {name: jnp.asarray(table) for name, table in grid_tables(grids, self.config.vision).items()}
        normed = model.encode({**batch, **tables}, jnp.dtype(dtype), remat=remat).normed
        places = jnp.take_along_axis(normed, batch["target_place"][..., None], 1)
        if self.config.text.tie_word_embeddings:
            form, table = "bah,vh->bav", model.language_model.embed_tokens.embedding[...]
        else:
            form, table = "bah,hv->bav", model.lm_head.kernel[...]
        return jnp.einsum(form, places, table.astype(places.dtype), preferred_element_type=jnp.float32)
