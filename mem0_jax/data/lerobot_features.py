"""Which of the features that info.json declares can be read, and how they are told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mem0_jax.data.joint_names import VECTORS

AUTOMATIC = {"timestamp": "float32"} | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
COMMON = (*AUTOMATIC, "observation.state", "action", "subtask", "subtask_end", "episode_id")  # commands read these
TEXT_KEY = "subtask"  # the only one of them that is read as texts
PICTURES = ("video", "image")
TEXTS = ("string", "large_string")
_MAX_VALUES = 2**24  # of a feature, in one frame
_ARROW_NAMES = {"double": "float64", "float": "float32", "half_float": "float16", "halffloat": "float16"}


def plain(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of info.json with dtype and shape in their usual spelling, where they have one."""
    kind, shape = feature["dtype"], _whole(feature.get("shape"))
    if is_count(shape):
        shape = [shape]
    elif isinstance(shape, list | tuple):
        shape = [_whole(size) for size in shape] or ([] if kind in PICTURES else [1])
    return {**feature, "dtype": _ARROW_NAMES.get(kind, kind), "shape": shape}


def is_number(feature: Mapping[str, Any]) -> bool:
    """Whether it is declared as numbers of a size that NumPy has."""
    kind = feature["dtype"]
    return kind == "bool" or (kind.rstrip("0123456789") in ("float", "int", "uint") and _numpy_kind(kind) in "iuf")


def unreadable(feature: Mapping[str, Any]) -> str:
    """Say why the values of an entry that `plain` returned cannot be read; "" if they can, or are pictures."""
    kind, shape = feature["dtype"], feature["shape"]
    if kind in (*PICTURES, *TEXTS):
        return ""
    if not is_number(feature):
        return f"its dtype is {kind!r}; numbers such as 'float32' and 'string' can be read"
    if not isinstance(shape, list) or not all(map(is_count, shape)):
        return f"its shape is {shape!r}; expected a list of positive integers"
    if math.prod(shape) > _MAX_VALUES:
        return f"its shape is {shape}; more than {_MAX_VALUES} numbers a frame cannot be meant"
    return ""


def unfit(key: str, feature: Mapping[str, Any]) -> str:
    """Say why an entry that `plain` returned is not what commands read as one of `COMMON`; "" if it is."""
    kind, shape = feature["dtype"], feature["shape"]
    if problem := unreadable(feature):
        return f"cannot be read: {problem}"
    if key == TEXT_KEY:
        return "" if kind in TEXTS else f"is declared as {kind}; commands read it as texts, of dtype 'string'"
    if not is_number(feature):
        return f"is declared as {kind}; commands read it as numbers"
    return "" if key in VECTORS or shape == [1] else f"has shape {shape}; expected [1]"


def _whole(value: Any) -> Any:
    """A float without fraction as the integer that it is meant as."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0, as sizes are."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _numpy_kind(name: str) -> str:
    try:
        return np.dtype(name).kind
    except TypeError:
        return "?"
