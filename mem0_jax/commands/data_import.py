"""`mem0-jax data import`: recordings of other programs as LeRobot datasets."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.errors import UserError

SUMMARY = (
    "Turns RMBench recordings (a folder of HDF5 files a task, staged or not) into one LeRobot dataset: states and "
    "actions of 16 numbers, head camera as video, subtasks and their ends. An interrupted import continues with the "
    "same command."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser(
        "data import",
        SUMMARY,
        [
            "mem0-jax data import rmbench data/put_back_block datasets/put_back_block",
            "mem0-jax data import rmbench data/swap_blocks data/swap_T datasets/swap --format v2.1 --workers 8",
        ],
    )
    flags.add_argument("kind", choices=["rmbench"], help="what the recordings are")
    flags.add_argument("sources", nargs="+", type=Path, metavar="SRC", help="a task's folder; several make one dataset")
    flags.add_argument("out", type=Path, metavar="OUT", help="the dataset's folder, which must not exist")
    flags.add_argument("--format", default="v3.0", choices=["v3.0", "v2.1"], help="LeRobot's version of the layout")
    flags.add_argument("--workers", default=os.cpu_count(), type=_positive, metavar="N", help="processes that encode")
    flags.add_argument("--skip-damaged", action="store_true", help="leave damaged recordings out and list them")
    flags.add_argument(
        "--instruction",
        action="append",
        type=_instruction,
        metavar="TASK=TEXT",
        help="a task's instruction, if it is none of RMBench's or another text is wanted; may be repeated",
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the lists of episodes to this file as well")
    return flags


def main(argv: Sequence[str]) -> None:
    """Imports recordings."""
    flags = parser().parse_args(argv)
    from mem0_jax.data.rmbench_import import import_rmbench

    try:
        report = import_rmbench(
            flags.sources,
            flags.out,
            version=flags.format,
            workers=flags.workers,
            skip_damaged=flags.skip_damaged,
            instructions=dict(flags.instruction or []),
        )
    except OSError as error:  # a full disk, a folder that cannot be written
        raise UserError(f"cannot write {flags.out}: {error}; finished episodes are kept") from error
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for entry in report.skipped:
        print(f"left out: {entry['reason']}", file=sys.stderr)
    frames = sum(entry["frames"] for entry in report.episodes)
    tasks = Counter(entry["task"] for entry in report.episodes)
    print(f"{report.dataset}: LeRobot {report.version}, {len(report.episodes)} episodes, {frames:,} frames")
    print(", ".join(f"{task} {count}" for task, count in tasks.items()))
    if flags.json:
        rows = {"episodes": report.episodes, "skipped": report.skipped, "warnings": report.warnings}
        write_json(flags.json, {"dataset": str(report.dataset), "format": report.version} | rows)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def _instruction(text: str) -> tuple[str, str]:
    task, equals, instruction = text.partition("=")
    if not (task and equals and instruction.strip()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected TASK=TEXT")
    return task, instruction
