"""Read the zip-format ``.pt`` files of ``torch.save`` without torch, executing nothing and copying no weights.

A ``.pt`` file is an uncompressed zip archive (see ``torch_zip``): ``NAME/data.pkl`` describes nested containers by a
pickle of protocol 2, and each ``NAME/data/KEY`` holds the raw bytes of one storage. This module interprets the few
pickle instructions that ``torch.save`` writes for tensors in plain containers, and refuses all others; Python's own
unpickler is never run. `open_pt` leaves tensors in the file until they are read, `read_pt` maps all of them at once.

The format is documented in PyTorch's notes on serialization semantics; the instruction set in Python's ``pickletools``.
"""

import math
import os
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mem0_jax.convert.files import Parts, PartsError
from mem0_jax.convert.kinds import foreign
from mem0_jax.convert.stored import Checksum, StoredTensor
from mem0_jax.convert.torch_zip import MAX_PICKLE_BYTES, Archive, PtError

__all__ = ["PtError", "StoredTensor", "open_pt", "read_pt"]

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


def open_pt(source: str | os.PathLike[str] | Parts) -> Any:
    """Returns what was given to ``torch.save`` with every tensor and parameter as a `StoredTensor`, still in the file.

    Args:
      source: a file written by ``torch.save`` (torch >= 1.6), holding tensors in dicts, lists and tuples with scalars;
        or its byte parts, as `Parts.open` takes them.

    Returns:
      Nested dict (also for ``OrderedDict``), list, tuple, str, int, float, bool, None and `StoredTensor`; a NumPy
      scalar becomes a Python number. The file must stay unchanged as long as tensors are read.

    Raises:
      PtError: names the file, what is wrong with it and what to do. No other exception leaves this function.
    """
    try:
        parts = source if isinstance(source, Parts) else Parts.open(Path(source))
    except PartsError as error:
        raise PtError(str(error)) from None
    try:
        archive = Archive.open(parts)
        result = _Interpreter(archive).run(archive.content("data.pkl", MAX_PICKLE_BYTES))
        _measure(result)
        _name_checksums(result, "", set())
    except (PtError, PartsError) as error:
        raise PtError(f"{parts.path}: {error}") from None
    except OSError as error:
        raise PtError(f"{error.filename or parts.name}: cannot be read: {error.strerror or error}") from None
    return result


def read_pt(path: str | os.PathLike[str]) -> Any:
    """`open_pt` with every tensor as a read-only NumPy array.

    An array keeps the tensor's shape and strides, and tensors that shared a storage still share it; bfloat16 is
    ``ml_dtypes.bfloat16``. Arrays view one memory map of the file (one copy of it where it has several parts) and read
    it when used, so it must stay unchanged meanwhile; copy an array to keep it longer. Raises PtError as `open_pt`.
    """
    tree = open_pt(path)
    whole: np.ndarray | None = None
    done: dict[int, Any] = {}  # a container met twice stays one container

    def arrays(node: Any) -> Any:
        nonlocal whole
        if isinstance(node, StoredTensor):
            if whole is None:
                whole = node.parts.read(0, node.parts.size)
            return node.view(whole)
        if not isinstance(node, dict | list | tuple):
            return node
        if id(node) not in done:
            if isinstance(node, dict):
                done[id(node)] = {key: arrays(value) for key, value in node.items()}
            else:
                done[id(node)] = type(node)(arrays(value) for value in node)
        return done[id(node)]

    try:
        return arrays(tree)
    except PartsError as error:
        raise PtError(str(error)) from None


# ----------------------------------------------------------------------------------------------------------- the pickle


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    parts: Parts
    key: str
    start: int  # byte of the file
    dtype: np.dtype
    size: int  # elements
    checksum: Checksum | None


_MARK = object()


