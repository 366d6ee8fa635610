"""Weights that are no numbers (NaN) or without bound: found while they are read, and refused unless asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from mem0_jax.convert.rules import ConversionError
from mem0_jax.convert.stored import array_of

BLOCK = 2**18  # elements looked at while they are in the processor's cache
SHOWN = 20


def not_finite(name: str, values: np.ndarray, dtype: Any = None) -> str:
    """ "NAME: 3 of 4096 values are not finite, first nan at [0, 5]", "" where all are; looked at as `dtype`."""
    dtype = np.dtype(dtype or values.dtype)
    if values.dtype.kind in "iub":
        return ""
    count, first = 0, None
    table = values.reshape(1) if values.ndim == 0 else values
    rows = max(1, BLOCK // max(1, table[:1].size))
    for start in range(0, len(table), rows):
        with np.errstate(over="ignore", invalid="ignore"):
            block = table[start : start + rows].astype(dtype, copy=False)
        bad = _wrong(block)
        if bad is not None:
            count += int(np.count_nonzero(bad))
            if first is None:
                place = [int(i) for i in np.argwhere(bad)[0]]
                first = f"{block[tuple(place)]} at {[start + place[0], *place[1:]] if values.ndim else []}"
    if not count:
        return ""
    cast = f" as {dtype.name}" if dtype != values.dtype else ""
    return f"{name}: {count} of {values.size} values are not finite{cast}, first {first}"


def _wrong(block: np.ndarray) -> np.ndarray | None:
    """Which elements are not finite; None if all are."""
    half = block.dtype == ml_dtypes.bfloat16  # whose own isfinite takes several times as long
    wrong = (block.view(np.uint16) & 0x7FFF) >= 0x7F80 if half else ~np.isfinite(block)
    return wrong if wrong.any() else None


def refusal(found: Sequence[str]) -> ConversionError:
    """The error that lists tensors which are not finite."""
    more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ConversionError(
        "weights that are not finite; --allow-nonfinite takes them as they are:\n  " + "\n  ".join(found[:SHOWN]) + more
    )


@dataclass(frozen=True)
class Finite:
    """A tensor that refuses to be read where its values are not finite."""

    name: str
    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of an element."""
        return np.dtype(self.tensor.dtype)

    def read(self) -> np.ndarray:
        """The values; raises ConversionError."""
        values = array_of(self.tensor)
        if found := not_finite(self.name, values):
            raise refusal([found])
        return values


def finite(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors, refusing; those that are one and the same stay so."""
    done: dict[int, Finite] = {}
    return {name: done.setdefault(id(tensor), Finite(name, tensor)) for name, tensor in tensors.items()}
