"""`mem0-jax plan`: the planner that names the subtasks of staged tasks."""

from collections.abc import Sequence

from mem0_jax.cli import Command
from mem0_jax.cli import main as run

COMMANDS: dict[str, Command] = {
    "prepare": Command(
        "turn a dataset of a staged task into questions and images to train on",
        "mem0-jax plan prepare datasets/press_button plan/press_button",
        "mem0_jax.commands.plan_prepare",
    ),
    "train": Command(
        "fine-tune a planner on questions, or continue a run",
        "mem0-jax plan train --config=planner_small --workdir=runs/planner",
        "mem0_jax.commands.plan_train",
    ),
    "merge": Command(
        "make a bundle of a planner's run, and a Hugging Face folder",
        "mem0-jax plan merge runs/planner bundles/planner",
        "mem0_jax.commands.plan_merge",
    ),
    "serve": Command(
        "answer by OpenAI's chat API with a planner's bundle",
        "mem0-jax plan serve bundles/planner",
        "mem0_jax.commands.plan_serve",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands above."""
    return run(argv, COMMANDS, "mem0-jax plan")
