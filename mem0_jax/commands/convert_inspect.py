"""`mem0-jax convert inspect`: what a checkpoint holds."""

from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.units import size

SUMMARY = (
    "Lists every tensor of a checkpoint (a .pt file or its parts, safetensors, a bundle) under its PyTorch name with "
    "shape, dtype and size, then totals by module, tied tensors and what else the file holds. Reads no weights."
)


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    flags = CommandParser("convert inspect", SUMMARY, ["mem0-jax convert inspect tests/model/assets/tiny_a/initial.pt"])
    flags.add_argument("source", type=Path, metavar="SRC", help="the checkpoint")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the lists to this file as well")
    flags.add_argument("--weights", metavar="NAME", help="which ones, of a file with several")
    given = flags.parse_args(argv)
    from mem0_jax.convert.look import inspect
    from mem0_jax.convert.sources import open_source

    found = inspect(open_source(given.source, given.weights))
    width = max(map(len, found["tensors"]))
    print(f"{'tensor':<{width}}  {'shape':<20}{'dtype':<10}{'size':>12}")
    for name, tensor in found["tensors"].items():
        shape = "x".join(map(str, tensor["shape"])) or "-"
        tied = f"  tied to {found['tied'][name]}" if name in found["tied"] else ""
        print(f"{name:<{width}}  {shape:<20}{tensor['dtype']:<10}{size(tensor['bytes']):>12}{tied}")
    print(f"\n{'module':<20}{'tensors':>8}{'elements':>16}{'size':>12}")
    for name, module in found["modules"].items():
        print(f"{name:<20}{module['tensors']:>8}{module['elements']:>16,}{size(module['bytes']):>12}")
    elements = sum(module["elements"] for module in found["modules"].values())
    print(f"{'all':<20}{len(found['tensors']):>8}{elements:>16,}{size(found['bytes']):>12}")
    print(
        f"\n{found['format']} of {found['model']}"
        + (f", also holds {', '.join(found['also'])}" if found["also"] else "")
    )
    for note in found["notes"]:
        print(f"note: {note}")
    if given.json:
        write_json(given.json, found)
    return 0
