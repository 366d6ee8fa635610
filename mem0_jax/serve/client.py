"""A client of the policy server in one file: NumPy, the standard library and Python 3.10 or newer, nothing else.

Copy it into the environment of a robot or a simulator:

>>> with Client("ws://127.0.0.1:8000") as policy:
...     policy.reset("put the block back", seed=0)
...     policy.observe(observation)
...     for action in policy.act():
...         observation = execute(action)
...         policy.observe(observation)
...         if policy.due:  # the actions are used up, or a subtask ended and they were abandoned
...             break

Axis letters: H, W picture height and width; K actions to execute; E action width of the environment.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import math
import os
import re
import socket
import ssl
import struct
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

MAX_ITEMS, MAX_DEPTH, MAX_DIMS = 100_000, 16, 8  # of one message; arrays count as one item
MAX_MESSAGE = 256 * 2**20
DTYPES = {np.dtype(name) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_AGAIN = ("busy", "in_use", "stopping")  # errors that pass
_HOPELESS = {1002: "bad_message", 1003: "bad_message", 1007: "bad_message", 1008: "refused", 1009: "too_large"}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", bytes: "bytes"}
_NAMES |= {list: "a list", tuple: "a list", type(None): "nothing", dict: "a map"}
_WHOLE, _COUNT = range(2**63), range(1, 2**63)
_METADATA = {"camera": str} | {f"limits.{name}": _COUNT for name in ("message", "frames", "side")}
_STATUS = {"time": range(-1, 2**63), "stage": _WHOLE, "due": bool, "plan_needed": bool, "classify": bool}
_STATUS |= {"instruction": str}
_COUNTS = (14, 16)  # numbers of a state and an action where a server of an older version does not say them
_AROUND_FRAME, _AROUND_FRAMES = 512, 2**15  # bytes of a message that are no picture: for each frame, and the rest


class WireError(ValueError):
    """Bytes that are no message, or a value that cannot be one."""


class ServerError(RuntimeError):
    """The server's answer to a request it cannot serve.

    Attributes:
        kind: what sort, one word; "unknown_session": the memory is gone, only `reset` goes on from there; "foreign":
            who answers is no policy server of mem0-jax.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


# MessagePack as openpi uses it: the standard types, and arrays as maps of "__ndarray__", "data", "dtype" and "shape".
# The package msgpack-numpy has other maps, of "nd", "data", "type" and "shape": they are read, not written.


def pack(value: Any) -> bytes:
    """A message: None, bool, int, float, str, bytes, lists, dicts, numeric arrays, NumPy scalars (as Python's own).

    Raises:
        WireError: any other type.
    """
    out = bytearray()
    _pack(value, out)
    return bytes(out)


