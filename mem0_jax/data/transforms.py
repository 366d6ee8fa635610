"""Plain functions on pictures and action chunks.

Axes: H, W picture height and width; T frames of a window; C horizon of an action chunk; D numbers of an action.
Pictures are uint8 RGB, vectors float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as torchvision and PIL weigh grey


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
