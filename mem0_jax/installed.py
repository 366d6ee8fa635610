"""The packages of the environment that runs this: whether they fit, and how others get there. Imports none of them."""

import re
import shlex
import sys
import traceback
from importlib import metadata
from pathlib import Path

from mem0_jax.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]
PYTHONS = (3, 11), (3, 14)  # the first that is supported, the first that is not


def how_to_install(extra: str) -> str:
    """The command that brings what an extra of pyproject.toml needs into this environment.

    In the environment that the checkout's Makefile made it is a target of it. Elsewhere it names the packages
    themselves, which is right wherever this one came from.
    """
    return _make(extra) or shlex.join(["pip", "install", *_requirements(extra)])


def check() -> None:
    """Raises UserError where this Python or a package that all commands need is missing or too old."""
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        raise UserError(
            f"mem0_jax needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: take another interpreter"
        )
    wrong = {}
    for requirement in _requirements(""):
        name, _, least = requirement.partition(">=")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong[requirement] = f"{name} is missing"
            continue
        if _numbers(version) < _numbers(least):
            wrong[requirement] = f"{name} is {version}, {least} or newer is needed"
    if wrong:
        mend = _make("-B", "install") or shlex.join(["pip", "install", *wrong])
        raise UserError(f"this environment does not fit: {'; '.join(wrong.values())}. To mend it: {mend}")


def explained(error: Exception) -> str | None:
    """What an error says that was raised while another package was imported; None for other errors."""
    outside = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] == "mem0_jax":
            outside = ""
        elif frame.f_code.co_name == "<module>" and "-packages" in frame.f_code.co_filename:
            outside = outside or name
    if not outside:
        return None
    said, mend = " ".join(str(error).split()), _make("-B", "install") or "pip check"
    return f"the package {outside} cannot be imported here ({type(error).__name__}: {said}). What may help: {mend}"


def _make(*words: str) -> str | None:
    """A call of the Makefile that made this environment, None where it is another's. With -B it does again what is
    done: others may have put other versions in the place of its own since."""
    if Path(sys.prefix).resolve() != (CHECKOUT / ".venv").resolve() or not (CHECKOUT / "Makefile").is_file():
        return None
    return shlex.join(["make", *([] if Path.cwd() == CHECKOUT else ["-C", str(CHECKOUT)]), *words])


def _requirements(extra: str) -> list[str]:
    """What pyproject.toml asks for, such as "numpy>=2.0", in general or for an extra."""
    try:
        entries = [entry.split(";") for entry in metadata.requires("mem0-jax") or ()]
    except metadata.PackageNotFoundError:  # run from its folder, not installed
        return []
    marker = f'extra == "{extra}"' if extra else None
    return [entry[0].strip() for entry in entries if (entry[1].strip() if entry[1:] else None) == marker]


def _numbers(version: str) -> tuple[int, ...]:
    """`"2.4.0rc1"` as (2, 4, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
