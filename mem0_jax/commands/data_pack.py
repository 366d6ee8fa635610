"""`mem0-jax data pack`: shards for pods and object stores."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.errors import UserError
from mem0_jax.units import size

SUMMARY = (
    "Turns a LeRobot dataset into ArrayRecord shards of JPEG frames, for many readers at once and for object stores. "
    "States, actions and every other column stay exact; a feature or camera of which nothing can be read is left out "
    "and named. tfds.data_source reads the folder as well. An interrupted run is continued by the same command; the "
    "folder appears when it is complete."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser(
        "data pack",
        SUMMARY,
        [
            "mem0-jax data pack datasets/put_back_block packed/put_back_block --size 224x224",
            "mem0-jax data pack datasets/put_back_block tfds/put_back_block/1.0.0 --workers 8 --json packed.json",
        ],
    )
    flags.add_argument("dataset", metavar="DIR", help="the LeRobot dataset (v2.0, v2.1, v3.0), a folder or an address")
    flags.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    flags.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="resize (bilinear); reading is fastest at the size trained on",
    )
    flags.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 100")
    flags.add_argument("--shard-mib", type=float, default=256, help="about how large a shard shall be, in MiB")
    flags.add_argument("--workers", type=int, default=2, help="threads")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    return flags


def main(argv: Sequence[str]) -> int:
    """Packs a dataset."""
    flags = parser().parse_args(argv)
    from mem0_jax.data.lerobot import LeRobotDataset
    from mem0_jax.data.pack import pack

    try:
        packed = pack(
            LeRobotDataset(flags.dataset),
            flags.out,
            size=flags.size,
            quality=flags.quality,
            shard_mib=flags.shard_mib,
            workers=flags.workers,
        )
        figures = asdict(packed) | {"root": str(packed.root), "bytes_per_frame": packed.bytes / packed.frames}
        if flags.json:
            write_json(flags.json, figures)
    except OSError as error:  # disk full, not allowed, ...
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    print(
        f"{packed.root}: {packed.episodes} episodes, {packed.frames} frames in {packed.shards} shards, "
        f"{size(packed.bytes, binary=True)} ({packed.bytes / packed.frames / 1000:.1f} kB a frame)"
    )
    for key, why in packed.left_out.items():
        print(f"left out: {key} ({why})", file=sys.stderr)
    print(f'with TFDS: tfds.builder_from_directory("{packed.root}").as_data_source("train")')
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}; expected height x width in pixels, such as 224x224")
    return int(match[1]), int(match[2])
