"""Measure closed-loop evaluation: environments in parallel against one server, against one after another.

A server, `mem0-jax serve` in a process of its own, plays episodes of a built-in task with 16 clients side by side and
with a single one; the same bundle also plays 16 episodes side by side in this process. The three ways are measured in
turns, so that a busy machine slows all alike; a ratio is formed within a turn, and the median and the spread over
turns are reported.

    python scripts/bench_eval.py --bundle runs/demo/with_memory/bundle --json f
    python scripts/bench_eval.py                 # an untrained policy of the demo's size, whose episodes are longer
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mem0_jax.backbones.qwen3_vl.processor import word_tokenizer
from mem0_jax.configs.demo import get_config
from mem0_jax.data.normalize import NormStats
from mem0_jax.demo.side import policy_config
from mem0_jax.envs import make
from mem0_jax.eval.clients import play_on_server
from mem0_jax.eval.episode import Outcome
from mem0_jax.eval.lockstep import play
from mem0_jax.family import policy_family_of
from mem0_jax.inference.session import Options
from mem0_jax.policies.bundle import Bundle, load_bundle, save_bundle
from mem0_jax.policies.inputs import Camera, Inputs
from mem0_jax.policies.mem0 import Mem0

FIRST_SEED, EXECUTED = 300_000_000, 2


def untrained(task: str, folder: Path) -> Path:
    """A bundle of the demo's size that knows the task's words."""
    env = make(task, render=False)
    tokenizer = word_tokenizer([env.instruction, *env.subtasks])
    settings = get_config().to_dict()
    plain = policy_config(settings, ("window", "anchor"))
    config = policy_family_of(plain).completed(plain, tokenizer, tokenizer.get_vocab_size(), plain.dtype)
    span = {"min": np.full(16, -1.5), "max": np.full(16, 1.5)}
    data = settings["data"]
    inputs = Inputs(
        cameras=(Camera(size=tuple(data["camera_size"])),), deploy_resample="bilinear", max_length=data["max_length"]
    )
    params = jax.jit(Mem0(config).init)(jax.random.key(0))
    return save_bundle(Bundle(config, params, NormStats(span, span), tokenizer, inputs), folder)


@contextmanager
def serving(bundle: Path, sessions: int) -> Iterator[str]:
    """The address of a server that is warm."""
    words = ["-m", "mem0_jax.cli", "serve", str(bundle), "--port", "0", "--sessions", str(sessions)]
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if line.startswith("ready: "):
                yield line.removeprefix("ready: ").split(",")[0]
                return
        raise SystemExit(f"the server ended with {server.wait()} before it was ready")
    finally:
        server.terminate()
        server.wait(30)


def rate(outcomes: Iterable[Outcome]) -> float:
    """Episodes a minute."""
    began = time.perf_counter()
    found = list(outcomes)
    taken = time.perf_counter() - began
    for outcome in found:
        if outcome.error:
            raise SystemExit(f"episode of seed {outcome.seed}: {outcome.error}")
    return 60 * len(found) / taken


def measure(bundle: Path, task: str, turns: int, sessions: int, alone: int) -> dict[str, list[float]]:
    """Episodes a minute of each way, once a turn. The episodes of a turn have the same seeds, as far as they go."""
    policy, options = load_bundle(bundle), Options(n_action_steps=EXECUTED)
    with serving(bundle, sessions) as address:
        given = {"n_action_steps": EXECUTED}

        def on_server(parallel: int) -> Callable[[range], Iterable[Outcome]]:
            return lambda seeds: play_on_server(address, task, seeds, given, parallel=parallel)

        ways: dict[str, tuple[Callable[[range], Iterable[Outcome]], int]] = {
            "one after another": (on_server(1), alone),
            f"{sessions} against the server": (on_server(sessions), sessions),
            f"{sessions} in this process": (lambda s: play(policy, task, s, options, parallel=sessions), sessions),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns + 1):  # the first one warms up
            for name, (way, count) in ways.items():
                first = FIRST_SEED + turn * sessions
                found = rate(way(range(first, first + count)))
                if turn:
                    rates[name].append(found)
                    print(f"turn {turn}: {name}: {found:.1f} episodes a minute", flush=True)
    return rates


def main() -> None:
    """Prints medians and ratios."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--bundle", type=Path, help="a policy of the task (default: an untrained one)")
    flags.add_argument("--task", default="put_back_block")
    flags.add_argument("--turns", type=int, default=3)
    flags.add_argument("--sessions", type=int, default=16, help="environments in parallel")
    flags.add_argument("--alone", type=int, default=4, help="episodes of a turn that are played one after another")
    flags.add_argument("--json", type=Path)
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or untrained(given.task, Path(folder) / "bundle")
        rates = measure(bundle, given.task, given.turns, given.sessions, given.alone)
    serial, *others = rates
    result: dict[str, Any] = {"task": given.task, "device": jax.devices()[0].device_kind, "machine": platform.machine()}
    result["episodes_per_minute"] = {name: statistics.median(found) for name, found in rates.items()}
    result["ratios"] = {}
    print(f"{serial}: {result['episodes_per_minute'][serial]:.1f} episodes a minute")
    for name in others:
        ratios = [many / one for many, one in zip(rates[name], rates[serial])]
        row = {"ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
        result["ratios"][name] = row
        print(
            f"{name}: {result['episodes_per_minute'][name]:.1f} episodes a minute, "
            f"ratio {row['ratio']:.2f} ({row['least']:.2f} to {row['greatest']:.2f})"
        )
    if given.json:
        given.json.write_text(json.dumps(result | {"measured": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
