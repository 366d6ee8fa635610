"""The size of a camera's pictures, read from what info.json says of their axes.

LeRobot takes pictures as they are and never looks at the declared axes, so converters write them in any order, with
names of many kinds or without; we lay out memory by them before a picture is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mem0_jax.data.files import DatasetError
from mem0_jax.data.lerobot_features import is_count

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA: all become RGB
_AXES = ("height", "width", "channels")
_WORDS = {"h": "height", "rows": "height", "w": "width", "columns": "width", "cols": "width"}
_WORDS |= dict.fromkeys(("c", "ch", "channel", "rgb", "rgba", "color", "colors"), "channels")


def picture_shape(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) of a video or image feature, whose axes come in the order of their names.

    Without names that tell, channels come last; or first, where only the first number can be a number of channels.

    Raises:
        DatasetError: saying how the shape was read and what was expected.
    """
    shape, names = feature.get("shape"), feature.get("names")
    if isinstance(shape, list | tuple) and not all(map(is_count, shape)):
        quoted = ", without quotes" if any(isinstance(n, str) for n in shape) else ""
        raise DatasetError(f"shape {shape} is not that of a picture; expected whole numbers above 0{quoted}")
    order = _order(shape, names)
    sizes = dict(zip(order, shape or ()))
    if not order or sizes.get("channels", 1) not in _CHANNELS:
        read = f", read as {', '.join(order)}," if order else ""
        raise DatasetError(
            f"shape {shape} with the names {names}{read} is not that of a picture; expected height, width and 1, 3 or "
            "4 channels, in this order, or in that of names such as ['channels', 'height', 'width']"
        )
    return sizes["height"], sizes["width"]


def is_depth_map(feature: Mapping[str, Any]) -> bool:
    """Whether a video or image feature is declared to hold distances, not colours; by LeRobot's own marks."""
    marks = ("info", "is_depth_map"), ("info", "video.is_depth_map"), ("video_info", "video.is_depth_map")
    entries = [(feature.get(entry), mark) for entry, mark in marks]
    return any(isinstance(entry, dict) and bool(entry.get(mark)) for entry, mark in entries)


def other_size(found: tuple[int, ...], declared: tuple[int, ...]) -> str:
    """Say that pictures are of another (height, width) than declared, and how that was read."""
    text = f"{found[0]}x{found[1]}, info.json declares {declared[0]}x{declared[1]} (height x width)"
    if found == declared[1::-1]:
        text += "; are the names of its axes in the order of its shape?"
    return text


def _order(shape: Any, names: Any) -> tuple[str, ...]:
    """Name the axes of a shape of whole numbers; () if it cannot be a picture's."""
    if not isinstance(shape, list | tuple) or len(shape) not in (2, 3):
        return ()
    axes = _AXES[: len(shape)]
    if named := _named(names, axes):
        return named
    first = len(shape) == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS
    return ("channels", "height", "width") if first else axes


def _named(names: Any, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the axes in the order of their names, () if these do not tell; one unknown name is the axis that is left.

    Names come as a list, in a list or an object ({"axes": [...]}), as keys ({"height": 480, ...}), or as "hwc".
    """
    while isinstance(names, list | dict) and len(names) == 1:
        names = next(iter(names.values())) if isinstance(names, dict) else names[0]
    if not isinstance(names, list | tuple | dict | str) or len(names) != len(axes):
        return ()
    words = [str(name).strip().lower() for name in names]
    told = [word if word in axes else _WORDS.get(word) for word in words]
    known = [axis for axis in told if axis in axes]
    if not known or len(set(known)) < len(known):
        return ()
    rest = iter([axis for axis in axes if axis not in known])
    return tuple(axis if axis in axes else next(rest) for axis in told)
