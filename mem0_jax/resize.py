"""Pictures to other sizes, on the host. Axes: H, W picture height and width, h, w those asked for."""

from functools import lru_cache

import numpy as np
from PIL import Image

_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize(picture: np.ndarray, size: tuple[int, int] | None, resample: str) -> np.ndarray:
    """Resize uint8 [H, W, 3] to `size` = (height, width), antialiased, ignoring the aspect ratio.

    "bilinear" and "bicubic" are Pillow's, which rounds after each axis. "bicubic_once" is torchvision's: the same
    filter, over both axes in float32, then clipped and rounded. `size` None, or the picture's own, returns it
    unchanged.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"picture is {picture.dtype} {list(picture.shape)}; expected uint8 [H, W, 3] RGB")
    if size is None or picture.shape[:2] == tuple(size):
        return picture
    if resample == "bicubic_once":
        rows, columns = (_cubic(*lengths) for lengths in zip(picture.shape[:2], size))
        narrowed = columns @ picture.astype(np.float32)  # [H, w, 3]
        resized = (rows @ narrowed.reshape(len(narrowed), -1)).reshape(*size, 3)
        return np.rint(np.clip(resized, 0, 255)).astype(np.uint8)
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), _RESAMPLE[resample]))


@lru_cache(maxsize=64)
def _cubic(before: int, after: int) -> np.ndarray:
    """Weights float32 [after, before] of Keys' cubic (a = -1/2) along one axis: centres lie half a pixel in, the filter
    widens with the step where it is above one, and its weights are made to add up to one at the borders.

    Rounded as torchvision rounds them, for that decides where a value is halfway between two levels: float32, with the
    multiply-adds of the polynomials fused.
    """
    step = np.float32(before) / np.float32(after)
    centre = (np.float64(step) * (np.arange(after) + 0.5)).astype(np.float32)
    offset = (np.arange(before, dtype=np.float32) - centre[:, None]).astype(np.float64) + 0.5
    x = np.abs(offset / max(np.float64(step), 1.0)).astype(np.float32)
    near = _fused(_fused(1.5, x, -2.5) * x, x, 1)
    far = _fused(_fused(_fused(-0.5, x, 2.5), x, -4), x, 2)
    weights = np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))
    return weights / np.add.accumulate(weights, 1)[:, -1:]


def _fused(a: float | np.ndarray, x: np.ndarray, b: float) -> np.ndarray:
    """a x + b of float32 numbers, rounded once."""
    return (np.float64(a) * x + b).astype(np.float32)
