"""The numbers of each policy's reference: a module each, found by the policy's name, with `Numbers` called NUMBERS.

An installed package adds its own by an entry point of the group `mem0_jax.golden`: NAME = "package.module:NUMBERS".
"""

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from mem0_jax.golden.numbers import Numbers

PLUGINS = "mem0_jax.golden"


@cache
def known() -> Mapping[str, Numbers]:
    """All of them by name."""
    inner = sorted(path.stem for path in Path(__file__).parent.iterdir() if not path.stem.startswith("_"))
    where = {point.name: point.value for point in entry_points(group=PLUGINS)}
    where |= {name: f"{__name__}.{name}:NUMBERS" for name in inner}
    found = {name: value.split(":") for name, value in where.items()}
    return {name: getattr(importlib.import_module(module), entry) for name, (module, entry) in found.items()}
