"""Hand-written .pt files, and the leaves of what is read from them."""

import struct
import zipfile
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


def leaves(tree) -> list:
    if isinstance(tree, dict | list | tuple):
        return [leaf for node in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(node)]
    return [tree]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def whole_tuple(values) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def storage(elements: int, kind: str = "torch\nFloatStorage") -> bytes:
    return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text("0") + text("cpu") + whole(elements) + b"tQ"


def tensor_pickle(elements, shape=None, strides=None, offset=0, kind="torch\nFloatStorage") -> bytes:
    """The pickle of one tensor on storage "0"; by default a vector of all its elements."""
    shape = (elements,) if shape is None else shape
    strides = (1,) * len(shape) if strides is None else strides
    arguments = storage(elements, kind) + whole(offset) + whole_tuple(shape) + whole_tuple(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + hooks + b"tR."


def write(path: Path, data_pickle: bytes, entries=None, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", data_pickle)
        for name, content in (entries or {}).items():
            archive.writestr(f"x/{name}", content)
    return path
