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
from urllib.parse import urlsplit

import numpy as np

MAX_ITEMS, MAX_DEPTH, MAX_DIMS = 100_000, 16, 8  # of one message; arrays count as one item
MAX_MESSAGE = 256 * 2**20
DTYPES = {np.dtype(name) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_AGAIN = ("busy", "in_use", "stopping")  # errors that pass
_HOPELESS = {1002: "bad_message", 1003: "bad_message", 1007: "bad_message", 1008: "refused", 1009: "too_large"}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", bytes: "bytes"}
_NAMES |= {list: "a list", tuple: "a list", type(None): "nothing"}
_AROUND_FRAME, _AROUND_FRAMES = 512, 2**15  # bytes of a message that are no picture: for each frame, and the rest


class WireError(ValueError):
    """Bytes that are no message, or a value that cannot be one."""


class ServerError(RuntimeError):
    """The server's answer to a request it cannot serve.

    Attributes:
        kind: what sort, one word; "unknown_session": the memory is gone, only `reset` goes on from there.
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
    return f"a map of {', '.join(map(str, islice(value, 5)))[:80]}; pack arrays as openpi-client's msgpack_numpy does"


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
    if found is not None and found.dtype.kind in "iu":
        return found
    for value, at in _leaves(image):
        if type(value) is not int or not 0 <= value <= 255:
            raise ValueError(f"{name} holds {brief(value)} at {at}, expected whole numbers from 0 to 255")
    raise ValueError(f"{must} a list of lists of different lengths or kinds")


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


# The client's side of WebSocket, RFC 6455, without extensions.


# What an observation is: the same lines as in mem0_jax/data/observation.py, which says more.

# -- spellings --
_PICTURES = ("observation/{}/rgb", "observation/{}", "observation/images/{}")
_PICTURES += ("observation.images.{}", "observation.image.{}")
_PICTURE = ("image", "observation/image")  # of a policy with one camera
_STATE = ("observation.state", "state", "observation/state", "joint_action/vector")
_LOOKED_AT = 32  # entries of a stranger's map


def spelled(observation: Any, cameras: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """The pictures by camera, in this order, and the state of an observation, whatever its spelling.

    Raises:
        ValueError: an entry is missing; it says which, what is there, and which other cameras.
    """
    if not isinstance(observation, Mapping):
        raise ValueError("an observation must be a map")
    found = {}
    for camera in cameras:
        flat = (*(form.format(camera) for form in _PICTURES), *(_PICTURE if len(cameras) == 1 else ()))
        found[camera] = _entry(observation, flat, (("images", camera), ("observation", camera, "rgb")), cameras)
    return found, _entry(observation, _STATE, (("joint_action", "vector"),), ())


def has_observation(message: Mapping[str, Any], cameras: Sequence[str]) -> bool:
    """Whether a map has any entry of an observation."""
    flat = {form.format(camera) for form in _PICTURES for camera in cameras}
    return any(key in message for key in (*_PICTURE, *_STATE, *flat, "images", "observation", "joint_action"))


def _entry(observation: Mapping[str, Any], flat: Sequence[str], paths: Sequence[Sequence[str]], cameras: Any) -> Any:
    for key in flat:
        if key in observation:
            return observation[key]
    reached: list[tuple[int, Any]] = []  # of each path: steps taken, and what is there
    for path in paths:
        value: Any = observation
        for depth, key in enumerate(path):
            if not isinstance(value, Mapping) or key not in value:
                reached.append((depth, value))
                break
            value = value[key]
        else:
            return value
    others = _named(observation)
    if others and cameras and not set(cameras) <= set(others):
        what = "camera" if len(cameras) == 1 else "cameras"
        wanted, has = (", ".join(map(repr, names)) for names in (cameras, others))
        raise ValueError(f"the policy was trained on the {what} {wanted}, the observation has {has}")
    (depth, value), path = max(zip(reached, paths), key=lambda pair: pair[0][0])
    path = path if depth else paths[-1]
    names = [str(name) for name in islice(value, _LOOKED_AT)] if isinstance(value, Mapping) else []
    has = f"has {', '.join(names)[:100] or 'nothing'}" if isinstance(value, Mapping) else "is no map"
    meant = [path[depth]] if depth else [*flat, *(path[0] for path in paths)]
    near = ((name[:40], difflib.get_close_matches(name[:40], meant, 1)) for name in names)
    hint = next((f"; {name!r}, did you mean {close[0]!r}?" for name, close in near if close), "")
    where = ".".join(path[:depth]) or "the observation"
    raise ValueError(f"the observation lacks {'.'.join(path)}, or flat: {flat[-1]!r}; {where} {has}{hint}")


def _named(observation: Mapping[str, Any]) -> list[str]:
    """The cameras that an observation names."""
    nested, general = (observation.get(key) for key in ("observation", "images"))
    views = nested if isinstance(nested, Mapping) else {}
    names = [str(name)[:40] for name, view in islice(views.items(), 16) if isinstance(view, Mapping) and "rgb" in view]
    names += [str(name)[:40] for name in islice(general, 16)] if isinstance(general, Mapping) else []
    for key in islice(observation, _LOOKED_AT):
        for before, after in (form.split("{}") for form in _PICTURES):
            inner = str(key)[len(before) : len(str(key)) - len(after)]
            plain = 0 < len(inner) < 60 and not set("/.") & set(inner) and inner != "state"
            if plain and str(key) == before + inner + after and inner not in names:
                names.append(inner)
    return names


# -- end of spellings --


class WebSocket:
    """One connection.

    Args:
        address: "ws://host:port/path" or "wss://...".
        headers: further ones of the request.
        deadline: `time.monotonic()` until when it must stand.

    Raises:
        ConnectionError: nobody answers, or not as a WebSocket server. TimeoutError: too late.
    """

    def __init__(self, address: str, headers: Mapping[str, str], deadline: float):
        url = urlsplit(address)
        if url.scheme not in ("ws", "wss") or not url.hostname:
            raise ValueError(f"the server's address must look like ws://host:port, got {address!r}")
        port = url.port or (443 if url.scheme == "wss" else 80)
        self._socket = socket.create_connection((url.hostname, port), _left(deadline))
        self._buffer = bytearray()
        try:
            if url.scheme == "wss":
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=url.hostname)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._shake_hands(url, headers, deadline)
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, url: Any, headers: Mapping[str, str], deadline: float) -> None:
        key = base64.b64encode(os.urandom(16))
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        named = {"Host": url.netloc.rpartition("@")[2], "Upgrade": "websocket", "Connection": "Upgrade"}
        named |= {"Sec-WebSocket-Key": key.decode(), "Sec-WebSocket-Version": "13", **headers}
        if any(c in f"{path}{name}{value}" for name, value in named.items() for c in "\r\n"):
            raise ValueError("the address and the token must be of one line")
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
        self._send_all("\r\n".join([*lines, "", ""]).encode(), deadline)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > 2**16:
                raise ConnectionError("the server's answer is no WebSocket handshake")
            self._fill(deadline)
        status, *rest = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        body = bytes(self._buffer[end + 4 :]).decode("utf-8", "replace").strip()
        if status.split(" ")[1:2] != ["101"]:
            kind = {"401": "unauthorized", "403": "forbidden", "503": "busy"}.get(status[9:12], "refused")
            raise ServerError(kind, f"{status[9:]}: {body[:300]}" if body else status[9:])
        answered = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        expected = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if answered.get("sec-websocket-accept") != expected:
            raise ConnectionError("the server's answer is no WebSocket handshake")
        del self._buffer[: end + 4]

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
        """The next message; pings are answered on the way. Raises ConnectionError, TimeoutError."""
        kind, message = 0, bytearray()
        while True:
            first, second = self._take(2, deadline)
            code, size = first & 0x0F, second & 0x7F
            if size > 125:
                form, length = (">H", 2) if size == 126 else (">Q", 8)
                (size,) = struct.unpack(form, self._take(length, deadline))
            if first & 0x70 or second & 0x80 or (code >= _CLOSE and size > 125) or len(message) + size > MAX_MESSAGE:
                raise ConnectionError("the server's frame is against the WebSocket protocol, or too large")
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
                raise ConnectionError("the server's frames are out of order")
            kind = kind or code
            message += payload
            if first & 0x80:
                return bytes(message) if kind == _BINARY else message.decode()

    def close(self) -> None:
        """Says goodbye without waiting for an answer."""
        with suppress(OSError):
            self.send(struct.pack(">H", 1000), time.monotonic() + 1, _CLOSE)
        self._socket.close()


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
                if not isinstance(metadata.get("camera"), str) or not isinstance(metadata.get("limits"), dict):
                    raise ServerError("refused", f"the server at {self.address} is none of mem0-jax")
                self.metadata = metadata
                return
            except (OSError, ServerError) as error:
                self._drop()
                if time.monotonic() + pause > deadline or getattr(error, "kind", "busy") not in _AGAIN:
                    if isinstance(error, ServerError):
                        raise
                    kind = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
                    raise kind(f"no policy server at {self.address}: {error}") from error
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
            options: of this episode instead of the server's: action_horizon, average, threshold, patience,
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
        state = check_state(
            state if isinstance(state, known) else np.array(state), self.metadata.get("state", (14, 16))
        )
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
        if "actions" not in answer:
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
        if "time" in answer:
            answer["subtask_ended"] = answer["stage"] > self._stage
            del self._frames[: answer["time"] - self._time]
            self._time, self._stage = answer["time"], answer["stage"]
        if answer.get("due"):
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
        found = None
        with suppress(WireError):
            found = unpack(answer) if isinstance(answer, bytes) else None
        if isinstance(found, dict):
            return found
        kind, _, text = answer.partition(": ") if isinstance(answer, str) else ("refused", "", "")
        if kind == "too_large":  # the server hangs up after it
            self._drop()
        raise ServerError(kind, text or "the server's answer is none of mem0-jax")


def _pictures(frame: Mapping[str, Any]) -> list[np.ndarray]:
    return list(frame["images"].values()) if "images" in frame else [frame["image"]]
