"""Nested configurations as dotted path -> value, such as `backbone.text.rope_theta`, and back."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dataclass as dotted path -> value."""
    values: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            values |= flat(value, f"{prefix}{f.name}.")
        else:
            values[prefix + f.name] = value
    return values


def parts(cls: type, path: str = "") -> set[str]:
    """Paths of the dataclasses in a dataclass, "" for itself."""
    kinds = {f"{path}.{name}".lstrip("."): kind for name, kind in get_type_hints(cls).items() if is_dataclass(kind)}
    return {path}.union(*(parts(kind, inner) for inner, kind in kinds.items() if isinstance(kind, type)))


def dotted(data: Any, path: str, inner: set[str], problems: list[str]) -> dict[str, Any]:
    """What stands at `path` of a file, whose nested mappings are `inner`, as dotted path -> value.

    Lists become tuples; what is no mapping where one is expected is added to `problems`.
    """
    if path not in inner:
        return {path: tuple(data) if isinstance(data, list) else data}
    if not isinstance(data, dict):
        problems.append(f"{path}: expected a mapping of settings, got {data!r:.60}")
        return {}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if "." in str(key):
            problems.append(f"{path}: unknown entry {key!r:.60}")
        else:
            values |= dotted(value, f"{path}.{key}".lstrip("."), inner, problems)
    return values


def below(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Those of a part, without its name."""
    return {path.removeprefix(f"{part}."): value for path, value in values.items() if path.startswith(f"{part}.")}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as mappings in mappings, as files hold them."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *outer, last = path.split(".")
        node = tree
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = plain(value)
    return tree


def plain(value: Any) -> Any:
    """As files hold it."""
    return list(value) if isinstance(value, (tuple, list)) else value
