"""`mem0-jax plan train`: fine-tune a planner as a configuration file says."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.commands.train import read_config
from mem0_jax.disk import write_json
from mem0_jax.progress import duration

SUMMARY = (
    "Trains a planner on questions that 'mem0-jax plan prepare' wrote, as a configuration file says. Every field of "
    "the file can be set as a flag, such as --config.train.epochs=3. The same command continues a run that was stopped "
    "or killed, exactly where its last checkpoint was. 'mem0-jax plan merge' makes a bundle of the run."
)


def parser() -> CommandParser:
    """The flags besides the overrides."""
    flags = CommandParser(
        "plan train",
        SUMMARY,
        [
            "mem0-jax plan train --config=planner_small --workdir=runs/planner \\",
            "    --config.data.questions=\"('plan/press_button',)\"",
            "mem0-jax plan train --config=planner_8b --workdir=runs/planner_8b --config.hardware=gpu8",
        ],
    )
    flags.add_argument(
        "--config", required=True, metavar="FILE", help="a file of configs/, or the name of one that is installed"
    )
    flags.add_argument(
        "--workdir", required=True, type=Path, metavar="DIR", help="folder of the run, made or continued"
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="write what came out to this file as well")
    return flags


def main(argv: Sequence[str]) -> int:
    """Trains."""
    flags, overrides = parser().parse_known_args(argv)
    config = read_config(flags.config, overrides)
    from mem0_jax.config import from_dict
    from mem0_jax.distributed.startup import start

    start()
    from mem0_jax.inference.compiled import keep_compiled_if_possible
    from mem0_jax.planner.job import PlannerJob
    from mem0_jax.planner.training import train_planner
    from mem0_jax.train.loop import TrainingInterrupted
    from mem0_jax.train.terminal import told

    job = from_dict(PlannerJob, config)
    keep_compiled_if_possible()
    try:
        with told(job.train.steps) as progress:
            result = train_planner(job, flags.workdir, progress)
    except TrainingInterrupted as stopped:
        print(f"mem0-jax plan train: {stopped}", file=sys.stderr)
        return 130
    last = result.rows[-1] if result.rows else {}
    figures = {"steps": int(result.state.step), "seconds": result.seconds, "last_row": last}
    ending = f", loss {last['loss']:.4g}, right answers {last['answer_accuracy']:.0%}" if last else ""
    print(f"{flags.workdir}: {figures['steps']} steps{ending}, {duration(result.seconds)}")
    if flags.json:
        write_json(flags.json, figures)
    return 0
