"""Whose numbers a dataset's states and actions are, by the names that info.json gives them.

Numbers without names, or with names that only count them, are taken for the model layout of `layout`, as ever; numbers
that are named must be named as its joints, in its order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mem0_jax.data.files import DatasetError
from mem0_jax.data.layout import JOINT_NAMES

VECTORS = ("observation.state", "action")
_WIDTHS = (14, 16)  # of a robot with two arms
_DEEPEST = 8
_WORD, _HUMP = re.compile(r"[^\W\d_]+|\d+"), re.compile(r"(?<=[a-z])(?=[A-Z])")
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
_SILENT = {"arm", "joint", "j", "pos", "position", "qpos"}  # words that a joint's name may have besides
_COUNTED = _SILENT | {"joints", "motor", "motors", "dim", "axis", "dof", "index", "idx", "state", "action", "value"}
_COUNTED |= {"observation", "actions", "feature", "channel", "element", "number", "name", "q", "x", "s", "a", "m", "d"}


def flat_names(names: Any, depth: int = 0) -> list[str]:
    """The names of info.json as one list, whatever wraps them: {"motors": [...]}, lists of lists, {name: place}.

    >>> flat_names({"left": ["a", "b"], "right": {"d": 1, "c": 0}})
    ['a', 'b', 'c', 'd']
    """
    if names is None or depth > _DEEPEST:
        return []
    if isinstance(names, Mapping):
        if names and all(isinstance(place, int) for place in names.values()):
            return sorted(map(str, names), key=lambda name: names[name])
        names = list(names.values())
    if isinstance(names, list | tuple):
        return [name for part in names for name in flat_names(part, depth + 1)]
    return [str(names)]


def foreign_names(feature: Mapping[str, Any]) -> list[str]:
    """The names of a state or an action of 14 or 16 numbers, where they are not the model layout's; else [].

    Names of the axes alone, such as ["motors"], name no number.
    """
    shape, names = list(feature.get("shape") or ()), flat_names(feature.get("names"))
    if len(shape) != 1 or shape[0] not in _WIDTHS or len(names) in (0, 1) or _only_count(names):
        return []
    found = [_joint(name) for name in names]
    if ("left", 7) in found:  # they count from 1
        found = [joint and (joint[0], joint[1] - (joint[1] > 0)) for joint in found]
    return [] if found == [_joint(name) for name in JOINT_NAMES] else names


def describe(names: list[str]) -> str:
    """What is wrong with such names, and what to do."""
    shown = ", ".join(name[:40] for name in names[:16]) + (", ..." if len(names) > 16 else "")
    return (
        f"the numbers are named {shown}; expected {', '.join(JOINT_NAMES)}, in this order. Robots of other joints "
        "cannot be trained on yet. If the numbers are these after all, name them so in meta/info.json, or set names to "
        "null there"
    )


def check_names(dataset: Any) -> None:
    """Raises DatasetError: a dataset, or one of a mixture, has states or actions of other numbers by their names."""
    for part in getattr(dataset, "datasets", [dataset]):
        for key in VECTORS:
            if names := foreign_names(part.features.get(key, {})):
                raise DatasetError(f"{part.root}: {key}: {describe(names)}")


def _only_count(names: list[str]) -> bool:
    """ "motor_0", "motor_1", ..., from 0 or 1: names without a meaning."""
    words = [_words(name) for name in names]
    counted = [int(word) for one in words for word in one if word.isdigit()]
    stems = {tuple(word for word in one if not word.isdigit()) for one in words}
    meaningless = len(stems) == 1 and set(stems.pop()) <= _COUNTED
    return meaningless and counted in (list(range(len(names))), list(range(1, len(names) + 1)))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(_HUMP.sub("_", name))]


def _joint(name: str) -> tuple[str, int] | None:
    """Side and number of a joint, -1 for a gripper; None for anything else."""
    words = _words(name)
    sides = [_SIDES[word] for word in words if word in _SIDES]
    numbers = [int(word) for word in words if word.isdigit()]
    rest = {word for word in words if word not in _SIDES and not word.isdigit()} - _SILENT
    if len(sides) != 1 or rest - {"gripper"}:
        return None
    if rest:
        return None if numbers else (sides[0], -1)
    return (sides[0], numbers[0]) if len(numbers) == 1 else None
