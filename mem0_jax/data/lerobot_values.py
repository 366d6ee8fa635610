"""A feature of all frames, put together from the columns of many files, which may hold it in different types.

Axes: F frames of the whole dataset, R rows of one file, *S the declared shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mem0_jax.data import parquet


class Numbers:
    """A numeric feature."""

    def __init__(self, feature: Mapping[str, Any], frames: int):
        self._dtype, self._shape = np.dtype(feature["dtype"]), tuple(feature["shape"])
        self._values = np.empty((frames, *(() if self._shape == (1,) else self._shape)), self._dtype)

    @staticmethod
    def frame_bytes(feature: Mapping[str, Any]) -> int:
        """Bytes of one frame."""
        return np.dtype(feature["dtype"]).itemsize * math.prod(feature["shape"])

    def put(self, rows: np.ndarray, column: pa.ChunkedArray, where: str) -> None:
        """Set the frames `rows` int64 [R]; DatasetError if the column does not hold what is declared."""
        self._values[rows] = parquet.as_declared(parquet.numeric(column, self._shape, where), self._dtype, where)

    def result(self) -> np.ndarray:
        """Return [F] for shape (1,), else [F, *S]."""
        return self._values


class Texts:
    """A string feature."""

    def __init__(self, frames: int):
        self._ids, self._known = np.empty(frames, np.int32), {}

    def put(self, rows: np.ndarray, column: pa.ChunkedArray, where: str) -> None:
        """Set the frames `rows` int64 [R]; DatasetError if the column does not hold texts."""
        ids, texts = parquet.text(column, where)
        number = np.array([self._known.setdefault(text, len(self._known)) for text in texts], np.int32)
        self._ids[rows] = number[ids]

    def result(self) -> tuple[np.ndarray, list[str]]:
        """Return (ids int32 [F], the distinct texts)."""
        return self._ids, list(self._known)
