"""`mem0-jax demo`: from nothing to a report on what memory is worth."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mem0_jax.cli import CommandParser
from mem0_jax.disk import disk_told
from mem0_jax.envs import TASKS
from mem0_jax.lock import hold_folder
from mem0_jax.progress import Progress

SUMMARY = (
    "Records scripted experts in a built-in tabletop task, trains a small policy from scratch with and without memory, "
    "evaluates both on unseen episodes and writes report.html and report.json. About a quarter of an hour on two CPU "
    "cores. Ctrl-C stops it; the same command continues."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser(
        "demo", SUMMARY, ["mem0-jax demo --out runs/demo", "mem0-jax demo --out runs/swap --task swap_blocks"]
    )
    flags.add_argument("--out", required=True, type=Path, help="folder of the run")
    flags.add_argument("--task", default="put_back_block", choices=list(TASKS), help="the task")
    flags.add_argument("--seed", default=0, type=int, help="seed of demonstrations, training and evaluation")
    flags.add_argument("--episodes", default=100, type=int, help="test episodes of each policy")
    return flags


def main(argv: Sequence[str]) -> int:
    """Runs the demo."""
    flags = parser().parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the policy is too small for an accelerator to pay
    os.environ.pop("JAX_PLATFORM_NAME", None)
    from mem0_jax.configs.demo import get_config
    from mem0_jax.demo.processes import run_arms
    from mem0_jax.demo.record import record
    from mem0_jax.demo.settings import open_demo

    config = get_config().to_dict()
    config["eval"]["episodes"] = flags.episodes
    with hold_folder(flags.out), disk_told(flags.out, "what is finished is kept, and the same command continues"):
        demo = open_demo(flags.out, flags.task, flags.seed, config)
        with demo.timed("record"):
            record(demo)
        with demo.timed("train and evaluate"):
            run_arms(demo)
        from mem0_jax.demo.summary import report

        with Progress("writing the report"):
            summary = report(demo)
    print(table(summary))
    print(f"\nreport: {demo.out / 'report.html'}")
    return 0


def table(summary: dict[str, Any]) -> str:
    """The figures of report.json that matter most, to read in a terminal."""
    lines = [f"{summary['task']}: {summary['episodes']} unseen episodes, chance {summary['chance']:.0%}", ""]
    lines.append(f"{'':24s}{'with memory':>24s}{'without memory':>24s}")
    for what, label in (("success", "success"), ("right_given_placed", "right choice, if any")):
        cells = []
        for side in ("with_memory", "without_memory"):
            rate, (low, high) = summary[f"{what}_{side}"], summary[f"{what}_{side}_interval"]
            cells.append("none made" if rate is None else f"{rate:.0%} ({low:.0%} to {high:.0%})")
        lines.append(f"{label:24s}" + "".join(f"{cell:>24s}" for cell in cells))
    return "\n".join(
        [*lines, "", f"{summary['parameters']:,} parameters, {summary['wall_seconds']:.0f} seconds in all"]
    )
