"""Make a Mem-0 checkpoint of random numbers, laid out as training leaves it, to measure conversion and to test it.

By default it has the size of the released one: 910 tensors in bfloat16 and float32, two moments of AdamW each, 15.3 GB.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mem0_jax.convert.torch_pt_write import write_pt
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress

SHAPES = Path(__file__).parents[1] / "tests" / "model" / "assets" / "m1_mix_shapes.json.gz"
STEPS = 50_000
BLOCK = 2**20 + 7  # random numbers that every tensor repeats from a place of its own
HALF = ("qwen_model.", "memory_bank.")  # kept in bfloat16, with their moments
TIED = {"qwen_model.model.lm_head.weight": "qwen_model.model.model.language_model.embed_tokens.weight"}
BUFFERS = {"classifier.pos_weight": np.array(10, np.float32)}
# The policy reads hidden states from before this norm: it never has a gradient, and so no moments.
UNUSED = {"qwen_model.model.model.language_model.norm.weight"}
GROUPS = {  # name: (prefix of its parameters, learning rate), in the order of the optimizer
    "qwen_model": ("qwen_model.", 1e-5),
    "action_model": ("action_model.", 1e-4),
    "classifier": ("classifier.", 1e-4),
    "base": ("memory_bank.", 1e-5),
}
FLOORS = {"qwen_model": 1e-6, "action_model": 5e-6, "classifier": 5e-6, "base": 1e-6}  # where the schedule ends


@dataclass(frozen=True)
class Repeated:
    """A tensor of `shape` that repeats `block`, beginning with number `first`."""

    block: np.ndarray
    first: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of the block."""
        return self.block.dtype

    def read(self) -> np.ndarray:
        """The tensor in memory."""
        return np.resize(np.roll(self.block, -self.first), self.shape)


class Random:
    """Makes tensors from one block of normal numbers, a variant for each use and dtype."""

    def __init__(self, seed: int):
        self.generator = np.random.default_rng(seed)
        normal = self.generator.standard_normal(BLOCK, np.float32)
        values = {
            "weight": 0.02 * normal,
            "norm": 1 + 0.02 * normal,
            "exp_avg": 1e-4 * normal,
            "exp_avg_sq": 1e-8 * normal**2,
        }
        self.blocks = {
            (use, np.dtype(dtype)): block.astype(dtype)
            for use, block in values.items()
            for dtype in (np.float32, ml_dtypes.bfloat16)
        }

    def tensor(self, use: str, dtype: Any, shape: Sequence[int]) -> Repeated:
        """A tensor for a `use`: weight, norm, exp_avg or exp_avg_sq."""
        return Repeated(self.blocks[use, np.dtype(dtype)], int(self.generator.integers(BLOCK)), tuple(shape))


def checkpoint(shapes: Mapping[str, Sequence[int]], slim: bool, seed: int) -> dict[str, Any]:
    """The tree that training saves; slim: without optimizer and schedule, as people pass checkpoints on."""
    random = Random(seed)
    model: OrderedDict[str, Any] = OrderedDict()
    for name, shape in shapes.items():
        if name in TIED:
            model[name] = model[TIED[name]]
        elif name in BUFFERS:
            model[name] = BUFFERS[name]
        else:
            use = "norm" if len(shape) == 1 and name.endswith("weight") else "weight"
            model[name] = random.tensor(use, ml_dtypes.bfloat16 if name.startswith(HALF) else np.float32, shape)
    if slim:
        return {"model_state_dict": model, "global_step": STEPS}
    return {
        "model_state_dict": model,
        "optimizer_state_dict": _optimizer(model, random),
        "scheduler_state_dict": _scheduler(),
        "global_step": STEPS,
    }


