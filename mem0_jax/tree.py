"""Parameters as one nested dict with string keys, and the rules that address its leaves by `/`-joined path.

Modules, checkpoints, the optimizer, freezing, learning-rate groups and converters meet at that dict and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mem0_jax.errors import UserError


class TreeError(UserError, ValueError):
    """Paths, rules and parameters that do not fit together."""


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict to `{"outer/inner": leaf}`, in the dict's own order.

    Everything that is not a dict is a leaf. Raises TypeError for a key that is not a string and TreeError for a key
    that is empty or holds a `/`, or for an empty inner dict, because none of these would survive `unflatten`.
    """
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"key {key!r} under {prefix or 'the root'!r}: expected a string, got {type(key).__name__}"
                )
            if not key or "/" in key:
                raise TreeError(f"key {key!r} under {prefix or 'the root'!r}: a key may not be empty or hold a '/'")
            path = f"{prefix}/{key}" if prefix else key
            if not isinstance(value, Mapping):
                flat[path] = value
            elif value:
                walk(value, path)
            else:
                raise TreeError(f"{path!r} is an empty dict: leave it out, it holds no leaf")

    walk(tree, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`. Raises TreeError where one path runs through the leaf of another."""
    tree: dict[str, Any] = {}
    inner = {"": tree}  # path -> the dict we made there, so that a leaf which happens to be a dict is never entered
    for path, leaf in flat.items():
        parent, node = "", tree
        *outer, last = path.split("/")
        for key in outer:
            parent = f"{parent}/{key}" if parent else key
            if parent not in inner:
                if key in node:
                    raise TreeError(f"{path!r} runs through {parent!r}, which is already a leaf")
                inner[parent] = node[key] = {}
            node = inner[parent]
        if last in node:
            raise TreeError(f"{path!r} is already an inner dict or given twice")
        node[last] = leaf
    return tree


def match_rules(rules: Sequence[tuple[str, str]], paths: Iterable[str]) -> dict[str, str]:
    """Assign every path the name of the first rule whose regex matches the whole path.

    Args:
        rules: (name, path regex) in order of precedence; `backbone/.*` matches all leaves under `backbone`.
        paths: `/`-joined leaf paths.
    Returns:
        path -> name.
    Raises:
        TreeError: listing every path no rule matches and every rule that is no path's first match (misspelled, or
            hidden behind an earlier one): either one means that the table and the tree no longer fit together.
    """
    compiled = [(name, _compile(pattern)) for name, pattern in rules]
    assigned: dict[str, str] = {}
    unmatched: list[str] = []
    used = [False] * len(compiled)
    for path in paths:
        for i, (name, regex) in enumerate(compiled):
            if regex.fullmatch(path):
                assigned[path] = name
                used[i] = True
                break
        else:
            unmatched.append(path)
    idle = [f"{name}: {pattern!r}" for (name, pattern), hit in zip(rules, used) if not hit]
    problems = []
    if unmatched:
        problems.append("leaves that no rule matches:\n  " + "\n  ".join(unmatched))
    if idle:
        problems.append("rules no leaf falls to (misspelled, or an earlier rule takes all):\n  " + "\n  ".join(idle))
    if problems:
        raise TreeError("\n".join([*problems, "A rule's regex must match the whole path, such as 'backbone/.*'."]))
    return assigned


def select(patterns: Sequence[str], paths: Iterable[str], what: str) -> set[str]:
    """All paths that any pattern matches as a whole.

    Raises TreeError, naming `what` the patterns are for, if one of them matches nothing.
    """
    known = list(paths)
    selected: set[str] = set()
    idle: list[str] = []
    for pattern in patterns:
        regex = _compile(pattern)
        hits = {path for path in known if regex.fullmatch(path)}
        selected |= hits
        if not hits:
            idle.append(pattern)
    if idle:
        raise TreeError(
            f"{what}: {', '.join(map(repr, idle))} match no parameter; a regex must match a whole path, such as "
            f"{known[0]!r}" + (f" or {known[0].split('/')[0] + '/.*'!r}" if known and "/" in known[0] else "")
        )
    return selected


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise TreeError(f"{pattern!r} is not a regular expression: {error}") from error
