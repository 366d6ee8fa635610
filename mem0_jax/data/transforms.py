"""Plain functions on pictures and action chunks.

Axes: H, W picture height and width; T frames of a window; C horizon of an action chunk; D numbers of an action.
Pictures are uint8 RGB, vectors float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as torchvision and PIL weigh grey


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
    """Weights [after, before] of Keys' cubic (a = -1/2) along one axis: centres lie half a pixel in, the filter widens
    with the step where it is above one, and its weights are made to add up to one at the borders."""
    one = np.float32(1)  # in float32 as torchvision: its roundings decide where a pixel is halfway between two values
    step = before * one / after
    centre = (np.arange(after, dtype=np.float32) + one / 2) * step - one / 2
    x = np.abs(centre[:, None] - np.arange(before, dtype=np.float32)) / max(step, one)
    near, far = ((1.5 * one * x - 2.5 * one) * x) * x + one, ((2.5 * one - x / 2) * x - 4 * one) * x + 2 * one
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0 * one))
    return weights / weights.sum(1, keepdims=True)


@dataclass(frozen=True)
class ColorJitter:
    """Random light: each factor is drawn uniformly from [1 - x, 1 + x], anew for every picture.

    Factors are applied in the fixed order brightness, contrast, saturation, as one linear map of the colours with a
    single rounding and clip at the end (torchvision's order is random, and it clips in between).
    """

    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"jitter {name} is {value}; expected 0 to 1")

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw factors [count, 3] for brightness, contrast, saturation."""
        spread = np.array([self.brightness, self.contrast, self.saturation])
        return 1 + spread * rng.uniform(-1, 1, (count, 3))


def adjust_colors(picture: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Apply brightness b, contrast c, saturation s = `factors` [3] to uint8 [H, W, 3].

    With grey = luma of a pixel and m = mean luma of the picture: brightness gives b x, contrast c x + (1 - c) m,
    saturation s x + (1 - s) grey; composed: s c b x + (1 - s) c b grey + (1 - c) b m.
    """
    b, c, s = (float(f) for f in factors)
    mean = float(np.dot(cv2.mean(picture)[:3], _LUMA))
    matrix = np.empty((3, 4))
    matrix[:, :3] = c * b * (s * np.eye(3) + (1 - s) * _LUMA)
    matrix[:, 3] = (1 - c) * b * mean
    return cv2.transform(picture, matrix)


def action_chunk(actions: np.ndarray, t: int | np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the next `horizon` actions of an episode from frame(s) `t`, repeating its last action past the end.

    Args:
        actions: [N, D] of the whole episode.
        t: frame number, or an array of them.
        horizon: C.

    Returns:
        chunk [..., C, D], and is_pad bool [..., C], true where the episode had ended; `...` is the shape of `t`.
    """
    index = np.asarray(t)[..., None] + np.arange(horizon)
    if np.any(np.asarray(t) < 0) or np.any(np.asarray(t) >= len(actions)):
        raise IndexError(f"frame {t} is outside the episode's {len(actions)} frames")
    return actions[np.minimum(index, len(actions) - 1)], index >= len(actions)