def _optimizer(model: Mapping[str, Any], random: Random) -> dict[str, Any]:
    """AdamW's state: parameters are numbered through the groups, tied ones once."""
    state, groups, count = {}, [], 0
    for group, (prefix, rate) in GROUPS.items():
        names = [name for name in model if name.startswith(prefix) and name not in TIED and name not in BUFFERS]
        for index, name in enumerate(names, count):
            if name not in UNUSED:
                tensor = model[name]
                moments = {use: random.tensor(use, tensor.dtype, tensor.shape) for use in ("exp_avg", "exp_avg_sq")}
                state[index] = {"step": np.array(STEPS, np.float32), **moments}
        flags = {"amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False}
        groups.append(
            {"lr": FLOORS[group], "name": group, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.005, **flags}
            | {"fused": None, "decoupled_weight_decay": True, "initial_lr": rate}
            | {"params": list(range(count, count + len(names)))}
        )
        count += len(names)
    return {"state": state, "param_groups": groups}


def _scheduler() -> dict[str, Any]:
    rates = [rate for _, rate in GROUPS.values()]
    return {
        "base_lrs": rates,
        "last_epoch": STEPS,
        "_step_count": STEPS + 1,
        "_is_initial": False,
        "_get_lr_called_within_step": False,
        "_last_lr": list(FLOORS.values()),
        "lr_lambdas": [None] * len(rates),
    }


def split(path: Path, out: Path, parts: int) -> None:
    """Cuts `path` into OUT.part00, OUT.part01, ... and sums them up in OUT.sha256.

    From the end, and `path` becomes the first part: no more than one part lies on the disk twice.
    """
    size = path.stat().st_size
    step = -(-size // parts)
    if step * (parts - 1) >= size:
        raise UserError(f"--parts {parts}: {size} bytes cannot be cut into as many equal parts")
    names = [out.with_name(f"{out.name}.part{n:02}") for n in range(parts)]
    for n in reversed(range(1, parts)):
        with path.open("r+b") as source, names[n].open("wb") as target:
            source.seek(n * step)
            shutil.copyfileobj(source, target, 2**24)
            source.truncate(n * step)
    path.replace(names[0])
    whole, lines = hashlib.sha256(), []
    for name in names:
        alone = hashlib.sha256()
        with name.open("rb") as file:
            while block := file.read(2**22):
                whole.update(block)
                alone.update(block)
        lines.append(f"{alone.hexdigest()}  {name.name}\n")
    out.with_name(f"{out.name}.sha256").write_text("".join([f"{whole.hexdigest()}  {out.name}\n", *lines]))


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        raw = path.read_bytes()
        shapes = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--shapes {path}: expected a (gzipped) JSON table of name and shape: {error}") from None
    if not isinstance(shapes, dict) or not all(isinstance(shape, list) for shape in shapes.values()):
        raise UserError(f"--shapes {path}: expected a table of name and shape, such as {{'a.weight': [2, 3]}}")
    return shapes


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("out", type=Path, metavar="OUT", help="the .pt file to write")
    flags.add_argument("--shapes", type=Path, default=SHAPES, help="JSON of names and shapes (the released ones)")
    flags.add_argument("--slim", action="store_true", help="only the weights and the step: 5.1 GB")
    flags.add_argument("--parts", type=int, default=1, help="cut it into so many OUT.partNN, with OUT.sha256")
    flags.add_argument("--seed", type=int, default=0)
    args = flags.parse_args(argv)
    if not 1 <= args.parts <= 100:
        raise UserError(f"--parts {args.parts}: expected 1 to 100")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    taken = [path.name for path in args.out.parent.iterdir() if path.name.startswith(args.out.name)]
    if taken:
        raise UserError(
            f"{args.out.parent} holds {', '.join(sorted(taken)[:3])} already: remove it or name another OUT"
        )
    tree = checkpoint(_shapes(args.shapes), args.slim, args.seed)
    whole = args.out.with_name(f".{args.out.name}.whole") if args.parts > 1 else args.out
    with Progress("tensors", unit="B") as progress:
        write_pt(whole, tree, progress.advance)
    if args.parts > 1:
        try:
            split(whole, args.out, args.parts)
        finally:
            whole.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        sys.exit(f"error: {problem}")
