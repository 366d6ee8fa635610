"""Frozen dataclasses to JSON-ready dicts and back, strictly: what is written reads back equal, the rest is refused.

A field may be bool, int, float, str, a ``Literal`` of these, another dataclass, ``tuple[T, ...]``, ``tuple[A, B]``,
``Mapping[str, T]``, or any of them ``| None``; and one field may decide of which class another is, see ``deciding``.
Nothing is guessed: an unknown field, a missing one or a value of another type is an error.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union

from mem0_jax.errors import UserError

T = TypeVar("T")
DECIDES = "decides"  # in the metadata of a field


class ConfigError(UserError):
    """A configuration that does not fit its dataclass; the message lists everything that is wrong with it."""


def deciding(default: str, classes: Mapping[str, Callable[[str], type]], reset: tuple[str, ...] = ()) -> Any:
    """A field whose value decides what others are.

    Args:
      default: of the field.
      classes: name of a field beside it -> its class, by this one's value.
      reset: further fields, by dotted path, that mean nothing once this one's value is another.
    """
    return dataclasses.field(default=default, metadata={DECIDES: (classes, reset)})


def decided(cls: type, data: Mapping[str, Any], field: str, value: str) -> dict[str, Any]:
    """The fields of a dataclass, as ``to_dict`` gives them, once a deciding field has another value: those that depend
    on it are what the class makes of it."""
    classes, reset = next(f for f in dataclasses.fields(cls) if f.name == field).metadata[DECIDES]
    fresh = {**data, field: value}
    for path in (*classes, *reset):
        *above, last = path.split(".")
        node = fresh
        for name in above:
            node[name] = dict(node[name])
            node = node[name]
        node.pop(last, None)
    return dataclasses.asdict(from_dict(cls, fresh))


def to_dict(config: Any) -> dict[str, Any]:
    """The fields of a dataclass as nested dicts and lists of JSON values: tuples become lists.

    Raises:
      ConfigError: a value has no JSON form (NaN, infinity, an array); it is named by its path.
    """
    problems: list[str] = []
    data = _dump(config, type(config).__name__, problems)
    if problems or not isinstance(data, dict):
        raise ConfigError("; ".join(problems) or f"expected a dataclass, got {type(config).__name__}")
    return data


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """Builds a dataclass from nested dicts as ``to_dict`` makes them.

    Args:
      cls: the dataclass. Fields with a default may be absent from ``data``.
      data: field name -> value. A whole number is accepted for a float, a list or tuple for a tuple.

    Raises:
      ConfigError: lists every unknown field (with the closest known one), every missing field and every value of a
        wrong type, each by its path such as ``PolicyConfig.bank.window``; or what the class itself refused.
    """
    problems: list[str] = []
    config = _load(cls, data, cls.__name__, problems)
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def check_ranges(config: Any, **intervals: str) -> None:
    """Refuses numbers outside of their interval; for the `__post_init__` of a dataclass.

    Args:
      config: the dataclass.
      intervals: field name -> an interval as mathematics writes it, such as ``dropout="[0, 1)"``. Of a tuple every
        number counts.

    Raises:
      ValueError: naming every field that lies outside, NaN too, its value and the interval.
    """
    values = {name: getattr(config, name) for name in intervals}
    problems = [
        f"{name}: expected {'numbers' if isinstance(value, tuple) else 'a number'} in {interval}, got {value!r:.60}"
        for (name, value), interval in zip(values.items(), intervals.values())
        if not all(_within(number, interval) for number in (value if isinstance(value, tuple) else (value,)))
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _within(number: Any, interval: str) -> bool:
    if not isinstance(number, int | float):
        return False
    low, high = map(float, interval[1:-1].split(","))
    above = low <= number if interval[0] == "[" else low < number
    return above and (number <= high if interval[-1] == "]" else number < high)


def _dump(value: Any, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(type(value)):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: _dump(getattr(value, name), f"{path}.{name}", problems) for name in names}
    if isinstance(value, tuple):
        return [_dump(item, f"{path}[{i}]", problems) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {name: _dump(item, f"{path}.{name}", problems) for name, item in value.items()}
    plain = value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
    if not plain:
        problems.append(f"{path}: {value!r:.60} has no JSON form")
    return value


def _load(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """The value as ``kind``; what is wrong is added to ``problems`` and the result is then meaningless."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:  # of a class that could not be decided, which was said
        return value
    if origin in (Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        if len(inner) != 1 or len(args) != 2:
            raise TypeError(f"{path}: {kind} is not supported, only one type and None")
        return None if value is None else _load(inner[0], value, path, problems)
    if origin is Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            problems.append(f"{path}: expected one of {', '.join(map(repr, args))}, got {value!r:.60}")
        return value
    if origin is tuple:
        return _load_tuple(args, value, path, problems)
    if origin is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            problems.append(f"{path}: expected values by name, got {value!r:.60} ({type(value).__name__})")
            return value
        return {name: _load(args[1], item, f"{path}.{name}", problems) for name, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _load_dataclass(kind, value, path, problems)
    if kind not in (bool, int, float, str):
        raise TypeError(f"{path}: fields of type {kind} are not supported")
    if kind is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if type(value) is not kind:
        problems.append(f"{path}: expected {kind.__name__}, got {value!r:.60} ({type(value).__name__})")
    elif type(value) is float and not math.isfinite(value):
        problems.append(f"{path}: expected a finite number, got {value!r}")
    return value


def _load_tuple(kinds: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        problems.append(f"{path}: expected a list, got {value!r:.60} ({type(value).__name__})")
        return value
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        problems.append(f"{path}: expected {len(kinds)} values, got {len(value)}")
        return value
    return tuple(_load(kind, item, f"{path}[{i}]", problems) for i, (kind, item) in enumerate(zip(kinds, value)))


def _load_dataclass(cls: type, data: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{path}: expected a dict of fields, got {data!r:.60} ({type(data).__name__})")
        return data
    before = len(problems)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls) | _decided_classes(fields, data, path, problems)
    for name in data:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(fields)}"
            problems.append(f"{path}.{name}: unknown field, {hint}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in data and not optional:
            problems.append(f"{path}.{name}: missing")
    values = {
        name: _load(hints[name], value, f"{path}.{name}", problems) for name, value in data.items() if name in fields
    }
    if len(problems) > before:
        return data
    try:
        return cls(**values)
    except (ValueError, UserError) as error:  # the class's own checks, in __post_init__
        problems.append(f"{path}: {error}")
        return data


def _decided_classes(fields: Mapping[str, Any], data: Mapping[str, Any], path: str, problems: list[str]) -> dict:
    """The classes of the fields that others decide."""
    found = {}
    for name, field in fields.items():
        value = data.get(name, field.default)
        for other, class_of in field.metadata.get(DECIDES, ({},))[0].items():
            try:
                found[other] = class_of(value) if isinstance(value, str) else Any
            except UserError as error:
                problems.append(f"{path}.{name}: {error}")
                found[other] = Any
    return found
