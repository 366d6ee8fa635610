"""Read the zip-format ``.pt`` files of ``torch.save`` without torch, executing nothing and copying no weights.

A ``.pt`` file is an uncompressed zip archive: ``NAME/data.pkl`` describes nested containers by a pickle of protocol 2,
and each ``NAME/data/KEY`` holds the raw bytes of one storage. This module interprets the few pickle instructions that
``torch.save`` writes for tensors in plain containers, and refuses all others; Python's own unpickler is never run.
Tensors become read-only NumPy views of one memory map of the file: tensors that shared a storage still share it.

The format is documented in PyTorch's notes on serialization semantics; the instruction set in Python's ``pickletools``.
"""

import math
import mmap
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mem0_jax.errors import UserError

MAX_PICKLE_BYTES = 32 * 2**20  # a policy of 2e9 parameters with its optimizer needs less than 1 MiB
MAX_DEPTH = 64  # nesting of containers
MAX_OBJECTS = 2**22  # containers and leaves met by walking the result, shared ones counted each time
MAX_REPEATED_ELEMENTS = 2**24  # of a view larger than its storage, such as tensor.expand makes

STORAGE_DTYPES: dict[str, np.dtype] = {
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch BoolStorage": np.dtype(np.bool_),
    "torch ByteStorage": np.dtype("u1"),
    "torch CharStorage": np.dtype("i1"),
    "torch ComplexDoubleStorage": np.dtype("<c16"),
    "torch ComplexFloatStorage": np.dtype("<c8"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
    "torch ShortStorage": np.dtype("<i2"),
}
ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
# Schedulers and losses leave NumPy scalars in checkpoints: a dtype and its bytes, the bytes as text in latin-1.
NUMPY_SCALARS = {"numpy._core.multiarray scalar", "numpy.core.multiarray scalar"}  # NumPy 2 and 1
NUMPY_DTYPE = "numpy dtype"
ENCODE = "_codecs encode"
NUMPY_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
KNOWN_GLOBALS = {*STORAGE_DTYPES, *NUMPY_SCALARS, ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, NUMPY_DTYPE, ENCODE}

SCALARS = (str, int, float, bool, type(None))


class PtError(UserError):
    """A ``.pt`` file that cannot be read: missing, damaged, of another format, or holding more than tensors."""


def read_pt(path: str | os.PathLike[str]) -> Any:
    """Returns what was given to ``torch.save`` with every tensor and parameter as a read-only NumPy array.

    Args:
      path: a file written by ``torch.save`` (torch >= 1.6), holding tensors in dicts, lists and tuples with scalars.

    Returns:
      Nested dict (also for ``OrderedDict``), list, tuple, str, int, float, bool, None and arrays; a NumPy scalar
      becomes a Python number. An array keeps the tensor's shape and strides; bfloat16 is ``ml_dtypes.bfloat16``. Arrays
      map the file and read it when used, so it must stay unchanged meanwhile; copy an array to keep it longer.

    Raises:
      PtError: names the file, what is wrong with it and what to do. No other exception leaves this function.
    """
    path = Path(path)
    try:
        archive = _Archive.open(path)
        result = _Interpreter(archive).run(archive.pickle())
        _measure(result)
    except PtError as error:
        raise PtError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise PtError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return result


# ---------------------------------------------------------------------------------------------------------- the archive


@dataclass(frozen=True)
class _Archive:
    """A memory-mapped zip archive of uncompressed entries.

    Attributes:
      data: uint8 [file size], read only.
      entries: entry name without the leading folder -> its directory record.
    """

    data: np.ndarray
    entries: Mapping[str, zipfile.ZipInfo]

    @staticmethod
    def open(path: Path) -> "_Archive":
        with path.open("rb") as file:
            _check_format(file.read(512))
            try:
                with zipfile.ZipFile(file) as archive:
                    infos = archive.infolist()
            except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, IndexError) as error:
                raise PtError(f"the zip directory is missing or damaged ({error}): truncated? copy it again") from None
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        roots = {info.filename.split("/")[0] for info in infos if info.filename.endswith("/data.pkl")}
        if len(roots) != 1:
            raise PtError(f"expected one NAME/data.pkl in the archive, found {len(roots)}: not a file of torch.save")
        prefix = roots.pop() + "/"
        entries = {info.filename.removeprefix(prefix): info for info in infos if info.filename.startswith(prefix)}
        if len(entries) != len(infos):
            raise PtError("the archive has repeated or stray entries: not a file of torch.save")
        archive = _Archive(data, entries)
        order = archive.entry("byteorder")[:16].tobytes() if "byteorder" in entries else b"little"
        if order != b"little":
            raise PtError(f"byte order is {order!r}, only b'little' is supported: save it again on x86 or ARM")
        return archive

    def entry(self, name: str) -> np.ndarray:
        """The bytes of an entry: uint8 [size], a view of the map."""
        info = self.entries.get(name)
        if info is None:
            raise PtError(f"entry {name!r} is missing from the archive: damaged, or not a file of torch.save")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise PtError(f"entry {name!r} is compressed or encrypted, torch.save stores plain bytes: save it again")
        # The local header repeats name and extra field with lengths of its own: the data starts behind them.
        header = bytes(self.data[info.header_offset : info.header_offset + 30])
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise PtError(f"entry {name!r} has no header at byte {info.header_offset}: truncated or damaged")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if info.file_size != info.compress_size or start + info.file_size > self.data.size:
            raise PtError(f"entry {name!r} claims {info.file_size} bytes beyond the end: truncated, copy it again")
        return self.data[start : start + info.file_size]

    def pickle(self) -> bytes:
        entry = self.entry("data.pkl")
        if entry.size > MAX_PICKLE_BYTES:
            raise PtError(f"data.pkl has {entry.size} bytes, at most {MAX_PICKLE_BYTES} are accepted")
        return entry.tobytes()