def _pack(value: Any, out: bytearray) -> None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        out.append(0xC0)
    elif isinstance(value, bool):
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _pack_int(value, out)
    elif isinstance(value, float):
        out += struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        data = value.encode()
        out += _head(len(data), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + data
    elif isinstance(value, (bytes, bytearray, memoryview)):
        out += _head(len(value), 0, 0, (0xC4, 0xC5, 0xC6))
        out += value
    elif isinstance(value, (list, tuple)):
        out += _head(len(value), 0x90, 16, (None, 0xDC, 0xDD))
        for item in value:
            _pack(item, out)
    elif isinstance(value, Mapping):
        out += _head(len(value), 0x80, 16, (None, 0xDE, 0xDF))
        for key, item in value.items():
            _pack(key, out)
            _pack(item, out)
    elif isinstance(value, np.ndarray) and value.dtype.newbyteorder("=") in DTYPES:
        parts = {b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
        _pack({b"__ndarray__": True, **parts}, out)
    else:
        what = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise WireError(f"a message cannot hold {what}")


def _pack_int(value: int, out: bytearray) -> None:
    if -32 <= value < 128:
        out += struct.pack(">b" if value < 0 else ">B", value)
    elif -(2**63) <= value < 2**64:
        out += struct.pack(">Bq", 0xD3, value) if value < 2**63 else struct.pack(">BQ", 0xCF, value)
    else:
        raise WireError(f"a message cannot hold the integer {value}")


def _head(size: int, small: int, below: int, codes: tuple[int | None, int, int]) -> bytes:
    if size < below:
        return bytes([small | size])
    for code, form, limit in zip(codes, (">BB", ">BH", ">BI"), (2**8, 2**16, 2**32)):
        if code is not None and size < limit:
            return struct.pack(form, code, size)
    raise WireError(f"{size} items are too many for a message")


def unpack(data: bytes) -> Any:
    """The value of a message from anybody: numeric arrays only, copied, with bounds on the number of items and depth.

    Raises:
        WireError: the bytes are no such message; names the entry.
    """
    reader = _Reader(data)
    try:
        value = reader.value(0)
    except WireError as error:
        where = ".".join(reader.path)
        raise WireError(f"{where[:80]}: {error}" if where else str(error)) from None
    if reader.at != len(data):
        looks = next((f", and it looks like {name}" for name, start in _OTHERS.items() if start.match(data)), "")
        left = f"{len(data) - reader.at} bytes follow its first value, {kind_of(value)}"
        raise WireError(f"a message is one value in MessagePack, here {left}{looks}")
    return value


_OTHERS = {"JSON": re.compile(rb'\s*[{\[]\s*["{\[\d\-tfn\]}]'), "a pickle": re.compile(rb"\x80[\x02-\x05]")}


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, np.ndarray) and not value.ndim:
        return brief(value.item())
    if isinstance(value, np.ndarray):
        return f"{_ODD.get(value.dtype.kind, value.dtype)} {list(value.shape)}"
    return "a map" if isinstance(value, Mapping) else _NAMES.get(type(value), type(value).__name__)


_ODD = {"O": "Python objects", "U": "texts", "S": "bytes", "V": "records"}  # kinds of arrays that hold no numbers


def brief(value: Any) -> str:
    """A stranger's value in an error message: short, and never a container's content."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bool)):
        return f"{value[:40]!r}" if isinstance(value, str) else str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}infinity"
    if isinstance(value, int) and abs(value) > 2**200:
        return f"a number of {len(hex(abs(value))) - 2} hexadecimal digits"
    return str(value) if isinstance(value, (int, float)) else kind_of(value)


_EXTENSION = "MessagePack's extension types are not taken; pack arrays as openpi-client's msgpack_numpy does"
_NUMBERS = dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q")))
_SIZES = dict(zip(range(0xC4, 0xC7), (">B", ">H", ">I"))) | dict(zip(range(0xD9, 0xE0), (">B", *(">H", ">I") * 3)))


class _Reader:
    """Reads one MessagePack value after the other."""

    def __init__(self, data: bytes):
        self.data, self.at, self.items = memoryview(data), 0, 0
        self.path: list[str] = []  # of the entry that is read

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _bytes(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise WireError("the message is damaged: it ends too early")
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise WireError(f"a text before byte {self.at} is not UTF-8; bytes must be packed as such") from None

    def _key(self) -> str:
        code = self.data[self.at] if self.at < len(self.data) else 0xC0
        if 0x80 <= code < 0xA0 or 0xDC <= code < 0xE0:
            raise WireError("a map's keys must be text, got a list or a map")
        key = self.value(0)
        if not isinstance(key, (str, bytes)):
            raise WireError(f"a map's keys must be text, got {kind_of(key)}")
        return key if isinstance(key, str) else self._text(key)

    def _entry(self, name: str, depth: int) -> Any:
        self.path.append(name)
        value = self.value(depth)
        self.path.pop()
        return value

    def value(self, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise WireError(f"the message has more than {MAX_ITEMS} items; an array counts as one, a list as its own")
        if depth > MAX_DEPTH:
            raise WireError(f"the message is nested {depth} deep or deeper, more than {MAX_DEPTH}")
        code = self._number(">B")
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if code in _SIZES:
            return self._sized(code, self._number(_SIZES[code]), depth)
        if code < 0xC0:  # a short map, list or text: its size is within the code
            kind = 0xDE if code < 0x90 else 0xDC if code < 0xA0 else 0xD9
            return self._sized(kind, code & (0x1F if kind == 0xD9 else 0x0F), depth)
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        raise WireError("the message is damaged" if code == 0xC1 else _EXTENSION)

    def _sized(self, kind: int, size: int, depth: int) -> Any:
        if kind <= 0xC6:
            return self._bytes(size)
        if kind <= 0xDB:
            return self._text(self._bytes(size))
        if kind <= 0xDD:
            return [self._entry(str(i), depth + 1) for i in range(size)]
        found = {}
        for _ in range(size):
            key = self._key()
            if key in found:
                raise WireError(f"a map holds {key[:40]!r} twice")
            found[key] = self._entry(key[:40] if key.isprintable() else repr(key[:40]), depth + 1)
        return _revived(found)


def _revived(found: dict[str, Any]) -> Any:
    """The array, or the number, of a map that says it is one; any other map as it is."""
    data, ours = found.get("data"), "__ndarray__" in found
    if found.get("complex") is True and "data" in found:
        raise WireError("packed by msgpack-numpy, a complex number is not taken: send real ones")
    if "__npgeneric__" in found:
        _dtype(found.get("dtype"))
        if not isinstance(data, (bool, int, float)):
            raise WireError(f"a scalar's data must be a number, got {kind_of(data)}")
        return data
    if not ours and type(found.get("nd")) is not bool:
        return found
    kind = b"" if ours else found.get("kind", b"")
    if not isinstance(kind, (bytes, str)):
        raise WireError(f"packed by msgpack-numpy, an array's kind must be bytes, got {kind_of(kind)}")
    if kind in (b"O", "O", b"V", "V"):
        raise WireError(
            "packed by msgpack-numpy, an array of Python objects or of records, is not taken: it might run code; pack "
            "an array of numbers, as openpi-client's msgpack_numpy does"
        )
    name, shape = found.get("dtype" if ours else "type"), found.get("shape")
    try:
        array = _array(data, _dtype(name), shape if ours or found["nd"] else [])
    except WireError as error:
        raise WireError(str(error) if ours else f"packed by msgpack-numpy, {error}") from None
    return array if ours or found["nd"] else array.item()


def _dtype(name: Any) -> np.dtype[Any]:
    name = name.decode("latin-1") if isinstance(name, bytes) else name
    plain = isinstance(name, str) and re.fullmatch(r"[<>|=]?(\?|[a-z]{1,5}[0-9]{0,2})", name)
    try:
        dtype = np.dtype(name if plain else object)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.newbyteorder("=") not in DTYPES:
        got = repr(name[:40]) if isinstance(name, str) else kind_of(name)
        raise WireError(f"an array's dtype must be of bool, int, uint or float, at most 8 bytes each, got {got}")
    return dtype


def _array(data: Any, dtype: np.dtype[Any], sizes: Any) -> np.ndarray:
    if not isinstance(data, bytes):
        raise WireError(f"an array's data must be bytes, MessagePack's bin, got {kind_of(data)}")
    if not isinstance(sizes, list) or len(sizes) > MAX_DIMS:
        got = f"{len(sizes)} of them" if isinstance(sizes, list) else kind_of(sizes)
        raise WireError(f"an array's shape must be a list of at most {MAX_DIMS} sizes, got {got}")
    for at, size in enumerate(sizes):
        if type(size) is not int or not 0 <= size < 2**31:
            raise WireError(
                f"an array's shape must be of whole numbers from 0 to {2**31 - 1}, got {brief(size)} at {at}"
            )
    if math.prod(size or 1 for size in sizes) * dtype.itemsize > MAX_MESSAGE:  # NumPy has bounds for empty arrays, too
        raise WireError(f"an array of {dtype} {sizes} is beyond {MAX_MESSAGE} bytes, sizes of 0 left out")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise WireError(f"an array of {dtype} {sizes} has {math.prod(sizes) * dtype.itemsize} bytes, got {len(data)}")
    if dtype.kind == "b":  # whatever the bytes, the values are true or false
        return np.frombuffer(data, np.uint8).reshape(sizes).astype(bool)
    return np.frombuffer(data, dtype).reshape(sizes).astype(dtype.newbyteorder("="))


# What the policy looks at: the client checks it before it is sent, and the server what comes from anybody.


def _got(value: Any) -> str:
    if not isinstance(value, Mapping):
        return brief(value) if isinstance(value, (int, float)) else kind_of(value)
    held = f"a map of {', '.join(map(str, islice(value, 5)))[:80]}" if value else "an empty map"
    return f"{held}; pack arrays as openpi-client's msgpack_numpy does"


def _leaves(value: Any, at: tuple[int, ...] = ()) -> Iterator[tuple[Any, list[int]]]:
    """What nested lists and arrays hold, and where."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and len(at) + value.ndim <= MAX_DEPTH):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or len(at) == MAX_DEPTH:
        yield value, list(at)
        return
    for i, entry in enumerate(value):
        yield from _leaves(entry, (*at, i))


def check_image(image: Any, name: str = "image") -> np.ndarray:
    """A picture uint8 [H, W, 3]; lists and other whole numbers are read where all are 0 to 255. Raises ValueError."""
    must = f"{name} must be uint8 [H, W, 3], RGB, got"
    if isinstance(image, bytes):
        file = "a PNG" if image[:4] == b"\x89PNG" else "a JPEG" if image[:3] == b"\xff\xd8\xff" else "no known"
        raise ValueError(f"{must} {len(image)} bytes, {file} file; send the array of its pixels")
    if isinstance(image, (list, tuple)):
        image = _image_of_lists(image, name, must)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "iuf" or not image.ndim:
        raise ValueError(f"{must} {_got(image)}")
    if image.ndim != 3 or image.shape[2] != 3:
        turn = "; transpose it, channels come last" if image.ndim == 3 and image.shape[0] == 3 else ""
        raise ValueError(f"{must} {kind_of(image)}{turn}")
    if image.dtype == np.uint8:
        return image
    wrong = ~np.isfinite(image) if image.dtype.kind == "f" else (image < 0) | (image > 255)
    if wrong.any():
        at = np.argwhere(wrong)[0]
        raise ValueError(f"{name} holds {brief(image[tuple(at)])} at {at.tolist()}, beyond 0 to 255")
    if image.dtype.kind == "f":
        raise ValueError(f"{must} {kind_of(image)}; scale it to 0 to 255 and round it")
    return image.astype(np.uint8)


def _image_of_lists(image: Sequence[Any], name: str, must: str) -> np.ndarray:
    """Whole numbers; what is none is named with its place, before NumPy makes something else of them all."""
    try:
        found = np.array(image)
    except (ValueError, OverflowError):
        found = None
    if found is not None and not found.size:
        raise ValueError(f"{must} an empty list")
    if found is not None and found.dtype.kind in "iu" and not _holds_truth(image):
        return found
    for value, at in _leaves(image):
        if type(value) is not int or not 0 <= value <= 255:
            raise ValueError(f"{name} holds {brief(value)} at {at}, expected whole numbers from 0 to 255")
    raise ValueError(f"{must} a list of lists of different lengths or kinds")


def _holds_truth(value: Any) -> bool:
    """It is, or holds in its lists, true or false, which NumPy makes 1 and 0 of."""
    if isinstance(value, (list, tuple)):
        return any(map(_holds_truth, value))
    return isinstance(value, (bool, np.bool_)) or (isinstance(value, np.ndarray) and value.dtype.kind == "b")


def check_state(state: Any, counts: Sequence[int], name: str = "state") -> np.ndarray:
    """The numbers of a robot's state, as many as one of `counts`, float32. Raises ValueError: what is wrong, where."""
    must = f"{name} must be {' or '.join(map(str, counts))} numbers, got"
    if isinstance(state, np.ndarray) and state.dtype.kind in _ODD and state.ndim:
        state = state.tolist()
    if isinstance(state, (list, tuple)):
        numbers = [x.item() if hasattr(x, "item") and not np.ndim(x) else x for x in state]
        for i, number in enumerate(numbers):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise ValueError(f"{name} holds {kind_of(number)} at {i}, expected numbers")
            if isinstance(number, int) and abs(number) > 2**200:
                raise ValueError(f"{name} holds {brief(number)} at {i}")
        state = np.array(numbers, np.float64)
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "iuf" or not state.ndim:
        raise ValueError(f"{must} {_got(state)}")
    if state.ndim != 1 or len(state) not in counts:
        raise ValueError(f"{must} {len(state) if state.ndim == 1 else kind_of(state)}")
    state = state.astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(state) <= np.finfo(np.float32).max))
    if len(wrong):
        raise ValueError(f"{name} holds {brief(state[wrong[0]])} at {wrong[0]}, expected finite numbers of float32")
    return state.astype(np.float32)


