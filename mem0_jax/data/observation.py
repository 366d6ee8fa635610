"""What an observation is: pictures by camera and a state, in any of three spellings.

    general  {"images": {CAMERA: picture}, "state": numbers}
    nested   {"observation": {CAMERA: {"rgb": picture}}, "joint_action": {"vector": numbers}}, as RMBench has it
    flat     "observation/CAMERA", "observation/CAMERA/rgb", "observation/images/CAMERA", "observation.images.CAMERA",
             CAMERA alone, "image" or "observation/image" of a policy with one camera; "state", "observation/state",
             "observation.state", "joint_action/vector"; as clients of openpi and LeRobot have them

Pictures are uint8 [H, W, 3], RGB. What stands there under two names must be the same, and a picture that names no
camera is taken only where no other camera is named. The client in `serve.client`, one file that stands alone, has the
same lines.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

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