def _check_format(head: bytes) -> None:
    """Refuses what is no zip file, saying what it is where that can be told from its first bytes."""
    advice = "convert it where torch is installed: torch.save(torch.load(SRC, weights_only=True), DST)"
    if not head:
        raise PtError("the file is empty")
    if head[:2] == b"\x80\x02":
        raise PtError(f"this is the legacy pickle format of torch < 1.6; {advice}")
    if head[257:262] == b"ustar":
        raise PtError(f"this is the legacy tar format of torch < 0.2; {advice}")
    if head[:4] != b"PK\x03\x04":
        raise PtError(f"not a file of torch.save: it starts with {head[:8]!r} instead of a zip header")


# ----------------------------------------------------------------------------------------------------------- the pickle


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    data: np.ndarray  # [elements] of its dtype


_MARK = object()


class _Interpreter:
    """A stack machine for the pickle instructions that torch.save writes, and no others."""

    def __init__(self, archive: _Archive):
        self.archive = archive
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda arg: None,
            "MARK": lambda arg: self.stack.append(_MARK),
            "NONE": lambda arg: self.stack.append(None),
            "NEWTRUE": lambda arg: self.stack.append(True),
            "NEWFALSE": lambda arg: self.stack.append(False),
            **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), self.stack.append),
            "EMPTY_DICT": lambda arg: self.stack.append({}),
            "EMPTY_LIST": lambda arg: self.stack.append([]),
            "EMPTY_TUPLE": lambda arg: self.stack.append(()),
            "TUPLE": lambda arg: self.stack.append(tuple(self.pop_mark())),
            "TUPLE1": lambda arg: self.stack.append(tuple(self.pop(1))),
            "TUPLE2": lambda arg: self.stack.append(tuple(self.pop(2))),
            "TUPLE3": lambda arg: self.stack.append(tuple(self.pop(3))),
            "APPEND": lambda arg: self.append(self.pop(1)),
            "APPENDS": lambda arg: self.append(self.pop_mark()),
            "SETITEM": lambda arg: self.set_items(self.pop(2)),
            "SETITEMS": lambda arg: self.set_items(self.pop_mark()),
            "BINPUT": self.put,
            "LONG_BINPUT": self.put,
            "BINGET": self.get,
            "LONG_BINGET": self.get,
            "GLOBAL": lambda arg: self.stack.append(_Global(arg)),
            "BINPERSID": lambda arg: self.load_storage(*self.pop(1)),
            "REDUCE": lambda arg: self.call(*self.pop(2)),
            "BUILD": lambda arg: self.build(*self.pop(1)),
        }

    def run(self, pickle: bytes) -> Any:
        try:
            self.check_instructions(pickle)
            for opcode, arg, _ in pickletools.genops(pickle):
                if opcode.name == "STOP":
                    break
                self.actions[opcode.name](arg)
        except ValueError as error:  # from the parser: an argument cut short, an unknown byte, no STOP
            raise PtError(f"data.pkl is damaged: {error}") from None
        if len(self.stack) != 1:
            raise PtError(f"data.pkl is damaged: it ends with {len(self.stack)} objects instead of 1")
        return self.stack[0]

    def check_instructions(self, pickle: bytes) -> None:
        """Refuses, all at once and by name, what this module does not interpret."""
        strange_globals, strange_opcodes = set(), set()
        for opcode, arg, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL" and arg not in KNOWN_GLOBALS:
                strange_globals.add(str(arg).replace(" ", "."))
            elif opcode.name not in self.actions and opcode.name != "STOP":
                strange_opcodes.add(opcode.name)
        if strange_globals:
            raise PtError(
                f"refused, the file names objects other than tensors and plain containers: {_few(strange_globals)}. "
                "Save a file with only the state_dict, or turn these objects into plain Python values first"
            )
        if strange_opcodes:
            raise PtError(
                f"refused, data.pkl uses instructions that torch.save does not write for tensors: "
                f"{_few(strange_opcodes)}. Save it again with torch.save and its default pickle protocol"
            )

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count or any(item is _MARK for item in self.stack[-count:]):
            raise PtError("data.pkl is damaged: an instruction lacks its operands")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_mark(self) -> list[Any]:
        items = []
        while self.stack:
            item = self.stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise PtError("data.pkl is damaged: a mark is missing")

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PtError(f"data.pkl is damaged: expected a {kind.__name__} to fill")
        return self.stack[-1]

    def put(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise PtError("data.pkl is damaged: nothing to remember")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise PtError(f"data.pkl is damaged: object {index} is used before it is made")
        self.stack.append(self.memo[index])

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise PtError("data.pkl is damaged: a dict key lacks its value")
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2]):
            # Only flat keys: hashing a tuple that holds itself twice, many levels deep, would take for ever.
            flat = isinstance(key, SCALARS) or (isinstance(key, tuple) and all(isinstance(k, SCALARS) for k in key))
            if not flat:
                raise PtError(f"a dict key is a {type(key).__name__}, expected text, a number or a tuple of these")
            target[key] = value

    def build(self, state: Any) -> None:
        if self.stack and isinstance(self.stack[-1], np.dtype):
            if not (isinstance(state, tuple) and len(state) == 8 and _is(state[1], "<", "|") and state[3] is None):
                raise PtError("refused, a NumPy scalar is big-endian or structured")
            return
        # torch hangs version numbers (_metadata) on the OrderedDict of a state_dict; they say nothing about weights.
        self.top(dict)
        if not (isinstance(state, dict) and set(state) <= {"_metadata"}):
            raise PtError("refused, an object other than a state_dict sets its own attributes")

    def call(self, function: Any, args: Any) -> None:
        name = function.name if isinstance(function, _Global) else type(function).__name__
        if name == ORDERED_DICT and isinstance(args, tuple) and not args:
            self.stack.append({})
        elif name == REBUILD_TENSOR and isinstance(args, tuple) and 6 <= len(args) <= 7:
            self.stack.append(_view(*args[:4], metadata=args[6] if len(args) == 7 else None))
        elif name == REBUILD_PARAMETER and isinstance(args, tuple) and args and isinstance(args[0], np.ndarray):
            self.stack.append(args[0])
        elif name == NUMPY_DTYPE and isinstance(args, tuple) and args and _is(args[0], *NUMPY_DTYPES):
            self.stack.append(np.dtype(f"<{args[0]}"))
        elif name in NUMPY_SCALARS and isinstance(args, tuple) and len(args) == 2:
            self.stack.append(_number(*args))
        elif name == ENCODE and isinstance(args, tuple) and [type(arg) for arg in args] == [str, str]:
            self.stack.append(args[0].encode("latin1"))
        else:
            raise PtError(f"data.pkl is damaged: {name} is called with unexpected arguments")

    def load_storage(self, pid: Any) -> None:
        """Pushes the storage of ``("storage", type, key, location, elements)``."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and _is(pid[0], "storage") and isinstance(pid[1], _Global)):
            raise PtError("data.pkl is damaged: a storage is named in an unknown way")
        _, kind, key, _, elements = pid
        dtype = STORAGE_DTYPES.get(kind.name)
        if dtype is None or not isinstance(key, str) or type(elements) is not int or elements < 0:
            raise PtError(f"data.pkl is damaged: storage {key!r} has type {kind.name!r} and {elements!r} elements")
        raw = self.archive.entry(f"data/{key}")
        if raw.size != elements * dtype.itemsize:
            raise PtError(f"storage {key!r} has {raw.size} bytes, expected {elements} x {dtype.itemsize}: damaged")
        self.stack.append(_Storage(raw.view(dtype)))


def _view(storage: Any, offset: Any, shape: Any, strides: Any, metadata: Any) -> np.ndarray:
    """The tensor of ``_rebuild_tensor_v2``: a view of its storage; offset and strides count elements."""
    if not isinstance(storage, _Storage):
        raise PtError("data.pkl is damaged: a tensor lacks its storage")
    if metadata:
        raise PtError("a tensor carries a lazy conjugate or negation; call .resolve_conj().resolve_neg() before saving")
    where = f"tensor of shape {shape!r:.80}, strides {strides!r:.80}, offset {offset!r:.40}"
    numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(shape) != len(strides) or len(shape) > 32:
        raise PtError(f"{where}: expected matching tuples of at most 32 whole numbers >= 0")
    elements, size = math.prod(shape), storage.data.size
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides)) if elements else offset - 1
    if last >= size:
        raise PtError(f"{where}: reaches beyond its storage of {size} elements")
    if elements > max(size, MAX_REPEATED_ELEMENTS):
        raise PtError(f"{where}: repeats its storage of {size} elements {elements} times over")
    if not elements:
        return storage.data[:0].reshape(shape)
    steps = tuple(s * storage.data.itemsize if n > 1 else 0 for n, s in zip(shape, strides))
    return np.lib.stride_tricks.as_strided(storage.data[offset:], shape, steps)


def _number(dtype: Any, raw: Any) -> int | float | bool:
    if not (isinstance(dtype, np.dtype) and isinstance(raw, bytes) and len(raw) == dtype.itemsize):
        raise PtError("data.pkl is damaged: a NumPy scalar does not match its type")
    return np.frombuffer(raw, dtype)[0].item()


def _measure(root: Any) -> None:
    """Refuses containers that hold themselves or that grow without measure when walked."""
    seen: dict[int, tuple[int, int]] = {}

    def visit(node: Any, depth: int) -> tuple[int, int]:
        if isinstance(node, _Global | _Storage | np.dtype | bytes):
            raise PtError(f"data.pkl is damaged: it holds a bare {type(node).__name__.strip('_')}, not a tensor")
        if not isinstance(node, dict | list | tuple):
            return 0, 1
        if id(node) not in seen:
            if depth > MAX_DEPTH:
                raise PtError(f"containers are nested more than {MAX_DEPTH} deep, or hold themselves")
            sizes = [visit(child, depth + 1) for child in (node.values() if isinstance(node, dict) else node)]
            height, objects = 1 + max((s[0] for s in sizes), default=0), 1 + sum(s[1] for s in sizes)
            if height > MAX_DEPTH or objects > MAX_OBJECTS:
                raise PtError(f"containers are nested {height} deep with {objects} objects: not a plausible checkpoint")
            seen[id(node)] = height, objects
        return seen[id(node)]

    visit(root, 0)


def _is(value: Any, *options: str) -> bool:
    """Whether a value from the file, of any type, is one of these texts."""
    return isinstance(value, str) and value in options


def _few(names: set[str]) -> str:
    """At most ten names, quoted, so that a hostile file cannot flood the terminal."""
    shown = ", ".join(f"{name!r:.80}" for name in sorted(names)[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
