"""`mem0-jax data show`: a page to look at a dataset."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress
from mem0_jax.units import size

SUMMARY = (
    "Writes one HTML file, which needs no network, with pictures of some episodes, subtasks and their ends, "
    "instructions, episode lengths, and the distribution of every joint. DIR is a LeRobot dataset (v2.0, v2.1, v3.0), "
    "a folder or an address such as gs://bucket/folder."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser("data show", SUMMARY, ["mem0-jax data show datasets/put_back_block --out show.html"])
    flags.add_argument("folder", metavar="DIR", help="the dataset")
    flags.add_argument("--out", type=Path, metavar="FILE", default=Path("show.html"), help="the page")
    flags.add_argument("--episodes", type=int, metavar="N", default=6, help="episodes to show pictures of")
    return flags


def main(argv: Sequence[str]) -> None:
    """Writes the page of a dataset."""
    flags = parser().parse_args(argv)
    if flags.episodes < 0:
        raise UserError(f"--episodes is {flags.episodes}; expected 0 or more")
    if not flags.out.parent.is_dir():
        raise UserError(f"--out: the folder {flags.out.parent} does not exist")
    if flags.out.is_dir():
        raise UserError(f"--out: {flags.out} is a folder; expected a file to write, such as {flags.out}/show.html")
    from mem0_jax.data.show import show_dataset

    with Progress("drawing", None, "contact sheet") as progress:
        view = show_dataset(flags.folder, flags.out, episodes=flags.episodes, progress=progress.reach)
    for index, sheets in view.sheets.items():
        for sheet in sheets:
            if sheet.problem:
                print(f"episode {index}, {sheet.camera}: no pictures ({sheet.problem})", file=sys.stderr)
    for key, problem in view.problems.items():
        print(f"{key}: not shown ({problem})", file=sys.stderr)
    print(f"{flags.out}: {len(view.dataset.episodes)} episodes, {size(flags.out.stat().st_size, binary=True)}")