# What an observation is: the same lines as in mem0_jax/data/observation.py, which says more.

# -- spellings --
_NAMED = ("observation/{}/rgb", "observation.images.{}", "observation.image.{}")
_NAMED += ("{}", "observation/images/{}", "observation/{}")
_UNNAMED = ("image", "observation/image")  # of a policy with one camera
_STATE = ("state", "observation/state", "observation.state", "joint_action/vector")
_ROOTS = ("images", "observation", "joint_action")
_LOOKED_AT = 32  # entries of a stranger's map
_AXES = 16  # of a picture in lists
_VIEW = re.compile(r"(?:observation/)?(?:images?/)?(.+?)(/rgb)?")
_SEES = re.compile("image|camera|cam_|rgb|view", re.IGNORECASE)


def spelled(observation: Any, cameras: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """The pictures by camera, in this order, and the state of an observation, whatever its spelling.

    Raises:
        ValueError: an entry is missing, it says which, what is there, and which other cameras; or it is there under
            several names and differs.
    """
    if not isinstance(observation, Mapping):
        raise ValueError("an observation must be a map")
    images = {camera: _picture(observation, camera, cameras) for camera in cameras}
    path = ("joint_action", "vector")
    given = _given(observation, _STATE, path)
    return images, _one(given) if given else _lacking(observation, _STATE, path)


def has_observation(message: Mapping[str, Any], cameras: Sequence[str]) -> bool:
    """Whether a map has any entry of an observation, of these cameras or others."""
    named = (form.format(camera) for form in _NAMED for camera in cameras)
    return any(key in message for key in (*_UNNAMED, *_STATE, *_ROOTS, *named)) or bool(cameras_in(message))


def _picture(observation: Mapping[str, Any], camera: str, cameras: Sequence[str]) -> Any:
    """The picture of one of the policy's cameras, or, of the only one, that which names no camera, where no other is
    named beside it."""
    flat, paths = _names(camera)
    named, unnamed = _given(observation, flat, *paths), {}
    if len(cameras) == 1:
        flat, unnamed = (*flat, *_UNNAMED), _given(observation, _UNNAMED)
    others = [] if named else cameras_in(observation)
    why = trained_on(cameras, others)
    beside = [repr(key) for key, picture in unnamed.items() if not isinstance(picture, Mapping)]
    if others and beside:
        right = f"name the right picture {flat[0]!r}, or leave the others out"
        raise ValueError(f"{why}; {beside[0]} names none of them: {right}")
    if others and not any(name.split("/")[0] == camera for name in others):
        if not any(_given(observation, names, *ways) for names, ways in map(_names, others)):
            why = f"the observation lacks {'.'.join(paths[-1])}, or flat: {flat[0]!r}; {why}"
        raise ValueError(why)
    return _one(named | unnamed) if named or unnamed else _lacking(observation, flat, *paths)


def _names(camera: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Flat keys of a picture that name its camera, and paths of nested ones."""
    return tuple(form.format(camera) for form in _NAMED), (("images", camera), ("observation", camera, "rgb"))


def _given(value: Mapping[str, Any], flat: Sequence[str], *paths: Sequence[str]) -> dict[str, Any]:
    """What stands under flat keys and at the end of paths of nested ones."""
    given = {key: value[key] for key in flat if key in value}
    for path in paths:
        depth, found = _reached(value, path)
        if depth == len(path):
            given[".".join(path)] = found
    return given


def _reached(value: Any, path: Sequence[str]) -> tuple[int, Any]:
    """How many steps of a path can be taken, and what is there."""
    for depth, key in enumerate(path):
        if not isinstance(value, Mapping) or key not in value:
            return depth, value
        value = value[key]
    return len(path), value


def _one(given: Mapping[str, Any]) -> Any:
    """What stands there, the same under every name."""
    (first, value), *others = given.items()
    for name, other in others:
        if not same(value, other):
            raise ValueError(f"the observation has {first} and {name}, and they differ: give one")
    return value


def same(one: Any, other: Any) -> bool:
    """Two values of a stranger's that mean one."""
    try:
        return bool(np.array_equal(one, other))
    except (TypeError, ValueError):  # maps of arrays, and what NumPy does not compare
        return False


def _lacking(value: Mapping[str, Any], flat: Sequence[str], *paths: Sequence[str]) -> Any:
    """Raises ValueError: what there is instead, and what of it may be misspelt."""
    path = max(reversed(paths), key=lambda path: _reached(value, path)[0])
    depth, found = _reached(value, path)
    where = ".".join(path[:depth]) or "the observation"
    names = [str(name) for name in islice(found, _LOOKED_AT)] if isinstance(found, Mapping) else []
    has = f"has {', '.join(names)[:100] or 'nothing'}" if isinstance(found, Mapping) else "is no map"
    meant = [path[depth]] if depth else [*flat, *(path[0] for path in paths)]
    hints = (f"; {name[:40]!r}, did you mean {near!r}?" for name in names if (near := _meant(name[:40], meant)))
    raise ValueError(f"the observation lacks {'.'.join(path)}, or flat: {flat[-1]!r}; {where} {has}{next(hints, '')}")


def _meant(name: str, known: Sequence[str]) -> str:
    near = "".join(difflib.get_close_matches(name, known, 1))
    other = near in (*_UNNAMED, "images") and not is_image(name)  # another camera's, perhaps
    return "" if other else near


def trained_on(cameras: Sequence[str], others: Sequence[str]) -> str:
    """What is wrong with an observation of other cameras than the policy's."""
    own, found = (", ".join(map(repr, names)) for names in (cameras, others))
    return f"the policy was trained on the camera{'s' * (len(cameras) > 1)} {own}, the observation has {found}"


def cameras_in(observation: Mapping[str, Any]) -> list[str]:
    """Names of the cameras whose pictures an observation of any layout holds, the first of them."""
    return list(dict.fromkeys(islice(_views(observation), 16)))


def _views(value: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    for key, entry in islice(value.items(), _LOOKED_AT):
        parts = (*path, *re.split("[./]", str(key)[:100]))
        if isinstance(entry, Mapping) and len(path) < 4:
            yield from _views(entry, parts)
            continue
        name = _VIEW.fullmatch("/".join(parts))
        if name and name[1] != "rgb" and not is_image(name[1]) and (name[2] or _is_picture(entry, name[0])):
            yield name[1][:40]


def is_image(name: str) -> bool:
    """It is "image" or a misspelling of it, and names no camera."""
    return bool(difflib.get_close_matches(re.split("[./]", name)[-1].lower(), ("image", "images"), 1, 0.75))


def _is_picture(value: Any, name: str) -> bool:
    axes = 0
    while isinstance(value, (list, tuple)) and value and axes < _AXES:
        value, axes = value[0], axes + 1
    if _SEES.search(name):
        return isinstance(value, bytes) or axes + getattr(value, "ndim", 0) >= 3
    return (type(value) is int or getattr(value, "dtype", None) == np.uint8) and axes + getattr(value, "ndim", 0) == 3


# -- end of spellings --


# The client's side of WebSocket, RFC 6455, without extensions.


class WebSocket:
    """One connection.

    Args:
        address: "ws://host:port/path" or "wss://...".
        headers: further ones of the request.
        deadline: `time.monotonic()` until when it must stand.

    Raises:
        ValueError: the address. ConnectionError: nobody answers. TimeoutError: too late. ServerError: it refuses, or
            speaks something else.
    """

    def __init__(self, address: str, headers: Mapping[str, str], deadline: float):
        url, port = _split(address)
        self.address, self._buffer = address, bytearray()
        self._socket = socket.create_connection((url.hostname, port), _left(deadline))
        try:
            if url.scheme == "wss":
                self._begin_tls(url)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._shake_hands(url, headers, deadline)
        except BaseException:
            self._socket.close()
            raise

    def _begin_tls(self, url: SplitResult) -> None:
        try:
            context = ssl.create_default_context()
            self._socket = context.wrap_socket(self._socket, server_hostname=url.hostname)
        except TimeoutError:
            raise TimeoutError("it did not begin TLS in time; does it take ws://?") from None
        except ssl.SSLCertVerificationError as error:
            why = f"the certificate of {self.address} is not trusted: {error.verify_message}"
            raise ServerError("refused", why) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise ConnectionError("it closed the connection instead of beginning TLS; does it take ws://?") from error
        except ssl.SSLError as error:
            alert = re.search("ALERT_(.*)", error.reason or "")
            why = (
                f"refuses TLS: {alert[1].lower().replace('_', ' ')}"
                if alert
                else f"speaks no TLS: use ws://{url.netloc}"
            )
            raise ServerError("refused", f"the port of {self.address} {why}") from error

    def _shake_hands(self, url: SplitResult, headers: Mapping[str, str], deadline: float) -> None:
        key = base64.b64encode(os.urandom(16))
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        named = {"Host": url.netloc.rpartition("@")[2], "Upgrade": "websocket", "Connection": "Upgrade"}
        named |= {"Sec-WebSocket-Key": key.decode(), "Sec-WebSocket-Version": "13", **headers}
        if not all(f"{name}{value}".isprintable() for name, value in named.items()):
            raise ValueError("the token must be of one line of printable characters")
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
        self._send_all("\r\n".join([*lines, "", ""]).encode(), deadline)
        status, *rest = self._take(self._head_size(deadline), deadline).decode("latin-1").split("\r\n")
        answered = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        number = status.split(" ")[1:2]
        if number != ["101"]:
            kind = {"401": "unauthorized", "403": "forbidden", "503": "busy"}.get(status[9:12], "refused")
            said = self._said(answered.get("content-length", ""), deadline)
            if not said and kind == "refused":
                kind, said = "foreign", "it is no policy server of mem0-jax"
            elif number == ["404"]:
                said += f"; the server's address is {url.scheme}://{url.netloc}"
            raise ServerError(kind, f"{self.address} answered {brief(status[9:])}{said and f': {said}'}")
        expected = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if answered.get("sec-websocket-accept") != expected:
            raise _foreign(self.address, "no WebSocket handshake")

    def _head_size(self, deadline: float) -> int:
        """Bytes of the head of an HTTP answer, once it is there. Raises ServerError: it is none."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            heard = bytes(self._buffer[:40])
            if heard[:2] == b"\x15\x03":
                raise ServerError("refused", f"the port of {self.address} speaks TLS: use wss://")
            said = brief(heard.decode("latin-1"))
            if not b"HTTP/".startswith(heard[:5]) or len(self._buffer) > 2**16:
                raise _foreign(self.address, f"{said}, which begins no answer of HTTP")
            try:
                self._fill(deadline)
            except (TimeoutError, ConnectionError) as error:
                if not heard:
                    raise
                raise type(error)(f"it said {said} and then no more; is it a policy server?") from error
        return end + 4

    def _said(self, size: str, deadline: float) -> str:
        """The sentence of a refusal, where it is one of mem0-jax."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            body = self._take(min(int(size), 2**16), min(deadline, time.monotonic() + 2))
            return str(json.loads(body)["error"]["message"])[:300]
        return ""

    def _fill(self, deadline: float) -> None:
        self._socket.settimeout(_left(deadline))
        data = self._socket.recv(2**18)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._fill(deadline)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _send_all(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(data)

    def send(self, payload: bytes, deadline: float, code: int = _BINARY) -> None:
        """Sends one message. Raises ConnectionError, TimeoutError."""
        size = len(payload)
        head = bytes([0x80 | code])
        if size < 126:
            head += bytes([0x80 | size])
        else:
            head += struct.pack(">BH", 0xFE, size) if size < 2**16 else struct.pack(">BQ", 0xFF, size)
        mask = os.urandom(4)
        data = np.frombuffer(payload + bytes(-size % 4), np.uint32) ^ np.frombuffer(mask, np.uint32)
        self._send_all(head + mask + data.tobytes()[:size], deadline)

    def receive(self, deadline: float) -> bytes | str:
        """The next message; pings are answered on the way. Raises ConnectionError, TimeoutError, ServerError."""
        kind, message = 0, bytearray()
        while True:
            first, second = self._take(2, deadline)
            code, size = first & 0x0F, second & 0x7F
            if size > 125:
                form, length = (">H", 2) if size == 126 else (">Q", 8)
                (size,) = struct.unpack(form, self._take(length, deadline))
            if first & 0x70 or second & 0x80 or (code >= _CLOSE and size > 125) or len(message) + size > MAX_MESSAGE:
                raise _foreign(self.address, "a frame that is against the WebSocket protocol, or too large")
            payload = self._take(size, deadline)
            if code == _CLOSE:
                why, number = payload[2:].decode(errors="replace"), int.from_bytes(payload[:2], "big")
                if number in _HOPELESS:  # the same message would meet the same end
                    raise ServerError(_HOPELESS[number], why or f"the server refused the message (code {number})")
                raise ConnectionError(f"the server closed the connection: {why or 'without a word'}")
            if code == _PING:
                self.send(payload, deadline, _PONG)
            if code >= _CLOSE:
                continue
            if code not in ((_TEXT, _BINARY) if not kind else (0,)):
                raise _foreign(self.address, "frames out of order")
            kind = kind or code
            message += payload
            if first & 0x80 and kind == _BINARY:
                return bytes(message)
            if first & 0x80:
                try:
                    return message.decode()
                except UnicodeDecodeError:
                    raise _foreign(self.address, "a text that is not UTF-8") from None

    def close(self) -> None:
        """Says goodbye without waiting for an answer."""
        with suppress(OSError):
            self.send(struct.pack(">H", 1000), time.monotonic() + 1, _CLOSE)
        self._socket.close()


def _split(address: str) -> tuple[SplitResult, int]:
    """The parts of an address, and its port. Raises ValueError."""
    must = f"the server's address must look like ws://host:port, got {address!r}"
    if not isinstance(address, str) or not address.isprintable() or " " in address:
        raise ValueError(must)
    try:
        url = urlsplit(address)
        host = url.hostname or ""
    except ValueError:  # brackets
        raise ValueError(f"{must}: an IPv6 address stands in brackets, as in ws://[::1]:8000") from None
    if url.scheme not in ("ws", "wss") or not host:
        raise ValueError(must)
    try:
        port = (443 if url.scheme == "wss" else 80) if url.port is None else url.port
    except ValueError:
        port = 0
    if not port:
        raise ValueError(f"{must}: its port must be a number from 1 to 65535")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"{must}: its host is no name, whose parts have 1 to 63 letters") from None
    return url, port


def _foreign(address: str, what: str) -> ServerError:
    return ServerError("foreign", f"{address} sent {what}: the server's answer is none of mem0-jax")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the policy server did not answer in time")
    return left


class Client:
    """A session of a policy server: its memory lives there, under an id, and outlasts a broken connection.

    Frames are sent as they come where every frame is judged (staged tasks), else they are kept and sent with the next
    decision. After a TimeoutError or ConnectionError no frame is lost or counted twice: `act` again, or observe
    the next.

    Args:
        address: "ws://host:port", or "wss://".
        session: id of the session; by default a new one.
        env: label of the environment, shown on the server's page.
        token: the server's token, where it asks for one.
        timeout: seconds an answer may take, reconnecting included.
        wait: seconds to wait for a server that is not up or not warm yet.

    Attributes:
        metadata: what the server said of itself: "policy", "cameras", "horizon", "options", "planner", "limits", ...
        status: the last answer: "time", "stage", "instruction", "end_probability", "plan_needed", ...

    Raises:
        ConnectionError, TimeoutError: no server. ServerError: it refuses. ValueError: the address.
    """

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        *,
        session: str | None = None,
        env: str = "",
        token: str | None = None,
        timeout: float = 60.0,
        wait: float = 60.0,
    ):
        self.address, self.timeout = address, timeout
        self.session, self.env = session or uuid.uuid4().hex, env
        self._headers = {"Authorization": f"Api-Key {token}"} if token else {}
        self._socket: WebSocket | None = None
        self.metadata: dict[str, Any] = {}
        self.status: dict[str, Any] = {}
        self._forget()
        self._connect(time.monotonic() + wait)

    def _forget(self) -> None:
        self._frames: list[dict[str, Any]] = []
        self._time, self._stage, self._left = -1, 0, 0

    def _connect(self, deadline: float) -> None:
        pause = 0.05
        while True:
            try:
                self._socket = WebSocket(self.address, self._headers, deadline)
                metadata = self._answer(deadline)
                if what := lacks(metadata, _METADATA) or _lacks_counts(metadata):
                    raise _foreign(self.address, what)
                self.metadata = metadata
                return
            except (OSError, ServerError) as error:
                self._drop()
                if time.monotonic() + pause > deadline or getattr(error, "kind", "busy") not in _AGAIN:
                    if isinstance(error, ServerError):
                        raise
                    kind = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
                    raise kind(f"no policy server at {self.address}: {error.strerror or error}") from error
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def reset(self, task: str, seed: int = 0, planner: str | None = None, **options: Any) -> dict[str, Any]:
        """Begins an episode with an empty memory.

        Args:
            task: the instruction; in staged tasks the whole task.
            seed: of the sampling of action chunks.
            planner: who names the subtasks: "server", "client" (see `plan`), or "none": the task has none. By default
                the server's planner, where it has one.
            options: of this episode instead of the server's: n_action_steps, average, threshold, patience,
                classify, rearm.
        """
        self._forget()
        message = {"type": "reset", "task": task, "seed": seed, "options": options}
        return self._call(message if planner is None else message | {"planner": planner})

    def observe(self, observation: Mapping[str, Any]) -> dict[str, Any] | None:
        """Takes the next frame, an observation in any spelling: `{"images": {camera: uint8 [H, W, 3]}, "state": [..]}`,
        RMBench's nested one or openpi's flat one; call it after each executed action.

        Gives the server's answer, or None where the frame is kept for later. Raises ValueError: the observation cannot
        be used; nothing has changed then.
        """
        self._keep(observation)
        if not self.status.get("classify") and self._fitting([*self._frames, self._frames[-1]]) > len(self._frames):
            return None
        return self._send({"type": "observe"})

    def _keep(self, observation: Mapping[str, Any]) -> None:
        frame, limits = self._frame(observation), self.metadata["limits"]
        largest = max(_pictures(frame), key=lambda picture: max(picture.shape[:2]))
        if not self._fitting([frame]) or max(largest.shape[:2]) > limits["side"]:
            raise ValueError(
                f"the picture {list(largest.shape)} is larger than the server takes: sides of {limits['side']} "
                f"pixels, messages of {limits['message']} bytes; make it smaller"
            )
        self._frames.append(frame)
        self._left -= 1

    def _frame(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of what the policy looks at. Raises ValueError: the frame is not kept then."""
        cameras = self.metadata.get("cameras") or [self.metadata["camera"]]
        images, state = spelled(observation, cameras)
        known = (bytes, str, list, tuple, Mapping, type(None))
        images = {name: of if isinstance(of, known) else np.array(of) for name, of in images.items()}
        images = {name: check_image(image, f"image of {name}") for name, image in images.items()}
        state = check_state(state if isinstance(state, known) else np.array(state), self.metadata.get("state", _COUNTS))
        if len(images) == 1:  # as servers of older versions read it, too
            return {"image": images[cameras[0]], "state": state}
        return {"images": images, "state": state}

    def _fitting(self, frames: Sequence[Mapping[str, Any]]) -> int:
        """How many of the first of these frames one message can hold."""
        limits = self.metadata["limits"]
        sizes = accumulate(sum(p.nbytes + _AROUND_FRAME for p in _pictures(frame)) for frame in frames)
        return sum(size <= limits["message"] - _AROUND_FRAMES for size in islice(sizes, limits["frames"]))

    @property
    def due(self) -> bool:
        """The last actions are used up, or were abandoned with their subtask: `act` again."""
        return self._left <= 0

    def act(self) -> np.ndarray:
        """Samples an action chunk of the last frame; gives the actions to execute, float32 [K, E].

        Raises:
            ServerError: of kind "plan_needed" where a subtask must be named by `plan` first.
        """
        answer = self._send({"type": "infer"})
        if answer["plan_needed"]:
            raise ServerError("plan_needed", "a subtask must be named first: call plan, then act again")
        self._left = len(answer["actions"])
        return answer["actions"]

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """`observe` and `act` in one message; gives the answer, with "actions" float32 [K, E]."""
        self._keep(observation)
        self.act()
        return self.status

    def plan(self, subtask: str) -> dict[str, Any]:
        """Names the subtask, when `status["plan_needed"]` and the episode was begun with planner="client"."""
        return self._call({"type": "plan", "subtask": subtask})

    def close(self) -> None:
        """Ends the session and the connection."""
        if self._socket is not None:
            with suppress(OSError, ServerError):
                self._ask({"type": "close"}, time.monotonic() + 2)
        self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _send(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends what happened since the last message; "after" lets the server skip frames it has already seen."""
        ended = False
        while (fitting := self._fitting(self._frames)) < len(self._frames):
            part = {"type": "observe", "frames": self._frames[:fitting], "after": self._time}
            ended |= self._call(part)["subtask_ended"]
        answer = self._call(message | {"frames": self._frames, "after": self._time})
        answer["subtask_ended"] |= ended
        return answer

    def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        deadline, pause = time.monotonic() + self.timeout, 0.05
        while True:
            try:
                answer = self._ask(message, deadline)
                break
            except TimeoutError:
                self._drop()
                raise
            except ServerError as error:
                if error.kind not in _AGAIN or time.monotonic() + pause > deadline:
                    raise
            except OSError:
                self._drop()
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        if what := lacks(answer, _STATUS) or _lacks_actions(answer, message, self.metadata.get("actions", _COUNTS)):
            self._drop()
            raise _foreign(self.address, what)
        answer["subtask_ended"] = answer["stage"] > self._stage
        del self._frames[: max(answer["time"] - self._time, 0)]
        self._time, self._stage = answer["time"], answer["stage"]
        if answer["due"]:
            self._left = 0
        self.status = answer
        return answer

    def _ask(self, message: dict[str, Any], deadline: float) -> dict[str, Any]:
        if self._socket is None:
            self._connect(deadline)
        assert self._socket is not None
        data = pack(message | {"session": self.session, "env": self.env})
        try:
            self._socket.send(data, deadline)
        except ConnectionError:  # cut off for what it sent: what the server said of it may have arrived
            with suppress(OSError):
                return self._answer(deadline)
            raise
        return self._answer(deadline)

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self._socket is not None
        try:
            answer = self._socket.receive(deadline)
        except ServerError:
            self._drop()
            raise
        if isinstance(answer, str) and (told := re.fullmatch("([a-z_]+): (.+)", answer, re.DOTALL)):
            if told[1] == "too_large":  # the server hangs up after it
                self._drop()
            raise ServerError(told[1], told[2])
        try:
            found = answer if isinstance(answer, str) else unpack(answer)
        except WireError:
            found = answer
        if not isinstance(found, dict):
            self._drop()
            raise _foreign(self.address, brief(found) if isinstance(found, str) else f"{kind_of(found)}, no message")
        return found


def lacks(answer: Any, wanted: Mapping[str, type | range]) -> str:
    """What a server sent instead of these entries, dots leading into maps, of such types or whole numbers; else ""."""
    for name, kind in wanted.items():
        value = answer
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return f"no {name}"
            value = value[key]
        if isinstance(kind, range) and not (type(value) is int and value in kind):
            return f"{brief(value)} as {name}, which must be a whole number from {kind.start} on"
        if isinstance(kind, type) and type(value) is not kind:
            return f"{brief(value)} as {name}, which must be {_NAMES[kind]}"
    return ""


def _lacks_counts(metadata: Mapping[str, Any]) -> str:
    """What a server sent instead of the lists that say what its policy sees and gives; "" where it sent none."""
    for name, kind in (("cameras", str), ("state", int), ("actions", int)):
        found = metadata.get(name, [kind()])
        if not isinstance(found, list) or not found or any(type(entry) is not kind for entry in found):
            return f"{brief(found)} as {name}, which must be a list of {'texts' if kind is str else 'whole numbers'}"
    return ""


def _lacks_actions(answer: Mapping[str, Any], message: Mapping[str, Any], widths: Sequence[int]) -> str:
    if message["type"] != "infer" or answer["plan_needed"]:
        return ""
    found = answer.get("actions")
    shape = found.shape if isinstance(found, np.ndarray) and found.dtype == np.float32 else ()
    if len(shape) == 2 and shape[0] and shape[1] in widths:
        return ""
    return f"{brief(found)} as actions, which must be float32 [K, {' or '.join(map(str, widths))}]"


def _pictures(frame: Mapping[str, Any]) -> list[np.ndarray]:
    return list(frame["images"].values()) if "images" in frame else [frame["image"]]
