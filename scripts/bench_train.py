"""A training step here against the same step in PyTorch on Hugging Face's Qwen3-VL, on this machine.

    python scripts/bench_train.py                       # a middle size on a CPU: real widths, fewer layers
    python scripts/bench_train.py --full --json h.json  # the released size in bfloat16, 56 frames of a lane: one GPU
    python scripts/bench_train.py --size tiny           # seconds

A step is forward, backward, clipping and AdamW on one lane's consecutive frames, without dropout; both sides start from
the same numbers and see the same batch, noise and times, and the table says how far apart their losses are. The sides
take turns as processes of their own, `--rounds` times, so that neither holds memory while the other runs. MFU counts
operations by formula (`mem0_jax.train.flops`), recomputation left out. PyTorch is left out where it is not installed.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.disk import write_json

SIDES = ("jax", "torch")
SIZES = ("tiny", "middle", "full")
FRAMES = {"tiny": 4, "middle": 4, "full": 56}
TOKENS = {"tiny": 24, "middle": 128, "full": 128}
TEXT = "pick up the red block and put it back on the mat it came from"
RATES = {"backbone": 1e-5, "action": 1e-4, "classifier": 1e-4, "memory": 1e-5}
MODULES = {"qwen_model": "backbone", "action_model": "action", "classifier": "classifier", "memory_bank": "memory"}


def main() -> int:
    """Measures and prints."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--size", choices=SIZES, default="middle")
    flags.add_argument("--full", action="store_const", const="full", dest="size", help="short for --size full")
    flags.add_argument("--layers", type=int, default=8, help="text and vision layers of the middle size")
    flags.add_argument("--frames", type=int, help="consecutive frames of a step (default: 4, of the full size 56)")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), help="of backbone and memory (full size: bfloat16)")
    flags.add_argument("--remat", action=argparse.BooleanOptionalAction, help="recompute activations (full size: yes)")
    flags.add_argument("--steps", type=int, default=3, help="measured in each turn, after one that is not")
    flags.add_argument("--rounds", type=int, default=3, help="turns of each side")
    flags.add_argument("--json", type=Path, metavar="FILE")
    flags.add_argument("--side", choices=SIDES, help="one turn of one side, in this process")
    args = flags.parse_args()
    args.frames = args.frames or FRAMES[args.size]
    args.dtype = args.dtype or ("bfloat16" if args.size == "full" else "float32")
    args.remat = args.size == "full" if args.remat is None else args.remat
    if min(args.frames, args.steps, args.rounds) < 1 or args.layers < 4 or args.layers % 2:
        flags.error("--frames, --steps and --rounds must be at least 1, --layers even and at least 4")
    if args.side:
        print(json.dumps({"jax": run_jax, "torch": run_torch}[args.side](args)))
        return 0
    sides = SIDES if all(map(importlib.util.find_spec, ("torch", "transformers"))) else SIDES[:1]
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            turns[side].append(take_turn(side))
    report(args, {side: summary(taken, args) for side, taken in turns.items()})
    return 0


def take_turn(side: str) -> dict[str, Any]:
    """What one turn in a process of its own measures."""
    environment = dict(os.environ)
    if side == "torch":
        environment["JAX_PLATFORMS"] = "cpu"  # used for the names and shapes of parameters only
    run = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--side", side], env=environment, stdout=subprocess.PIPE, text=True
    )
    if run.returncode:
        sys.exit(f"bench_train.py: the turn of {side} failed, see above")
    return json.loads(run.stdout.splitlines()[-1])


