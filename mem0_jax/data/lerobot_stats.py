"""Statistics of features as LeRobot v3.0 stores them, per episode and for the whole dataset.

Axes: N frames, D feature dimensions, C colour channels. Statistics are nested lists; `count` is [number of frames].
Numbers of the whole dataset are computed from all its values, not averaged over episodes as LeRobot does, which for
quantiles gives neither an upper nor a lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
MAX_PICTURES = 100  # pictures sampled from an episode
MAX_SIDE = 150  # pictures are subsampled to about this many pixels a side


def vector_stats(values: np.ndarray) -> dict[str, Any]:
    """Return the statistics of numbers [N] or [N, ...] over the frames, in float64."""
    x = np.asarray(values, np.float64)
    x = x[:, None] if x.ndim == 1 else x
    stats: dict[str, Any] = {
        "min": x.min(0).tolist(),
        "max": x.max(0).tolist(),
        "mean": x.mean(0).tolist(),
        "std": x.std(0).tolist(),
        "count": [len(x)],
    }
    return stats | dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0).tolist()))


def sampled_pictures(count: int) -> np.ndarray:
    """Which of an episode's `count` pictures enter its statistics, int64 [at most MAX_PICTURES]."""
    return np.linspace(0, count - 1, min(count, MAX_PICTURES)).round().astype(np.int64)


def picture_histogram(pictures: np.ndarray) -> tuple[np.ndarray, int]:
    """Count the grey levels of a sample of uint8 [N, H, W, 3]: (int64 [3, 256], number of pictures sampled)."""
    chosen = sampled_pictures(len(pictures))
    step = max(1, max(pictures.shape[1:3]) // MAX_SIDE)
    sample = pictures[chosen, ::step, ::step]
    return np.stack([np.bincount(sample[..., c].ravel(), minlength=256) for c in range(3)]), len(chosen)


def picture_stats(histograms: Iterable[tuple[np.ndarray, int]]) -> dict[str, Any]:
    """Return the statistics of pictures scaled to [0, 1], each of shape [3, 1, 1], from their histograms."""
    pairs = list(histograms)
    counts = np.sum([pair[0] for pair in pairs], axis=0)
    levels = np.arange(256) / 255.0
    total = counts.sum(1, keepdims=True)
    mean = (counts * levels).sum(1, keepdims=True) / total
    std = np.sqrt((counts * (levels - mean) ** 2).sum(1) / total[:, 0])
    cumulative = np.cumsum(counts, 1) / total

    def shaped(values: Any) -> list[list[list[float]]]:
        return np.asarray(values, np.float64).reshape(3, 1, 1).tolist()

    stats: dict[str, Any] = {
        "min": shaped([levels[np.flatnonzero(row)[0]] for row in counts]),
        "max": shaped([levels[np.flatnonzero(row)[-1]] for row in counts]),
        "mean": shaped(mean),
        "std": shaped(std),
        "count": [sum(pair[1] for pair in pairs)],
    }
    return stats | {
        name: shaped([levels[np.searchsorted(row, q - 1e-12)] for row in cumulative]) for name, q in QUANTILES.items()
    }
