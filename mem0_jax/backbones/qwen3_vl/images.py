"""Images of any size as patches, at a resolution that follows their own (Qwen3-VL's dynamic resolution).

Axis letters: h, w image height and width, P patches of the image, C numbers of a patch.
Source: Qwen3-VL's image processor (behaviour of transformers 4.57.1 and 5, the variants on PIL images).
"""

import math

import numpy as np
from PIL import Image

from mem0_jax.backbones.chat import Grid, PixelBounds
from mem0_jax.backbones.qwen3_vl.config import VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import patchify
from mem0_jax.errors import UserError

MAX_ASPECT = 200  # longer strips leave no pixel across once the area is bounded


def fitted_size(height: int, width: int, side: int, bounds: PixelBounds) -> tuple[int, int]:
    """(height, width) an image is resized to: multiples of `side` near its own, with an area within the bounds.

    The aspect ratio is kept as far as whole tokens allow; an image that is too small or too large is scaled by the
    square root of the ratio of areas, rounded so that the bound holds.

    Args:
        height, width: of the image.
        side: pixels along the side of a token, patch_size * spatial_merge_size.
        bounds: of the area.

    Raises:
        UserError: no such size, as the image is empty or a strip more than `MAX_ASPECT` times as long as wide.
    """
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(f"an image of {width}x{height} pixels: expected sides in a ratio of at most {MAX_ASPECT}")
    rows, columns = round(height / side), round(width / side)
    area = rows * columns * side**2
    if area > bounds.max_pixels:
        scale = math.sqrt(height * width / bounds.max_pixels)
        rows, columns = (max(1, math.floor(length / scale / side)) for length in (height, width))
    elif area < bounds.min_pixels:
        scale = math.sqrt(bounds.min_pixels / (height * width))
        rows, columns = (math.ceil(length * scale / side) for length in (height, width))
    return rows * side, columns * side


def most_tokens(side: int, bounds: PixelBounds) -> int:
    """No image that is resized within `bounds` has more tokens of `side` x `side` pixels; see `fitted_size`."""
    least, most = bounds.min_pixels / side**2, bounds.max_pixels / side**2
    strip = math.sqrt(MAX_ASPECT * least)  # tokens along the longest one of the least area, whose sides are rounded up
    return math.ceil(max(most, math.sqrt(MAX_ASPECT * most), least + strip + strip / MAX_ASPECT + 1))


def image_patches(image: np.ndarray, config: VisionConfig, bounds: PixelBounds) -> tuple[np.ndarray, Grid]:
    """One image as the tower takes it.

    Args:
        image: uint8 [h, w, 3].
        config: of the tower.
        bounds: of the resized image; the resize is bicubic.

    Returns:
        uint8 patches [P, C] in merge order, and their grid.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"an image {image.dtype} {list(image.shape)}: expected uint8 [height, width, 3]")
    side = config.patch_size * config.spatial_merge_size
    height, width = fitted_size(image.shape[0], image.shape[1], side, bounds)
    if (height, width) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    return patchify(image, config), (1, height // config.patch_size, width // config.patch_size)
