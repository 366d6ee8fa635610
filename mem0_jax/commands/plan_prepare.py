"""`mem0-jax plan prepare`: questions and images to train a planner on."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress

SUMMARY = (
    "Turns a LeRobot dataset of a staged task into questions for a planner: one at the first frame of an episode and "
    "one at each end of a subtask, with the images a planner is shown, and the right answer. DIR is a LeRobot or a "
    "packed dataset, a folder or an address such as gs://bucket/folder."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser(
        "plan prepare",
        SUMMARY,
        [
            "mem0-jax plan prepare datasets/press_button plan/press_button",
            "mem0-jax plan prepare datasets/cover_blocks LlamaFactory/data/cover_blocks --format sharegpt",
        ],
    )
    flags.add_argument("dataset", metavar="DIR", help="the dataset")
    flags.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    flags.add_argument("--format", default="rows", choices=["rows", "sharegpt"], help="sharegpt: for LLaMA-Factory")
    flags.add_argument(
        "--summaries", action="store_true", help="ask with a running summary in place of the list of key frames"
    )
    flags.add_argument("--camera", metavar="KEY", help="default: the head camera, or the only one")
    flags.add_argument("--episodes", type=_range, metavar="A:B", help="only episodes A to B - 1; default: all")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    return flags


def main(argv: Sequence[str]) -> None:
    """Prepares a dataset."""
    flags = parser().parse_args(argv)
    from mem0_jax.data.packed import open_dataset
    from mem0_jax.data.subset import Subset
    from mem0_jax.planner.prepare import prepare

    try:
        dataset = open_dataset(flags.dataset)
        if flags.episodes:
            numbers = [i for i, episode in enumerate(dataset.episodes) if episode.index in flags.episodes]
            if not numbers:
                last = dataset.episodes[-1].index
                raise UserError(f"--episodes: {flags.dataset} has none of them; its last episode is {last}")
            dataset = Subset(dataset, numbers)
        with Progress("questions", None, "episode") as progress:
            prepared = prepare(
                dataset,
                flags.out,
                camera=flags.camera,
                summaries=flags.summaries,
                form=flags.format,
                progress=progress.reach,
            )
    except OSError as error:  # disk full, not allowed, ...
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    if flags.json:
        write_json(flags.json, asdict(prepared) | {"out": str(flags.out)})
    if prepared.skipped:
        print(f"without subtasks, left out: episodes {', '.join(map(str, prepared.skipped))}", file=sys.stderr)
    if prepared.silent:
        print(f"{prepared.silent} subtasks begin without a subtask_end: no question asks for them", file=sys.stderr)
    print(f"{flags.out}: {prepared.questions} questions, {prepared.images} images of {prepared.episodes} episodes")


def _range(text: str) -> range:
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}; expected first:last+1, such as 0:50")
    return range(int(match[1]), int(match[2]))
