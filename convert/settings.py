"""The configuration behind a checkpoint: from the shapes of its tensors, from files, and from the released models.

Shapes tell most sizes. What they cannot tell (heads, rotary sections, window, horizon, token ids) comes from a file, or
from the released model whose sizes these are; nothing else is assumed. What is which, a model's `Format` says.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mem0_jax.config import ConfigError, from_dict
from mem0_jax.convert.dotted import below, dotted, flat, nested, parts, plain
from mem0_jax.convert.format import Format, Names, Settings, Shapes
from mem0_jax.convert.models import formats
from mem0_jax.convert.rules import ConversionError
from mem0_jax.family import Config, family
from mem0_jax.stand_in import stand_in

MAX_SETTINGS_BYTES = 2**20


def read_settings(path: Path, model: Format) -> Settings:
    """Reads a configuration of a model, of one that holds it, or of its backbone: a file that one of their formats
    reads, or the config.json of a bundle.

    Raises:
        ConversionError: not readable, of none of these layouts, or with settings this model does not have.
    """
    data = _parsed(path)
    if not isinstance(data, dict):
        raise ConversionError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    inside = [model.backbone.format] if model.backbone else []
    akin = [model, *_holders(model), *inside]
    try:
        if "format_version" in data and isinstance(data.get("config"), dict):
            own = _named(data.get("policy", model.name), akin)
            found = _of_bundle(data["config"], own)
        else:
            own = next((one for one in akin if one.reads(data)), model)
            if own.read is None or not own.reads(data):
                raise ConversionError(f"not a {own.title} configuration: expected {own.files}")
            found = own.read(data)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None
    return _of_file(path, found, own, model)


def read_folder_settings(folder: Path, model: Format) -> Settings:
    """Reads the config.json of a folder of a model, or of its backbone, as settings of the model."""
    path, own = folder / "config.json", model.innermost
    if model.beside:  # the model's own folders have one, too
        return read_settings(path, model)
    if own.read is None:
        return Settings()
    data = _parsed(path)
    try:
        return _of_file(path, own.read(data), own, model)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None


def _holders(model: Format) -> list[Format]:
    return [one for one in formats().values() if one.backbone and one.backbone.format is model]


def _named(name: Any, akin: list[Format]) -> Format:
    for one in akin:
        if one.name == name:
            return one
    raise ConversionError(f"the configuration of {name!r:.60}, not of {' or '.join(repr(one.name) for one in akin)}")


def _of_bundle(config: dict[str, Any], model: Format) -> Settings:
    problems: list[str] = []
    values = dotted(config, "", parts(family(model.name).config), problems)
    if problems:
        raise ConversionError("; ".join(problems))
    return Settings(values)


def _of_file(path: Path, found: Settings, own: Format, model: Format) -> Settings:
    """What was read from a file with settings of `own`, as settings of `model`."""
    values = found.values
    if own is not model and own.backbone:
        values = below(values, own.backbone.field)
    elif own is not model and model.backbone:
        values = {f"{model.backbone.field}.{name}": value for name, value in values.items()}
    return replace(found, values=values, where=str(path), notes=tuple(f"{path}: {note}" for note in found.notes))


def _parsed(path: Path) -> Any:
    """The content of a JSON or YAML file."""
    try:
        if path.is_dir():
            raise ConversionError(f"{path} is a folder: name the file in it")
        if said := stand_in(path):
            raise ConversionError(f"{path} {said}")
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ConversionError(f"{path}: larger than 1 MiB, not a configuration")
        text = path.read_text("utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConversionError(f"{path}: not readable as YAML or JSON ({str(error).splitlines()[0]})") from None


def configuration(model: Format, shapes: Shapes, settings: Settings) -> Config:
    """The configuration of a model's checkpoint.

    Raises:
        ConversionError: listing every setting that contradicts the shapes and every one that nothing tells.
    """
    problems: list[str] = []
    values = _values(model, Names(shapes), settings.values, settings.where, model.title, problems)
    if problems:
        raise ConversionError("the configuration is not settled:\n  " + "\n  ".join(problems))
    config = _built(model, values, settings)
    inner = getattr(config, model.backbone.field) if model.backbone else config
    if said := model.check(config) or model.innermost.check(inner):
        raise ConversionError(f"{settings.where}: {said}")
    return config


def _values(
    model: Format, names: Names, given: Mapping[str, Any], where: str, part: str, problems: list[str]
) -> dict[str, Any]:
    """Fields of a configuration, nested: those of the backbone first, then its own."""
    inner: dict[str, Any] = {}
    if inside := model.backbone:
        theirs = below(given, inside.field), where, inside.field, problems
        inner = {inside.field: _values(inside.format, names.below(inside.prefix), *theirs)}
        given = {name: value for name, value in given.items() if not name.startswith(f"{inside.field}.")}
        part = "heads"
    derived = model.sizes(names)
    released = [flat(config) for config in model.released]
    alike = [known for known in released if all(derived[name] == known[name] for name in model.known_by)]
    known = {name: alike[0][name] for name in model.untold} if alike else {}
    return nested(_complete(derived, given, known, model.untold, part, where, problems)) | inner


def _complete(
    derived: Mapping[str, Any],
    given: Mapping[str, Any],
    released: Mapping[str, Any],
    untold: tuple[str, ...],
    part: str,
    where: str,
    problems: list[str],
) -> dict[str, Any]:
    """Shapes first, then the file, then the released model."""
    problems += [
        f"{name} is {plain(derived[name])} by the tensors' shapes, but {plain(value)} in {where}"
        for name, value in given.items()
        if name in derived and plain(value) != plain(derived[name])
    ]
    values = dict(released) | dict(given) | dict(derived)
    missing = [name for name in untold if name not in values]
    if missing:
        problems.append(
            f"{part}: the shapes do not tell {', '.join(missing)}, and these are not the sizes of a released model; "
            "give the settings with --config FILE (the reference's YAML or a config.json) or --backbone DIR"
        )
    return values


def _built(model: Format, values: Mapping[str, Any], settings: Settings) -> Config:
    try:
        return from_dict(family(model.name).config, values)
    except ConfigError as error:
        said = str(error)
    paths = said.replace(": ", ".")
    theirs = [f"{name} is its {given}" for name, given in model.theirs.items() if re.search(rf"\.{name}\b", paths)]
    raise ConversionError(f"{settings.where}: {said}" + (f" ({', '.join(theirs)})" if theirs else ""))
