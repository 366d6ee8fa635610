"""The models whose checkpoints are converted: a file each, found by its name, with a `Format` called FORMAT.

The name is that of the model's family. An installed package adds its own by an entry point of the group
`mem0_jax.formats`: NAME = "package.module:FORMAT".
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from mem0_jax.convert.format import Format
from mem0_jax.convert.rules import ConversionError
from mem0_jax.family import Config, family_of, found_at

PLUGINS = "mem0_jax.formats"


@cache
def formats() -> Mapping[str, Format]:
    """All of them by name."""
    inner = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
    known = {name: f"{__name__}.{name}:FORMAT" for name in inner}
    known |= {point.name: point.value for point in entry_points(group=PLUGINS) if point.name not in known}
    return {name: found_at(where, Format, name) for name, where in known.items()}


def dialects() -> list[Format]:
    """All of them, and as others name their tensors."""
    return [one for main in formats().values() for one in (main, *main.dialects)]


def format_of(config: Config) -> Format:
    """The format of a configuration's model. Raises ConversionError: it has none."""
    name = family_of(config).name
    if name not in formats():
        raise ConversionError(f"no checkpoints of PyTorch are known for {name!r}, only for {', '.join(formats())}")
    return formats()[name]
