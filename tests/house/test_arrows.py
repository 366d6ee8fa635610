"""Imports point one way: a room knows those below it, never those above or beside it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the ground up; the rooms of one line do not know each other. A module of mem0_jax itself is a room of its own.
FLOORS = (
    ("errors",),
    ("config", "disk", "family", "installed", "pages", "progress", "reference", "resize", "stand_in", "tree", "units"),
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


MODELS = {path.parent.name for room in ("policies", "backbones") for path in ROOT.glob(f"mem0_jax/{room}/*/family.py")}
# "mem0_jax" and "mem0-jax" are this package and its program, MEM0_API_KEY and the like its variables, mem0_requests and
# the like its server's figures.
NAMES = re.compile("|".join("[-_]?".join(re.findall(r"[a-z]+|\d+", name)) for name in MODELS) + "|qwen", re.IGNORECASE)
OURS = re.compile(r"mem0[-_]jax|MEM0_[A-Z]+")
NAMESPACE = ("mem0_jax/serve/metrics.py", "mem0")  # of those figures


def may_name(path: Path) -> bool:
    """Whether a file is a model's own."""
    inner = path.relative_to(ROOT).parts
    own = inner[:2] in (("mem0_jax", "policies"), ("mem0_jax", "backbones")) and len(inner) > 3
    own = own or inner[:3] == ("mem0_jax", "golden", "models")
    return own or inner[:2] in (("mem0_jax", "heads"), ("convert", "models")) or inner[:1] == ("configs",)


def words(path: Path) -> list[tuple[int, str]]:
    """Line and text of every name and string in a file but docstrings, which may tell where something comes from."""
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: list[tuple[int, str | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found += [(node.lineno, f"{getattr(node, 'module', '')}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.expr | ast.stmt | ast.arg | ast.keyword):
            found += [(node.lineno, getattr(node, field, None)) for field in ("id", "attr", "arg", "name")]
    return [(line, text) for line, text in found if isinstance(text, str)]


def test_models_are_named_in_their_own_files_alone():
    named: dict[str, list[str]] = {}
    for path, _ in sources():
        file = str(path.relative_to(ROOT))
        for line, text in words(path) if not may_name(path) else ():
            if (file, text) != NAMESPACE and (found := NAMES.search(OURS.sub("", text))):
                named.setdefault(file, []).append(f"{file}:{line} names {found[0]}")
    assert named == {}
