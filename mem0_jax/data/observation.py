"""What an observation is: pictures by camera and a state, in any of three spellings.

    general  {"images": {CAMERA: picture}, "state": numbers}
    nested   {"observation": {CAMERA: {"rgb": picture}}, "joint_action": {"vector": numbers}}, as RMBench has it
    flat     "observation/CAMERA", "observation/CAMERA/rgb", "observation/images/CAMERA", "observation.images.CAMERA",
             "image" or "observation/image" of a policy with one camera; "state", "observation/state",
             "observation.state", "joint_action/vector"; as clients of openpi and LeRobot have them

Pictures are uint8 [H, W, 3], RGB. The client in `serve.client`, one file that stands alone, has the same lines.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

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
