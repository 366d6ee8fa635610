"""`mem0-jax plan merge`: a bundle of a planner's training run."""

from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.progress import Progress

SUMMARY = (
    "Writes the planner of a run's newest checkpoint as a bundle, low-rank factors multiplied into the kernels; with "
    "--hf also as a Hugging Face folder that transformers loads and vLLM serves."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser(
        "plan merge",
        SUMMARY,
        [
            "mem0-jax plan merge runs/planner bundles/planner",
            "mem0-jax plan merge runs/planner bundles/planner --hf planner_hf",
        ],
    )
    flags.add_argument("run", type=Path, metavar="RUN", help="folder of 'mem0-jax plan train'")
    flags.add_argument("out", type=Path, metavar="OUT", help="the bundle to write")
    flags.add_argument("--hf", type=Path, metavar="DIR", help="Hugging Face folder to write as well; must not exist")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write what was done to this file as well")
    return flags


def main(argv: Sequence[str]) -> None:
    """Merges."""
    flags = parser().parse_args(argv)
    from mem0_jax.planner.merge import merge

    with Progress(f"merging {flags.run}"):
        done = merge(flags.run, flags.out, flags.hf)
    print(f"{flags.out}: {done['parameters']:,} parameters after {done['step']} steps")
    if flags.hf:
        print(f"{flags.hf}: the same for transformers and vLLM")
    if flags.json:
        write_json(flags.json, done | {"bundle": str(flags.out), "hf": str(flags.hf) if flags.hf else None})
