"""Replays folders of a reference's inputs and outputs through our policies and measures the differences.

Whose numbers a folder holds, the files in it tell.
"""

from pathlib import Path
from typing import Any

import jax

from mem0_jax.errors import UserError
from mem0_jax.golden.models import known
from mem0_jax.golden.numbers import Numbers
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.reference import Report


@same_numbers
def replay(folder: str | Path, bundle: Any | None = None) -> Report:
    """Replays everything in a golden folder.

    Args:
        folder: the golden folder.
        bundle: a `policies.bundle.Bundle`, whose parameters take the place of those in the folder.

    Raises:
        UserError: the folder is damaged, or the bundle is of another configuration.
    """
    report = Report()
    with jax.default_matmul_precision("highest"):
        numbers_in(Path(folder)).replay(Path(folder), bundle, report)
    return report


def numbers_in(folder: Path) -> Numbers:
    """Whose numbers a folder holds. Raises UserError: nobody's."""
    missing = {name: [f for f in one.files if not (folder / f).is_file()] for name, one in known().items()}
    nearest = min(missing, key=lambda name: len(missing[name]))
    if missing[nearest]:
        holds = "; or ".join(f"of {name}, {', '.join(one.files)}" for name, one in known().items())
        raise UserError(f"{folder / missing[nearest][0]} is missing: a golden folder holds, {holds}")
    return known()[nearest]
