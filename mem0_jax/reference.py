"""Numbers of a reference implementation: read from a golden folder, and how far ours are from them."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.errors import UserError

MAX_BYTES = 4 * 2**30  # of the unpacked arrays: far more than a golden needs, less than a machine has


@dataclass
class Check:
    """Greatest error of one quantity against its gate."""

    name: str
    gate: float
    error: float = 0.0
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the gate."""
        return self.error <= self.gate


class Report:
    """Collects the greatest error of every quantity."""

    def __init__(self):
        self.checks: dict[str, Check] = {}

    def add(self, name: str, gate: float, error: float, where: str) -> None:
        """Keeps the greatest error seen of `name`; NaN counts as infinite."""
        check = self.checks.setdefault(name, Check(name, gate, where=where))
        error = float("inf") if np.isnan(error) else float(error)
        if error > check.error:
            check.error, check.where = error, where

    def compare(self, name: str, gate: float, value: Any, reference: Any, where: str) -> None:
        """Adds the `relative` error of `value`; UserError when its size is not the reference's."""
        value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
        if value.size != reference.size:
            raise UserError(f"{name} ({where}): the golden holds {reference.shape}, expected {value.shape}")
        self.add(name, gate, relative(value.ravel(), reference.ravel()), where)

    @property
    def passed(self) -> bool:
        """Whether anything was compared and nothing went past its gate."""
        return bool(self.checks) and all(check.passed for check in self.checks.values())


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """|value - reference| / |reference| in the L2 norm."""
    difference, scale = np.linalg.norm(value - reference), np.linalg.norm(reference)
    return 0.0 if difference == 0 else float(difference / scale) if scale else float("inf")


class Entries(dict):
    """The entries of a file, nested or not; a missing one is a UserError that names file and entry."""

    def __init__(self, file: Path, entries: Mapping[str, Any], prefix: str = ""):
        inner = {k: Entries(file, v, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in entries.items()}
        super().__init__(inner)
        self.file, self.prefix = file, prefix

    def __missing__(self, key: str):
        raise UserError(f"{self.file}: {self.prefix}{key} is missing")

    def below(self, prefix: str) -> "Entries":
        """The entries `prefix/...` without their prefix."""
        own = {key[len(prefix) + 1 :]: value for key, value in self.items() if key.startswith(prefix + "/")}
        return Entries(self.file, own, f"{self.prefix}{prefix}/")


def read_entries(path: Path) -> Entries:
    """All entries of a JSON file. Raises UserError."""
    try:
        return Entries(path, json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from error


def read_arrays(path: Path) -> Entries:
    """All arrays of an npz file. Raises UserError for a damaged or oversized file."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size} bytes unpacked, expected at most {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return Entries(path, {key: arrays[key] for key in arrays.files})
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, MemoryError) as error:
        raise UserError(f"{path}: not a readable npz file ({error})") from error
