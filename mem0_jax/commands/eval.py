"""`mem0-jax eval`: how good a policy is."""

from collections.abc import Sequence

from mem0_jax.cli import Command
from mem0_jax.cli import main as run

COMMANDS: dict[str, Command] = {
    "closed": Command(
        "play episodes of a built-in task with a bundle or a server; sweep its horizon, ablate its memory",
        "mem0-jax eval closed put_back_block --bundle runs/demo/with_memory/bundle",
        "mem0_jax.commands.eval_closed",
    ),
    "openloop": Command(
        "replay a recorded dataset: errors of every joint, quality of the subtask-end classifier",
        "mem0-jax eval openloop runs/demo/dataset --bundle runs/demo/with_memory/bundle",
        "mem0_jax.commands.eval_openloop",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands above."""
    return run(argv, COMMANDS, "mem0-jax eval")
