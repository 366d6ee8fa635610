"""The names that info.json gives the numbers of a state or an action, however it has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VECTORS = ("observation.state", "action")
_DEEPEST = 32
_PLACES = ("index", "idx", "place")  # what entries of a number say besides its name
_APART = re.compile(r"[,;|\n]")
_WORD, _HUMP = re.compile(r"[^\W\d_]+|\d+"), re.compile(r"(?<=[a-z])(?=[A-Z])")
_SIDES = {"left": "left", "l": "left", "right": "right", "r": "right"}
_SILENT = {"arm", "joint", "j", "pos", "position", "qpos"}  # words that a joint's name may have besides
_COUNTED = _SILENT | {"joints", "motor", "motors", "dim", "axis", "dof", "index", "idx", "state", "action", "value"}
_COUNTED |= {"names", "axes", "values", "observation", "actions", "feature", "channel", "element", "number", "name"}
_COUNTED |= {"q", "x", "s", "a", "m", "d", "angle", "angles", "positions", "dims", "states", "vector", "robot"}
_MARKS, _PAIRS = " \t\r'\"", ("[]", "()", "{}")
_TWO_ARMS = [*((side, i) for side in ("left", "right") for i in range(7)), ("left", -1), ("right", -1)]


def flat_names(names: Any, count: int) -> list[str]:
    """The names that info.json gives `count` numbers as one list, however it has them.

    They are texts or keys, {"motors": [...]}, lists of lists, {name: place}, {name: unit}, "a,b,c": of all depths the
    outermost counts that has `count` different names with a meaning, else the innermost with different ones.

    >>> flat_names({"left": ["a", "b"], "right": {"d": 1, "c": 0}}, 4)
    ['a', 'b', 'c', 'd']
    >>> flat_names({"left_waist": {"index": 0}, "left_elbow": None}, 2)
    ['left_waist', 'left_elbow']
    """
    depths = _depths(names)
    different = [found for found in depths if len(set(found)) == len(found)]
    fitting = [found for found in different if len(found) == count]
    meant = [found for found in fitting if not _only_count(found)]
    as_many = [found for found in depths if len(found) == count]
    found = (meant or fitting or as_many or different[::-1] or depths[::-1])[0]
    words = found[0].split() if len(found) == 1 else []
    return words if len(words) == count else found


def _depths(names: Any) -> list[list[str]]:
    """The names at each depth; one with nothing below it is among those of all depths further down."""
    nodes, found = [(None, names)], []
    for _ in range(_DEEPEST):
        nodes = [node for name, below in nodes for node in (_nodes(below) or ([(name, None)] if name else []))]
        found.append([name for name, _ in nodes if name])
        if all(below is None for _, below in nodes):
            break
    return [depth for depth in found if depth] or [[]]


def _nodes(value: Any) -> list[tuple[str | None, Any]]:
    """What lies directly below a part of the names: (name or None, what lies below that)."""
    if isinstance(value, Mapping):
        named = [(str(key), None if _place(part) is not None else part, _place(part)) for key, part in value.items()]
        if all(place is None for _, _, place in named):
            named = [(key, part, _place(key)) for key, part, _ in named]  # {place: name}
    elif isinstance(value, list | tuple):
        entries = [part if isinstance(part, Mapping) and isinstance(part.get("name"), str) else None for part in value]
        named = [
            (None, part, None) if entry is None else (entry["name"], None, _place(entry))
            for part, entry in zip(value, entries)
        ]
    else:
        whole = "" if value is None else str(value).strip(_MARKS)
        while whole[:1] + whole[-1:] in _PAIRS:
            whole = whole[1:-1]
        texts = [_bare(text) for text in _APART.split(whole)]
        return [(text, None) for text in texts if text]
    if all(place is not None for _, _, place in named):
        named.sort(key=lambda entry: entry[2] or 0)
    return [(key, part) for key, part, _ in named]


def _bare(text: str) -> str:
    """A name without what a list written as text puts around it: quotes, and brackets that are not its own."""
    text = text.strip(_MARKS)
    own = all(text.count(begin) == text.count(end) for begin, end in _PAIRS) and text[:1] + text[-1:] not in _PAIRS
    return text if own else text.strip(_MARKS + "".join(_PAIRS))


def _place(value: Any) -> int | None:
    """Where a number stands among the others, if an entry of it says so."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _PLACES if key in value), None)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    whole = whole or (isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()))
    return int(value) if whole else None


def is_rmbench(feature: Mapping[str, Any]) -> bool:
    """Whether a state or an action is that of RMBench's two arms: 16 numbers, named as these in their order, or without
    names, or with names that only count them; names of the axes alone, such as ["motors"], name no number."""
    if list(feature.get("shape") or ()) != [len(_TWO_ARMS)]:
        return False
    names = flat_names(feature.get("names"), len(_TWO_ARMS))
    if len(names) <= 1 or _only_count(names):  # what stands over or below them may name them, too
        return not any(_means(name) for depth in _depths(feature.get("names")) for name in depth)
    found = [_joint(name) for name in names]
    if ("left", 7) in found:  # they count from 1
        found = [joint and (joint[0], joint[1] - (joint[1] > 0)) for joint in found]
    return found == _TWO_ARMS


def _only_count(names: list[str]) -> bool:
    """ "motor_0", "motor_1", ..., from 0 or 1: names without a meaning."""
    words = [_words(name) for name in names]
    counted = [int(word) for one in words for word in one if word.isdecimal()]
    stems = {tuple(word for word in one if not word.isdecimal()) for one in words}
    meaningless = len(stems) == 1 and set(stems.pop()) <= _COUNTED
    return meaningless and counted in (list(range(len(names))), list(range(1, len(names) + 1)))


def _means(name: str) -> bool:
    return bool({word for word in _words(name) if not word.isdecimal()} - _COUNTED)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(_HUMP.sub("_", name))]


def _joint(name: str) -> tuple[str, int] | None:
    """Side and number of a joint, -1 for a gripper; None for anything else."""
    words = _words(name)
    sides = [_SIDES[word] for word in words if word in _SIDES]
    numbers = [int(word) for word in words if word.isdecimal()]
    rest = {word for word in words if word not in _SIDES and not word.isdecimal()} - _SILENT
    if len(sides) != 1 or rest - {"gripper"}:
        return None
    if rest:
        return None if numbers else (sides[0], -1)
    return (sides[0], numbers[0]) if len(numbers) == 1 else None
