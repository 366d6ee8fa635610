"""Tensors that are read only when asked for: what they have in common, and one that lies in a file."""

import math
import zlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mem0_jax.convert.files import Parts, PartsError

BLOCK_BYTES = 2**24
FLOATS = ("float16", "bfloat16", "float32", "float64")


class Tensor(Protocol):
    """A tensor that is read when its turn comes. NumPy arrays stand for themselves wherever one is expected.

    `same_as(other) -> bool`, where there is one, tells tied ones.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of an element."""
        ...

    def read(self) -> np.ndarray:
        """The values; raises OSError or PartsError where the file does not give them."""
        ...


def array_of(tensor: Any) -> np.ndarray:
    """The values of a `Tensor` or an array."""
    return tensor.read() if hasattr(tensor, "read") else np.asarray(tensor)


def nbytes(tensor: Any) -> int:
    """Bytes of the values of a `Tensor` or an array."""
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def is_float(tensor: Any) -> bool:
    """Whether a `Tensor` or an array holds numbers as weights are, and no integers or complex ones."""
    return np.dtype(tensor.dtype).name in FLOATS


@dataclass
class Checksum:
    """The CRC-32 of a run of bytes of a file, compared when what lies there is first read.

    Attributes:
        parts: the file.
        start, size: of the run, in bytes.
        expected: as the file holds it.
        name: of what lies there, for messages.
    """

    parts: Parts
    start: int
    size: int
    expected: int
    name: str
    _good: bool = False

    def problem(self) -> str:
        """Reads the run block by block, until it was found good: "" if it is."""
        if self._good:
            return ""
        found, end = 0, self.start + self.size
        for at in range(self.start, end, BLOCK_BYTES):
            found = zlib.crc32(self.parts.read(at, min(BLOCK_BYTES, end - at)).data, found)
        self._good = found == self.expected
        if self._good:
            return ""
        return f"{self.parts.within(self.start, end)}{self.name} does not match its checksum: damaged, copy it again"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies; the numbers stay in the file until `read`.

    Attributes:
        parts: the file.
        storage: name of the run of bytes that holds the tensor; tensors may share one.
        start: byte of the file at which the storage begins.
        dtype: of an element, little-endian.
        shape: of the tensor.
        strides: elements, not bytes, from one index to the next, by axis.
        offset: elements from the begin of the storage to the first of the tensor.
        checksum: of the storage, where the file has one.
    """

    parts: Parts
    storage: str
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    checksum: Checksum | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of a contiguous copy."""
        return math.prod(self.shape) * self.dtype.itemsize

    def same_as(self, other: Any) -> bool:
        """Whether both are one tensor under two names (tied): same storage, offset, shape and strides."""
        return isinstance(other, StoredTensor) and self == other

    def read(self) -> np.ndarray:
        """The tensor, read only. Maps just its own bytes and lets go of them with the array.

        Raises:
            PartsError: the file does not give the bytes, or they do not match the checksum.
        """
        self._check()
        return self._shaped(self.parts.read(*self._range()))

    def view(self, whole: np.ndarray) -> np.ndarray:
        """The tensor as a view of the bytes of the whole file, uint8 [parts.size]; raises as `read`."""
        self._check()
        first, count = self._range()
        return self._shaped(whole[first : first + count])

    def _check(self) -> None:
        if self.checksum is not None and (problem := self.checksum.problem()):
            raise PartsError(f"{self.parts.path}: {problem}")

    def _range(self) -> tuple[int, int]:
        """First byte in the file, and bytes up to the last element."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        elements = 1 + last if math.prod(self.shape) else 0
        return self.start + self.offset * self.dtype.itemsize, elements * self.dtype.itemsize

    def _shaped(self, raw: np.ndarray) -> np.ndarray:
        flat = raw.view(self.dtype)
        if not flat.size:
            return flat.reshape(self.shape)
        steps = tuple(s * self.dtype.itemsize if n > 1 else 0 for n, s in zip(self.shape, self.strides))
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
