"""`mem0-jax plan train`: fine-tune a planner as a configuration file says."""

from collections.abc import Sequence

from mem0_jax.cli import CommandParser
from mem0_jax.commands.train import parser_of_runs, tell, trained
from mem0_jax.progress import duration

SUMMARY = (
    "Trains a planner on questions that 'mem0-jax plan prepare' wrote, as a configuration file says. Every field of "
    "the file can be set as a flag, such as --config.train.epochs=3. The same command continues a run that was stopped "
    "or killed, exactly where its last checkpoint was. 'mem0-jax plan merge' makes a bundle of the run."
)


def parser() -> CommandParser:
    """The flags besides the overrides."""
    return parser_of_runs(
        "plan train",
        SUMMARY,
        [
            "mem0-jax plan train --config=planner_small --workdir=runs/planner \\",
            "    --config.data.questions=\"('plan/press_button',)\"",
            "mem0-jax plan train --config=planner_8b --workdir=runs/planner_8b --config.hardware=gpu8",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Trains."""
    flags, overrides = parser().parse_known_args(argv)
    from mem0_jax.planner.job import PlannerJob
    from mem0_jax.planner.training import Questions

    result = trained("plan train", flags, overrides, PlannerJob, Questions.read)
    if result is None:
        return 130
    last = result.rows[-1] if result.rows else {}
    ending = f", loss {last['loss']:.4g}, right answers {last['answer_accuracy']:.0%}" if last else ""
    print(f"{flags.workdir}: {int(result.state.step)} steps{ending}, {duration(result.seconds)}")
    tell(flags.json, result)
    return 0
