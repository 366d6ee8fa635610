"""`mem0-jax golden`: replay the reference's numbers and print the greatest differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json

if TYPE_CHECKING:
    from mem0_jax.reference import Report

SUMMARY = (
    "Builds a policy from a folder of its PyTorch reference's inputs and outputs, replays its training batches and "
    "inference steps in float32 and prints the greatest relative error of every quantity. Whose numbers they are, the "
    "files in the folder tell. Exit code 1 if one is past its gate."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser("golden", SUMMARY, ["mem0-jax golden tests/model/assets/tiny_a --json golden.json"])
    flags.add_argument("folder", type=Path, metavar="DIR", help="the golden folder")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    return flags


def main(argv: Sequence[str]) -> int:
    """Replays a folder."""
    flags = parser().parse_args(argv)
    from mem0_jax.golden import replay
    from mem0_jax.inference.compiled import keep_compiled_if_possible

    keep_compiled_if_possible()
    return show(replay(flags.folder), flags.json)


def show(report: "Report", file: Path | None) -> int:
    """Prints a replay as a table, writes it as JSON if asked to, and returns the exit code."""
    rows = [
        {"quantity": c.name, "error": c.error, "gate": c.gate, "passed": c.passed, "where": c.where}
        for c in report.checks.values()
    ]
    print(f"{'quantity':<34}{'greatest error':>15}{'gate':>9}        where")
    for row in rows:
        verdict = "ok" if row["passed"] else "FAIL"
        print(f"{row['quantity']:<34}{row['error']:>15.2e}{row['gate']:>9.0e}  {verdict:<5} {row['where']}")
    print("all within their gates" if report.passed else "past a gate: this model is not the reference's")
    if file:
        finite = [row | {"error": row["error"] if row["error"] < float("inf") else None} for row in rows]
        write_json(file, {"passed": report.passed, "checks": finite})
    return 0 if report.passed else 1