class _Interpreter:
    """A stack machine for the pickle instructions that torch.save writes, and no others."""

    def __init__(self, archive: Archive):
        self.archive = archive
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.checksums: dict[str, Checksum | None] = {}  # one a storage, for all tensors in it
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
        """The object that a pickle describes; raises PtError."""
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
                + foreign(strange_globals)
            )
        if strange_opcodes:
            raise PtError(
                f"refused, data.pkl uses instructions that torch.save does not write for tensors: "
                f"{_few(strange_opcodes)}. Save it again with torch.save and its default pickle protocol"
            )

    def pop(self, count: int) -> list[Any]:
        """Takes the top `count` operands, lowest first; none may be a mark."""
        if len(self.stack) < count or any(item is _MARK for item in self.stack[-count:]):
            raise PtError("data.pkl is damaged: an instruction lacks its operands")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_mark(self) -> list[Any]:
        """Takes everything above the topmost mark, lowest first, and the mark."""
        items = []
        while self.stack:
            item = self.stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise PtError("data.pkl is damaged: a mark is missing")

    def top(self, kind: type) -> Any:
        """The container on top of the stack, which stays there."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PtError(f"data.pkl is damaged: expected a {kind.__name__} to fill")
        return self.stack[-1]

    def put(self, index: int) -> None:
        """Remembers the top of the stack as object `index`."""
        if not self.stack or self.stack[-1] is _MARK:
            raise PtError("data.pkl is damaged: nothing to remember")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Pushes object `index`."""
        if index not in self.memo:
            raise PtError(f"data.pkl is damaged: object {index} is used before it is made")
        self.stack.append(self.memo[index])

    def append(self, items: list[Any]) -> None:
        """Fills the list on top."""
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Fills the dict on top from keys and values in turn."""
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
        """Checks the state that an object is given; none of it is kept."""
        if self.stack and isinstance(self.stack[-1], np.dtype):
            if not (isinstance(state, tuple) and len(state) == 8 and _is(state[1], "<", "|") and state[3] is None):
                raise PtError("refused, a NumPy scalar is big-endian or structured")
            return
        # torch hangs version numbers (_metadata) on the OrderedDict of a state_dict; they say nothing about weights.
        self.top(dict)
        if not (isinstance(state, dict) and set(state) <= {"_metadata"}):
            raise PtError("refused, an object other than a state_dict sets its own attributes")

    def call(self, function: Any, args: Any) -> None:
        """Pushes what one of `KNOWN_GLOBALS` makes of its arguments; nothing is called that the file names."""
        name = function.name if isinstance(function, _Global) else type(function).__name__
        if name == ORDERED_DICT and isinstance(args, tuple) and not args:
            self.stack.append({})
        elif name == REBUILD_TENSOR and isinstance(args, tuple) and 6 <= len(args) <= 7:
            self.stack.append(_tensor(*args[:4], metadata=args[6] if len(args) == 7 else None))
        elif name == REBUILD_PARAMETER and isinstance(args, tuple) and args and isinstance(args[0], StoredTensor):
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
        start, size = self.archive.find(f"data/{key}")
        if size != elements * dtype.itemsize:
            raise PtError(f"storage {key!r} has {size} bytes, expected {elements} x {dtype.itemsize}: damaged")
        if key not in self.checksums:
            self.checksums[key] = self.archive.checksum(f"data/{key}")
        self.stack.append(_Storage(self.archive.parts, key, start, dtype, elements, self.checksums[key]))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, metadata: Any) -> StoredTensor:
    """The tensor of ``_rebuild_tensor_v2``: a view of its storage; offset and strides count elements."""
    if not isinstance(storage, _Storage):
        raise PtError("data.pkl is damaged: a tensor lacks its storage")
    if metadata:
        raise PtError("a tensor carries a lazy conjugate or negation; call .resolve_conj().resolve_neg() before saving")
    where = f"tensor of shape {shape!r:.80}, strides {strides!r:.80}, offset {offset!r:.40}"
    numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers) or len(shape) != len(strides) or len(shape) > 32:
        raise PtError(f"{where}: expected matching tuples of at most 32 whole numbers >= 0")
    elements, size = math.prod(shape), storage.size
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides)) if elements else offset - 1
    if last >= size:
        raise PtError(f"{where}: reaches beyond its storage of {size} elements")
    if elements > max(size, MAX_REPEATED_ELEMENTS):
        raise PtError(f"{where}: repeats its storage of {size} elements {elements} times over")
    return StoredTensor(
        storage.parts, storage.key, storage.start, storage.dtype, shape, strides, offset, storage.checksum
    )


def _number(dtype: Any, raw: Any) -> int | float | bool:
    """A NumPy scalar as a Python number."""
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


def _name_checksums(node: Any, place: str, seen: set[int | str]) -> None:
    """Gives every checksum the place of the first tensor that it covers, for messages."""
    if isinstance(node, StoredTensor):
        if node.checksum is not None and node.storage not in seen:
            seen.add(node.storage)
            node.checksum.name = f"tensor {place!r:.200}"
    elif isinstance(node, dict | list | tuple) and id(node) not in seen:
        seen.add(id(node))
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            _name_checksums(child, f"{place}/{key}" if place else str(key), seen)


def _is(value: Any, *options: str) -> bool:
    """Whether a value from the file, of any type, is one of these texts."""
    return isinstance(value, str) and value in options


def _few(names: set[str]) -> str:
    """At most ten names, quoted, so that a hostile file cannot flood the terminal."""
    shown = ", ".join(f"{name!r:.80}" for name in sorted(names)[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