def summary(turns: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Medians over all measured steps of all turns."""
    seconds = [value for turn in turns for value in turn["seconds"]]
    middle, last = statistics.median(seconds), turns[-1]
    rate = args.frames / middle
    return {
        "seconds": middle,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "processor_seconds": statistics.median(value for turn in turns for value in turn["processor_seconds"]),
        "frames_per_second": rate,
        "mfu": rate * last["flops"] / last["peak_flops"] if last["peak_flops"] else None,
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
        "first_step_seconds": statistics.median(turn["first"] for turn in turns),
        "turns": [statistics.median(turn["seconds"]) for turn in turns],
        **{name: last[name] for name in ("losses", "device", "versions", "parameters")},
    }


def report(args: argparse.Namespace, sides: dict[str, dict[str, Any]]) -> None:
    """Prints the table, and writes the JSON file."""
    figures: dict[str, Any] = {"size": args.size, "frames": args.frames, "sides": sides}
    first = sides["jax"]
    print(f"{args.size}: {first['parameters'] / 1e6:.0f} M parameters, {args.frames} frames a step, {first['device']}")
    print(f"{'':6} {'s a step':>9} {'(fastest to slowest)':>22} {'cpu s':>8} {'frames/s':>9} {'MFU':>6} {'GiB':>7}")
    for side, row in sides.items():
        spread = f"({row['fastest']:.3f} to {row['slowest']:.3f})"
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        print(
            f"{side:6} {row['seconds']:9.3f} {spread:>22} {row['processor_seconds']:8.2f} "
            f"{row['frames_per_second']:9.2f} {mfu:>6} {row['peak_bytes'] / 2**30:7.2f}"
        )
    if "torch" in sides:
        torch = sides["torch"]
        ratios = [theirs / ours for ours, theirs in zip(first["turns"], torch["turns"])]
        apart = max(abs(a - b) / abs(b) for a, b in zip(first["losses"], torch["losses"]))
        figures |= {"ratio": torch["seconds"] / first["seconds"], "ratios": ratios, "losses_apart": apart}
        print(
            f"PyTorch takes {figures['ratio']:.2f} times as long (by turns {min(ratios):.2f} to {max(ratios):.2f}); "
            f"losses differ by at most {apart:.1e} (relative)"
        )
    else:
        print("torch and transformers are not installed: nothing to compare with")
    if args.json:
        write_json(args.json, figures)


def make_config(args: argparse.Namespace) -> Any:
    """The policy's configuration, without dropout."""
    from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, TokenIds, VisionConfig
    from mem0_jax.heads.classifier import ClassifierConfig
    from mem0_jax.heads.dit import DiTConfig
    from mem0_jax.memory.bank import MemoryConfig
    from mem0_jax.policies.mem0 import Mem0Config

    memory, action, classifier = MemoryConfig(dropout=0.0), DiTConfig(dropout=0.0), ClassifierConfig(dropout=0.0)
    full = Mem0Config(memory=memory, action=action, classifier=classifier, dtype=args.dtype, remat=args.remat)
    if args.size == "full":
        return full
    tokens = TokenIds(*range(1, 7), pad=0)
    if args.size == "middle":
        text = TextConfig(num_hidden_layers=args.layers, vocab_size=2048)
        vision = VisionConfig(depth=args.layers, deepstack_visual_indexes=(args.layers // 2,))
        action = dataclasses.replace(action, num_layers=args.layers)
        return dataclasses.replace(full, backbone=Qwen3VLConfig(text, vision, tokens), action=action)
    text = TextConfig(32, 3, 4, 2, 16, 64, 32, 1e4, (4, 2, 2))
    vision = VisionConfig(3, 32, 64, 2, 16, (0, 1), 16, 2, 2, 32)
    return dataclasses.replace(
        full,
        backbone=Qwen3VLConfig(text, vision, tokens),
        memory=MemoryConfig(3, 2, dropout=0.0),
        action=DiTConfig(16, 2, 4, 32, 16, 16, horizon=3, dropout=0.0),
        classifier=ClassifierConfig((96, 16), dropout=0.0),
        image_size=(64, 64),
    )


def make_batch(config: Any, frames: int, length: int) -> dict[str, np.ndarray]:
    """One lane's frames [1, T, ...] in the middle of an episode, with noise and times."""
    from mem0_jax.backbones.qwen3_vl.positions import image_slots, token_positions
    from mem0_jax.backbones.qwen3_vl.processor import patchify

    rng, tokens, action = np.random.default_rng(0), config.backbone.tokens, config.action
    vision, (height, width) = config.backbone.vision, config.image_size
    patch = vision.patch_size
    grid = (1, height // patch, width // patch)
    count = grid[1] * grid[2] // vision.spatial_merge_size**2
    words = [8 + zlib.crc32(word.encode()) % 20 for word in TEXT.split()][: length - count - 4]
    prompt = [tokens.im_start, tokens.vision_start, *[tokens.image] * count, tokens.vision_end, *words, tokens.im_end]
    ids = np.full((frames, length), tokens.pad, np.int32)
    ids[:, : len(prompt)] = prompt
    mask = np.broadcast_to(np.arange(length) < len(prompt), ids.shape).copy()
    images = rng.integers(0, 256, (frames, 1, height, width, 3), np.uint8)
    batch = {
        "patches": patchify(images, vision),
        "input_ids": ids,
        "attention_mask": mask,
        "position": token_positions(ids, mask, [grid] * frames, config.backbone),
        "image_slot": image_slots(ids, [[count]] * frames, count, tokens.image),
        "state": rng.normal(size=(frames, action.state_dim)).astype(np.float32),
        "action": rng.normal(size=(frames, action.horizon, action.action_dim)).astype(np.float32),
        "episode": np.zeros(frames, np.int32),
        "subtask_end": (np.arange(frames) % 4 == 3).astype(np.int32),
    }
    draws = frames * config.flow.draws
    given = {
        "noise": rng.normal(size=(draws, action.horizon, action.action_dim)).astype(np.float32),
        "time": rng.random(draws).astype(np.float32),
    }
    return {name: value[None] for name, value in batch.items()} | given


def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter's first value, from its path alone."""
    if path.endswith("/scale"):
        return np.ones(shape, np.float32)
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(path.encode())))
    return 0.05 * (rng.random(shape, np.float32) - 0.5)


def make_optimizer_config() -> Any:
    """The reference's, beyond the warm-up."""
    from mem0_jax.train.config import OptimizerConfig

    return OptimizerConfig(RATES, total_steps=30000, warmup_ratio=0.0)


def measure(step: Callable[[], float], steps: int) -> dict[str, Any]:
    """Runs one step and then `steps` more: losses of all, seconds of the latter."""
    began = time.perf_counter()
    losses = [step()]
    first, seconds, processor = time.perf_counter() - began, [], []
    for _ in range(steps):
        wall, busy = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - busy)
    return {"losses": losses, "first": first, "seconds": seconds, "processor_seconds": processor}


def resident_bytes() -> int:
    """The most memory this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_jax(args: argparse.Namespace) -> dict[str, Any]:
    """One turn of ours."""
    import jax

    from mem0_jax import tree
    from mem0_jax.policies.mem0 import Mem0
    from mem0_jax.train.flops import peak_flops, training_flops
    from mem0_jax.train.optim import make_optimizer
    from mem0_jax.train.state import create_state
    from mem0_jax.train.step import make_train_step

    config = make_config(args)
    policy = Mem0(config)
    abstract = tree.flatten(jax.eval_shape(policy.init, jax.random.key(0)))
    params = tree.unflatten({path: jax.device_put(draw(path, leaf.shape)) for path, leaf in abstract.items()})
    optimizer = make_optimizer(make_optimizer_config(), policy.learning_rate_groups, policy.no_gradient, (), params)
    state = jax.jit(lambda params: create_state(policy, optimizer, params, 0, 1), donate_argnums=0)(params)
    del params
    trained = list(tree.flatten(state.opt_state.mu))
    batch = jax.device_put(make_batch(config, args.frames, TOKENS[args.size]))
    train_step = jax.jit(make_train_step(policy, optimizer), donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, batch))
        return float(metrics["loss"])

    measured, device = measure(step, args.steps), jax.devices()[0]
    memory = device.memory_stats() or {}
    return measured | {
        "flops": training_flops(config, TOKENS[args.size], trained),
        "peak_flops": peak_flops(device.device_kind),
        "peak_bytes": memory.get("peak_bytes_in_use", resident_bytes()),
        "device": device.device_kind,
        "versions": {"jax": jax.__version__},
        "parameters": sum(leaf.size for leaf in abstract.values()),
    }


def run_torch(args: argparse.Namespace) -> dict[str, Any]:
    """One turn of PyTorch."""
    import torch
    import transformers
    from torch_mem0 import TorchMem0, to_torch

    from mem0_jax.train.flops import peak_flops, training_flops
    from mem0_jax.train.optim import learning_rates

    config, settings = make_config(args), make_optimizer_config()
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    with torch.device(device):
        model = TorchMem0(config)
    trained = fill(model, config)
    if config.remat:
        model.qwen_model.model.model.gradient_checkpointing_enable()
    model.train()
    groups = [
        {"params": [p for name, p in model.named_parameters() if name.startswith(f"{module}.")], "name": group}
        for module, group in MODULES.items()
    ]
    optimizer = torch.optim.AdamW(
        groups, betas=(settings.b1, settings.b2), eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )
    batch, done = to_torch(make_batch(config, args.frames, TOKENS[args.size]), config, device), 0

    def step() -> float:
        nonlocal done
        for group, rate in zip(optimizer.param_groups, learning_rates(settings, done).values()):
            group["lr"] = rate
        loss = model(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        return loss.item()  # waits for the device

    measured = measure(step, args.steps)
    kind = torch.cuda.get_device_name() if gpu else "cpu"
    return measured | {
        "flops": training_flops(config, TOKENS[args.size], trained),
        "peak_flops": peak_flops(kind),
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else resident_bytes(),
        "device": kind,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def fill(model: Any, config: Any) -> list[str]:
    """Gives the model the values that our side starts from; returns our paths of what is trained."""
    import jax
    import torch

    from mem0_jax import tree
    from mem0_jax.convert.models.mem0 import rules
    from mem0_jax.convert.rules import exported, make_plan
    from mem0_jax.policies.mem0 import Mem0

    policy = Mem0(config)
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    shapes: dict[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    embedding = shapes["qwen_model.model.model.language_model.embed_tokens.weight"]
    shapes |= {"qwen_model.model.lm_head.weight": embedding, "classifier.pos_weight": ()}
    plan = make_plan(rules(config), shapes, abstract)
    leaves = {path: draw(path, leaf.shape) for path, leaf in tree.flatten(abstract).items()}
    values, targets = exported(plan, leaves), model.state_dict()
    if values.keys() != targets.keys():
        sys.exit(f"the models differ in {sorted(values.keys() ^ targets.keys())}")
    for name, value in values.items():
        targets[name].copy_(torch.from_numpy(value.read()))
    return sorted(set(leaves) - tree.select(policy.no_gradient, leaves, "no_gradient"))


if __name__ == "__main__":
    sys.exit(main())
