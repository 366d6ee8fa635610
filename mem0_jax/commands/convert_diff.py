"""`mem0-jax convert diff`: compare two checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.progress import Progress

SUMMARY = (
    "Compares two checkpoints tensor by tensor, whatever their formats (.pt, safetensors, bundle), and prints the "
    "greatest error of each tensor that differs. Exit code 1 if a tensor is missing, has another shape, or is further "
    "off than --tolerance."
)


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    flags = CommandParser("convert diff", SUMMARY, ["mem0-jax convert diff m1_mix.pt bundles/m1_mix"])
    flags.add_argument("a", type=Path, metavar="A", help="a checkpoint")
    flags.add_argument("b", type=Path, metavar="B", help="another")
    for name in "ab":
        flags.add_argument(f"--weights-{name}", metavar="NAME", help=f"which ones, if {name.upper()} has several sets")
    flags.add_argument(
        "--tolerance", type=float, default=0.0, help="greatest error allowed, relative to the tensor's greatest value"
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the errors of all tensors to this file as well")
    given = flags.parse_args(argv)
    from mem0_jax.convert.look import differences
    from mem0_jax.convert.sources import open_source

    a, b = open_source(given.a, given.weights_a), open_source(given.b, given.weights_b)
    with Progress("compare", len(a.tensors), "tensor") as progress:
        rows = list(progress.over(differences(a, b)))
    failed = [row for row in rows if row.problem or row.relative > given.tolerance]
    shown = [row for row in rows if row.problem or row.error]
    for row in shown:
        print(f"{row.name}: {row.problem or f'greatest error {row.error:.3e}, relative {row.relative:.3e}'}")
    identical = sum(row.identical for row in rows)
    close = len(rows) - identical - len(failed)
    print(f"{len(rows)} tensors: {identical} identical in every byte, {close} within the tolerance, {len(failed)} not")
    if given.json:
        write_json(given.json, {"passed": not failed, "tensors": [_finite(asdict(row)) for row in rows]})
    return 1 if failed else 0


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null."""
    return {key: None if value == math.inf else value for key, value in row.items()}
