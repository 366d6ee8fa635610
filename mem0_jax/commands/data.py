"""`mem0-jax data`: from recordings to training batches."""

from collections.abc import Sequence

from mem0_jax.cli import Command
from mem0_jax.cli import main as run

COMMANDS: dict[str, Command] = {
    "import": Command(
        "turn RMBench recordings (HDF5) into a LeRobot dataset",
        "mem0-jax data import rmbench data/put_back_block datasets/put_back_block",
        "mem0_jax.commands.data_import",
    ),
    "check": Command(
        "validate a dataset and name everything wrong with it",
        "mem0-jax data check datasets/put_back_block",
        "mem0_jax.commands.data_check",
    ),
    "show": Command(
        "write a page to look at: pictures, distributions, lengths, instructions",
        "mem0-jax data show datasets/put_back_block",
        "mem0_jax.commands.data_show",
    ),
    "stats": Command(
        "compute normalisation statistics of one or more datasets",
        "mem0-jax data stats datasets/put_back_block --out norm_stats.json",
        "mem0_jax.commands.data_stats",
    ),
    "pack": Command(
        "turn a dataset into shards for pods and object stores",
        "mem0-jax data pack datasets/put_back_block packed/put_back_block",
        "mem0_jax.commands.data_pack",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands above."""
    return run(argv, COMMANDS, "mem0-jax data")
