"""`mem0-jax data stats`: what normalisation needs to know about datasets."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress

SUMMARY = (
    "Computes minimum, maximum, mean, standard deviation and quantiles of states and actions over all frames of one or "
    "more LeRobot datasets, taken as one. Videos are not opened. Joints that hardly move are warned of."
)
COLUMNS = ("min", "q01", "mean", "q99", "max", "std")


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser(
        "data stats",
        SUMMARY,
        [
            "mem0-jax data stats datasets/put_back_block --out norm_stats.json",
            "mem0-jax data stats datasets/swap_blocks datasets/swap_T --json stats.json",
        ],
    )
    flags.add_argument("datasets", nargs="+", metavar="DIR", help="a LeRobot dataset, a folder or an address")
    flags.add_argument("--out", type=Path, metavar="FILE", help="write norm_stats.json, as references read it")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write everything that is printed to this file")
    return flags


def main(argv: Sequence[str]) -> None:
    """Measures datasets."""
    flags = parser().parse_args(argv)
    from mem0_jax.data.lerobot import LeRobotDataset
    from mem0_jax.data.normalize import NormStats, span_warnings
    from mem0_jax.data.robot import robot_of

    if len(set(map(os.path.realpath, flags.datasets))) < len(flags.datasets):
        raise UserError("a dataset is given twice; its frames would count double")
    try:
        with Progress("reading", len(flags.datasets), "dataset") as progress:
            datasets = [LeRobotDataset(folder) for folder in progress.over(flags.datasets)]
        with Progress("measuring"):
            stats = NormStats.from_datasets(datasets)
        robot = robot_of(datasets[0])
        warnings = span_warnings(stats, robot)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    rows = [{"dataset": str(d.root), "episodes": len(d.episodes), "frames": d.num_frames} for d in datasets]
    for row in rows:
        print(f"{row['dataset']}: {row['episodes']} episodes, {row['frames']:,} frames")
    for kind in ("state", "action"):
        print(f"\n{table(kind, getattr(robot, kind).names, getattr(stats, kind))}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if flags.out:
        write_json(flags.out, stats.to_json())
        print(f"\nwritten to {flags.out}")
    if flags.json:
        write_json(flags.json, {"datasets": rows, "stats": stats.to_json(), "warnings": warnings})


def table(kind: str, names: Sequence[str], stats: Mapping[str, Any]) -> str:
    """The statistics of one kind of vector, a line a number."""
    width = max(15, *(len(name) + 2 for name in names))
    lines = [f"{kind:<{width}}" + "".join(f"{name:>10}" for name in COLUMNS)]
    for d, own in enumerate(names):
        lines.append(f"{own:<{width}}" + "".join(f"{stats[name][d]:>10.4f}" for name in COLUMNS))
    return "\n".join(lines)
