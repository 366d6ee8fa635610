"""`mem0-jax aot`: compile a training step for a TPU slice, without one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mem0_jax.cli import CommandParser
from mem0_jax.commands.train import read_config
from mem0_jax.disk import write_json
from mem0_jax.progress import Progress
from mem0_jax.units import size

if TYPE_CHECKING:
    from mem0_jax.train.aot import Compiled

SUMMARY = (
    "Compiles the training step of a configuration for a TPU slice, ahead of time and without one, and prints what it "
    "needs of each chip: memory, network, and the least time by roofline. Fields of the configuration are set as in "
    "'mem0-jax train'. Takes minutes, on a machine with a few GB of memory."
)


def parser() -> CommandParser:
    """The flags besides the overrides."""
    flags = CommandParser(
        "aot",
        SUMMARY,
        [
            "mem0-jax aot --config=m1_mix --topology=v5e:4x4 --config.hardware=v5e-16",
            "mem0-jax aot --config=m1_mix --topology=v5e:16x16 --mesh=fsdp=64,tensor=4 --config.train.lanes=64",
        ],
    )
    flags.add_argument(
        "--config", required=True, metavar="FILE", help="a file of configs/, or the name of one that is installed"
    )
    flags.add_argument("--topology", required=True, help="the slice, such as v5e:4x4, v6e:2x4, v5p:2x4x4 or v4:2x2x2")
    flags.add_argument("--mesh", default="", help="such as data=2,fsdp=8; default that of the configuration's hardware")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    return flags


def main(argv: Sequence[str]) -> int:
    """Compiles."""
    flags, overrides = parser().parse_known_args(argv)
    from mem0_jax.config import from_dict
    from mem0_jax.train.aot import compile_step
    from mem0_jax.train.job import Job

    config = read_config(flags.config, overrides, Job)

    with Progress(f"compiling the step for {flags.topology}"):
        compiled = compile_step(from_dict(Job, config), flags.topology, flags.mesh)
    print(report(compiled))
    if flags.json:
        write_json(flags.json, json.loads(json.dumps(compiled.to_json())))
    return 0


def report(step: "Compiled") -> str:
    """The figures as text."""
    lines = [
        f"{step.topology}: {step.chips} chips, mesh {step.mesh}; {step.lanes} lanes of {step.frames} frames, "
        f"{step.lanes * step.frames} a step; compiled in {step.compile_seconds:.0f} s",
        "",
        "memory of a chip",
    ]
    parts = ("params", "optimizer", "carry", "batch", "temporary", "code", "total", "hbm")
    meaning = {"temporary": "activations, temporary", "hbm": "HBM"}
    lines += [f"  {meaning.get(name, name):<26}{size(getattr(step, name), binary=True):>12}" for name in parts]
    lines += ["", "largest leaves that every chip holds whole"]
    lines += [f"  {path:<60}{size(count, binary=True):>12}" for path, count in step.whole] or ["  none"]
    lines += ["", f"{'collectives of a step':<28}{'count':>9}{'sent':>12}"]
    for kind, found in sorted(step.collectives.items()):
        lines.append(f"  {kind:<26}{found.count:>9}{size(found.sent, binary=True):>12}")
    lines += [
        "",
        "roofline: step >= max(operations / peak, bytes sent / link)",
        f"  operations {step.recomputed / 1e12:.2f} T, {(step.recomputed - step.flops) / 1e12:.2f} T of them "
        f"recomputed; at {step.peak / 1e12:.0f} T/s: {1e3 * step.compute_seconds:.1f} ms",
        f"  sent {step.network_seconds * step.link / 1e9:.2f} GB at {step.link / 1e9:.0f} GB/s: "
        f"{1e3 * step.network_seconds:.1f} ms",
        f"  step at least {1e3 * step.step_seconds:.1f} ms; MFU = operations not recomputed / (step * peak), at most "
        f"{100 * step.mfu:.0f} %",
    ]
    return "\n".join(lines)
