"""Write the zip-format ``.pt`` files that ``torch.load(weights_only=True)`` reads, without torch and tensor by tensor.

The counterpart of ``torch_pt``: a pickle of protocol 2 for the containers, then one zip entry for every storage, its
bytes aligned to 64 as ``torch.save`` aligns them, so that torch may map the file.
"""

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mem0_jax.convert.stored import Tensor, nbytes
from mem0_jax.convert.torch_pt import MAX_DEPTH, ORDERED_DICT, REBUILD_TENSOR, SCALARS, STORAGE_DTYPES
from mem0_jax.convert.torch_zip import LOCAL_HEADER
from mem0_jax.disk import behind, is_stream
from mem0_jax.errors import UserError

ALIGNMENT = 64
BLOCK_BYTES = 2**24
ROOT = "archive"
STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}


class PtWriteError(UserError):
    """A tree that has no place in a ``.pt`` file."""


def write_pt(path: str | os.PathLike[str], tree: Any, progress: Callable[[int], object] | None = None) -> None:
    """Writes a file for ``torch.load(weights_only=True)``.

    Args:
      path: written beside (`.NAME.unfinished`) and renamed when whole.
      tree: dicts (an ``OrderedDict`` stays one, as state dicts are), lists, tuples, str, int, float, bool, None, NumPy
        arrays and `Tensor`. Tensors become contiguous; the same object twice, or tensors of which one is `same_as`
        the other (tied), share a storage. No more than one tensor is in memory at a time.
      progress: called with the number of bytes of each block of tensors written.

    Raises:
      PtWriteError: naming the place in the tree that holds something else, or a tensor that reads as something else
        than it says, or that `path` is no file. OSError: the file cannot be written. Neither leaves a file behind.
    """
    path = Path(path)
    if is_stream(path):
        raise PtWriteError(f"{path} is a device or a pipe: name a file")
    path = behind(path)
    pickler = _Pickler()
    data_pickle = pickler.run(tree)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
            _write_entry(file, archive, "data.pkl", [memoryview(data_pickle)])
            _write_entry(file, archive, "byteorder", [memoryview(b"little")])
            for key, (place, tensor) in enumerate(pickler.storages):
                blocks = little_endian_blocks(place, tensor, progress)
                _write_entry(file, archive, f"data/{key}", blocks, nbytes(tensor))
            _write_entry(file, archive, "version", [memoryview(b"3\n")])
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_entry(file: BinaryIO, archive: zipfile.ZipFile, name: str, blocks: Any, size: int = 0) -> None:
    info = zipfile.ZipInfo(f"{ROOT}/{name}")
    info.file_size = size
    # An extra field of letters, as torch pads: the content begins at a multiple of 64, behind the local header, the
    # name, the head of that field (4 bytes) and the sizes in 64 bits (20), which are written for small entries too.
    padding = -(file.tell() + LOCAL_HEADER.size + len(info.filename) + 4 + 20) % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=True) as entry:
        for block in blocks:
            entry.write(block)


def little_endian_blocks(place: str, tensor: Tensor | np.ndarray, progress: Callable[[int], object] | None):
    """The bytes of a tensor as files hold them, block by block; raises PtWriteError, naming `place`, if it lied."""
    array = tensor if isinstance(tensor, np.ndarray) else tensor.read()
    if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
        raise PtWriteError(
            f"{place}: announced as {np.dtype(tensor.dtype).name} {tuple(tensor.shape)}, but reads as "
            f"{array.dtype.name} {array.shape}"
        )
    content = np.ascontiguousarray(array, little_endian(array.dtype)).reshape(-1).view(np.uint8)
    for start in range(0, content.size, BLOCK_BYTES):
        block = content[start : start + BLOCK_BYTES].data
        yield block
        if progress:
            progress(len(block))


def little_endian(dtype: Any) -> np.dtype:
    """The dtype as files hold it."""
    return np.dtype(dtype).newbyteorder("<")


