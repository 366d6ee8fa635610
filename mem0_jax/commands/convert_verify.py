"""`mem0-jax convert verify`: a bundle against the reference's numbers."""

from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.progress import Progress

SUMMARY = (
    "Replays a golden folder (see 'mem0-jax golden --help') with the weights of a bundle that was converted from the "
    "folder's initial.pt, and prints the greatest relative error of every quantity. Exit code 1 past a gate."
)


def main(argv: Sequence[str]) -> int:
    """Replays."""
    flags = CommandParser(
        "convert verify", SUMMARY, ["mem0-jax convert verify bundles/tiny_a --golden tests/model/assets/tiny_a"]
    )
    flags.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle")
    flags.add_argument("--golden", type=Path, metavar="DIR", required=True, help="the golden folder")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    given = flags.parse_args(argv)
    from mem0_jax.commands.golden import show
    from mem0_jax.golden import replay
    from mem0_jax.inference.compiled import keep_compiled_if_possible
    from mem0_jax.policies.bundle import load_bundle

    keep_compiled_if_possible()
    with Progress(f"opening {given.bundle}"):
        bundle = load_bundle(given.bundle)
    return show(replay(given.golden, bundle=bundle), given.json)
