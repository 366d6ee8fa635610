"""Imports point one way: a room knows those below it, never those above or beside it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the ground up; the rooms of one line do not know each other. A module of mem0_jax itself is a room of its own.
FLOORS = (
    ("errors",),
    ("config", "disk", "family", "installed", "pages", "progress", "reference", "stand_in", "tree", "units"),
    ("jax_environment", "lock", "nn", "store", "tokenizer"),
    ("backbones", "data", "distributed", "envs", "heads", "memory"),
    ("policies",),
    ("inference", "train"),
    ("convert", "serve"),
    ("eval", "golden", "planner"),
    ("demo",),
    ("cli", "configs"),
    ("commands",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = {"mem0_jax": "", "convert": "convert", "configs": "configs"}  # where they lie -> room; "": by their name


def sources() -> list[tuple[Path, str]]:
    """Every source file of the package with its room."""
    return [
        (path, room or path.relative_to(ROOT / folder).with_suffix("").parts[0])
        for folder, room in FOLDERS.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path != ROOT / "mem0_jax" / "__init__.py"
    ]


def imported(path: Path) -> list[tuple[int, str]]:
    """Line and room of everything of this package that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mem0_jax":
            names = [f"mem0_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            names = [node.module or ""]
        else:
            continue
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("mem0_jax.")]
    return [(line, room) for line, room in found if room != "__version__"]


@pytest.mark.parametrize("room", sorted({room for _, room in sources()}))
def test_rooms_know_only_what_is_below_them(room):
    assert room in FLOOR, f"{room} has no floor yet"
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for path, own in sources()
        if own == room
        for line, other in imported(path)
        if other != room and FLOOR[other] >= FLOOR[room]
    ]
    assert not upward


def test_every_floor_has_rooms_that_exist():
    assert set(FLOOR) == {room for _, room in sources()}
