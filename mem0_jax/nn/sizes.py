"""A few sizes that batches are padded to, so that a few compiled programs serve all."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


def sizes_up_to(most: int, growth: int, first: int = 1) -> list[int]:
    """Sizes that are compiled: from `first` times `growth` and again below `most`, and `most`."""
    powers = itertools.takewhile(lambda size: size < most, (first * growth**i for i in itertools.count()))
    return [*powers, most]


def bucket(count: int, sizes: Sequence[int]) -> int:
    """The least of the sizes that holds `count`; the last where none does."""
    return next((size for size in sizes if size >= count), sizes[-1])


def padded(values: Any, size: int, fill: int = 0) -> np.ndarray:
    """`values` as an array whose first axis is filled up to `size`; whole numbers become int32."""
    values = np.asarray(values)
    values = values.astype(np.int32) if values.dtype == np.int64 else values
    out = np.full((size, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
