"""`mem0-jax convert`: weights in, weights out."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem0_jax.cli import Command, CommandParser
from mem0_jax.cli import main as run
from mem0_jax.disk import write_json
from mem0_jax.progress import Progress
from mem0_jax.units import size

if TYPE_CHECKING:
    from mem0_jax.convert.importer import Job
    from mem0_jax.family import Config

SUMMARY = (
    "Turns a checkpoint of the PyTorch world into a bundle: a .pt file (whole, or the folder or pattern of its byte "
    "parts), or Hugging Face safetensors. Needs no torch, runs nothing the file says, and holds no more "
    "than a few tensors in memory. With --to it turns a bundle back. Further commands, each with its own --help: "
    "'convert inspect SRC', 'convert diff A B', 'convert verify BUNDLE --golden DIR'."
)
EXAMPLES = (
    "mem0-jax convert 'checkpoints/m1_mix_final_step50000.pt.part*' bundles/m1_mix \\\n"
    "      --backbone checkpoints/backbone --norm-stats norm_stats.json",
    "mem0-jax convert checkpoints/backbone bundles/backbone",
    "mem0-jax convert bundles/m1_mix m1_mix.pt --to torch",
    "mem0-jax convert bundles/m1_mix checkpoints/tuned --to safetensors",
    "mem0-jax convert inspect bundles/m1_mix",
)
COMMANDS: dict[str, Command] = {
    "inspect": Command(
        "list the tensors of a checkpoint: shapes, dtypes, sizes, totals, tied ones",
        "mem0-jax convert inspect bundles/m1_mix",
        "mem0_jax.commands.convert_inspect",
    ),
    "diff": Command(
        "compare two checkpoints of any formats, tensor by tensor",
        "mem0-jax convert diff m1_mix.pt bundles/m1_mix",
        "mem0_jax.commands.convert_diff",
    ),
    "verify": Command(
        "replay the reference's numbers with the weights of a bundle",
        "mem0-jax convert verify bundles/tiny_a --golden tests/model/assets/tiny_a",
        "mem0_jax.commands.convert_verify",
    ),
}


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser("convert", SUMMARY, EXAMPLES)
    add = flags.add_argument
    add("source", type=Path, metavar="SRC", help="the checkpoint, or with --to the bundle")
    add("out", type=Path, metavar="OUT", nargs="?", help="bundle to write, or with --to the .pt file or folder")
    add("--to", choices=("torch", "safetensors"), help="turn a bundle into a .pt file or a Hugging Face folder")
    add(
        "--backbone",
        type=Path,
        metavar="DIR",
        help="the backbone's Hugging Face folder: configuration, tokenizer, processor to include",
    )
    add("--norm-stats", type=Path, metavar="FILE", help="norm_stats.json to include")
    add("--config", type=Path, metavar="FILE", help="what tensors do not tell: the reference's YAML or a config.json")
    add("--dtype", choices=("keep", "float32", "bfloat16"), default="keep", help="of the parameters")
    add("--mesh", metavar="AXES", help="cut the files for a mesh such as fsdp=8,tensor=2: a device reads its own alone")
    add("--weights", metavar="NAME", help="which ones, of a file with several, such as ema beside the model's own")
    add("--allow-nonfinite", action="store_true", help="take weights that are NaN or infinite instead of refusing them")
    add("--with-optimizer", action="store_true", help="include AdamW's moments, step and schedule, to go on training")
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    add("--report", type=Path, metavar="FILE", help="write what was done as JSON")
    return flags


def main(argv: Sequence[str]) -> int:
    """Converts, or runs one of `COMMANDS`."""
    if argv and argv[0] in COMMANDS:
        return run(argv, COMMANDS, "mem0-jax convert")
    parsing = parser()
    flags = parsing.parse_args(argv)
    if flags.out is None and not flags.dry_run:
        parsing.error("OUT is missing; only --dry-run does without")
    return _export(parsing, flags) if flags.to else _import(flags)


def _import(flags: argparse.Namespace) -> int:
    from mem0_jax.convert.importer import Request, convert, failed_summary, prepare, summary
    from mem0_jax.convert.rules import PlanError
    from mem0_jax.convert.sources import open_source

    request = Request(
        *(flags.config, flags.backbone, flags.norm_stats, flags.dtype, _shards(flags.mesh), flags.with_optimizer),
        allow_nonfinite=flags.allow_nonfinite,
    )
    try:
        job = prepare(open_source(flags.source, flags.weights), request)
    except PlanError as error:
        if flags.report:
            write_json(flags.report, failed_summary(error.misfits))
        raise
    for note in job.notes:
        print(f"note: {note}")
    if flags.dry_run:
        report = summary(job)
        _print_plan(job)
    else:
        with Progress(f"convert {flags.source.name}", job.bytes, "B") as progress:
            report = convert(job, flags.out, progress.advance)
        print(
            f"{flags.out}: {report['consumed']} tensors, {size(report['bytes'])} in {report['seconds']:.1f} s "
            f"({size(report['bytes'] / report['seconds'])}/s), at most {size(report['peak_rss_bytes'])} of memory"
        )
        for line in report["nonfinite"][:20]:
            print(f"note: {line}")
        missing = [name for name in ("norm_stats.json", "tokenizer.json") if not (flags.out / name).is_file()]
        if missing:
            print(f"note: the bundle has no {' and no '.join(missing)} (see --norm-stats and --backbone)")
    if flags.report:
        write_json(flags.report, report)
    return 0


def _export(parsing: CommandParser, flags: argparse.Namespace) -> int:
    given = [
        name for name in ("backbone", "norm_stats", "config", "mesh", "weights") if getattr(flags, name) is not None
    ]
    given += [name for name in ("with_optimizer", "dry_run") if getattr(flags, name)]
    if given or flags.dtype != "keep":
        wrong = [*given, *(["dtype"] if flags.dtype != "keep" else [])]
        parsing.error("with --to there is no " + ", ".join(f"--{name.replace('_', '-')}" for name in wrong))
    import time

    from mem0_jax.convert.exporter import to_safetensors, to_torch
    from mem0_jax.convert.sources import open_source

    source = open_source(flags.source)
    start = time.perf_counter()
    with Progress(f"export {flags.source.name}", source.nbytes, "B") as progress:
        export = to_torch if flags.to == "torch" else to_safetensors
        report = export(source, flags.out, progress.advance, flags.allow_nonfinite)
    report["seconds"] = time.perf_counter() - start
    print(f"{flags.out}: {report['tensors']} tensors, {size(report['bytes'])} in {report['seconds']:.1f} s")
    if flags.report:
        write_json(flags.report, report)
    return 0


def _shards(mesh: str | None) -> "Callable[[Config, Any], Mapping[str, tuple[int, ...]]] | None":
    """Pieces of every axis of every leaf on a mesh such as "fsdp=8,tensor=2"."""
    if mesh is None:
        return None
    from mem0_jax.distributed.mesh import full_sizes, parse_mesh
    from mem0_jax.distributed.sharding import STANDARD, placements
    from mem0_jax.family import family_of

    sizes = full_sizes(parse_mesh(mesh))

    def pieces(config: "Config", abstract: Any) -> dict[str, tuple[int, ...]]:
        placed = placements(abstract, family_of(config).logical_axes(config), STANDARD, sizes)
        return {
            path: tuple(sizes[axis] if axis else 1 for axis, _ in zip_longest(leaf.spec, leaf.shape))
            for path, leaf in placed.items()
        }

    return pieces


def _print_plan(job: "Job") -> None:
    """One line a leaf, then what is only checked, then the totals."""
    sources: dict[str, list[str]] = {}
    for entry in job.plan.entries:
        for target in entry.targets:
            sources.setdefault(target, []).append(entry.source)
    width = max(map(len, sources))
    print(f"{'leaf':<{width}}  {'shape':<18}{'dtype':<10}from")
    for path, names in sources.items():
        spec = job.specs[path]
        shape = "x".join(map(str, spec.shape)) or "-"
        origin = names[0] + (f" ... {len(names)} tensors" if len(names) > 1 else "")
        print(f"{path:<{width}}  {shape:<18}{spec.dtype.name:<10}{origin}")
    for check in job.plan.checks:
        print(f"{'(checked only)':<{width}}  {'':<28}{check.source}")
    count = len(job.plan.entries) + len(job.plan.checks)
    print(f"{count} tensors consumed, none unmapped; {len(job.specs)} leaves, none unfilled")