class _Pickler:
    """Spells a tree in the instructions of ``torch.save``; `storages` are (place in the tree, tensor) by key."""

    def __init__(self):
        self.out = bytearray()
        self.storages: list[tuple[str, Any]] = []
        self.keys: dict[int, int] = {}  # id of a tensor met before -> its storage
        self.alike: dict[Any, list[int]] = defaultdict(list)  # (dtype, shape) -> storages that may be tied

    def run(self, tree: Any) -> bytes:
        self.out += pickle.PROTO + b"\x02"
        self.add(tree, "", 0)
        self.out += pickle.STOP
        return bytes(self.out)

    def add(self, node: Any, place: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise PtWriteError(f"{place:.200}: nested more than {MAX_DEPTH} deep, or holds itself")
        if _is_scalar(node):
            self.scalar(node, place)
        elif isinstance(node, dict):
            self.out += (_global(ORDERED_DICT) + _EMPTY_CALL) if isinstance(node, OrderedDict) else pickle.EMPTY_DICT
            self.out += pickle.MARK
            for key, value in node.items():
                self.key(key, place)
                self.add(value, f"{place}/{key}", depth + 1)
            self.out += pickle.SETITEMS
        elif isinstance(node, list | tuple):
            self.out += pickle.EMPTY_LIST + pickle.MARK if isinstance(node, list) else pickle.MARK
            for index, value in enumerate(node):
                self.add(value, f"{place}/{index}", depth + 1)
            self.out += pickle.APPENDS if isinstance(node, list) else pickle.TUPLE
        elif isinstance(node, np.ndarray) or (hasattr(node, "read") and hasattr(node, "shape")):
            self.tensor(node, place)
        else:
            raise PtWriteError(
                f"{place or 'the root'} is a {type(node).__name__}, expected a dict, list, tuple, text, Python number, "
                "bool, None, NumPy array or tensor with read()"
            )

    def key(self, key: Any, place: str) -> None:
        if not all(map(_is_scalar, key if isinstance(key, tuple) else (key,))):
            raise PtWriteError(
                f"{place or 'the root'}: key {key!r:.80} is a {type(key).__name__}, expected text, a Python number or "
                "a tuple of these"
            )
        self.add(key, place, 0)

    def scalar(self, value: Any, place: str) -> None:
        if value is None:
            self.out += pickle.NONE
        elif isinstance(value, bool):
            self.out += pickle.NEWTRUE if value else pickle.NEWFALSE
        elif isinstance(value, float):
            self.out += pickle.BINFLOAT + struct.pack(">d", value)
        elif isinstance(value, int):
            self.out += _whole(int(value), place)
        else:
            self.out += _text(value, place)

    def tensor(self, tensor: Any, place: str) -> None:
        dtype, shape = little_endian(tensor.dtype), tuple(tensor.shape)
        kind = STORAGE_NAMES.get(dtype)
        if kind is None:
            raise PtWriteError(f"{place or 'the root'}: torch has no storage of dtype {dtype}, convert it first")
        strides = [math.prod(max(n, 1) for n in shape[axis + 1 :]) for axis in range(len(shape))]
        key, elements = self.storage(tensor, place, (dtype, shape)), math.prod(shape)
        self.out += _global(REBUILD_TENSOR) + pickle.MARK
        self.out += pickle.MARK + _text("storage", place) + _global(kind) + _text(str(key), place) + _text("cpu", place)
        self.out += _whole(elements, place) + pickle.TUPLE + pickle.BINPERSID
        self.out += _whole(0, place)
        for numbers in (shape, strides):
            self.out += pickle.MARK + b"".join(_whole(int(n), place) for n in numbers) + pickle.TUPLE
        self.out += pickle.NEWFALSE + _global(ORDERED_DICT) + _EMPTY_CALL  # requires_grad, hooks
        self.out += pickle.TUPLE + pickle.REDUCE

    def storage(self, tensor: Any, place: str, kind: Any) -> int:
        """The key of a tensor's storage, new or that of a tied one."""
        if id(tensor) in self.keys:
            return self.keys[id(tensor)]
        if hasattr(tensor, "same_as"):
            for key in self.alike[kind]:
                if tensor.same_as(self.storages[key][1]):
                    return key
        key = self.keys[id(tensor)] = len(self.storages)
        self.alike[kind].append(key)
        self.storages.append((place, tensor))
        return key


_EMPTY_CALL = pickle.EMPTY_TUPLE + pickle.REDUCE


def _is_scalar(value: Any) -> bool:
    """NumPy's scalars are not, though float64 is a Python float too: they would come back as another type."""
    return isinstance(value, SCALARS) and not isinstance(value, np.generic)


def _global(name: str) -> bytes:
    module, attribute = name.split(" ")
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def _whole(value: int, place: str) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    raw = pickle.encode_long(value)
    if len(raw) > 255:
        raise PtWriteError(f"{place or 'the root'}: a whole number of {len(raw)} bytes, at most 255 fit")
    return pickle.LONG1 + bytes([len(raw)]) + raw


def _text(value: str, place: str) -> bytes:
    try:
        raw = value.encode()
    except UnicodeEncodeError as error:
        raise PtWriteError(f"{place or 'the root'}: text that is not Unicode ({error.reason})") from None
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw
