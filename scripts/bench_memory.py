"""The MemoryBank over a run of frames against the walk frame by frame, forward and backward, interleaved in one run.

    python scripts/bench_memory.py [--width 2048] [--frames 56] [--lanes 1] [--rounds 5]

`sequence` projects every frame once and attends in one batch; the walk (`step` under `lax.scan`) projects the window
anew for every frame, as a loop over frames must. Both are compiled; the ratio is of their median times.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.memory import bank
from mem0_jax.memory.bank import MemoryBank, MemoryConfig
from mem0_jax.nn import module


def main() -> None:
    """Measures and prints."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 2048), ("frames", 56), ("lanes", 1), ("rounds", 5)):
        flags.add_argument(f"--{name}", type=int, default=value)
    args = flags.parse_args()
    config = MemoryConfig(dropout=0.0, memory_accumulation=0)

    def build(rngs):
        return MemoryBank(args.width, config, rngs)

    params, bind = module.init(build, jax.random.key(0)), module.bind(build)
    features = jax.random.normal(jax.random.key(1), (args.lanes, args.frames, args.width))
    episode = jnp.zeros((args.lanes, args.frames), jnp.int32)
    # A full window, as in the middle of an episode.
    state = bank.init_state(args.lanes, config, args.width)
    _, state = bind(params).sequence(state, features, episode, episode)

    def sequence(params, features):
        reading, _ = bind(params).sequence(state, features, episode, episode)
        return reading.window, reading.anchor

    def walk(params, features):
        def one(state, frame):
            reading, state = bind(params).step(state, frame, episode[:, 0])
            return state, (reading.window, reading.anchor)

        outputs = jax.lax.scan(one, state, jnp.moveaxis(features, 1, 0))[1]
        return jax.tree.map(lambda value: jnp.moveaxis(value, 0, 1), outputs)

    def gradient(run):
        return jax.jit(jax.value_and_grad(lambda *inputs: sum(jnp.sum(jnp.square(v)) for v in run(*inputs)), (0, 1)))

    ways = {"sequence": gradient(sequence), "walk": gradient(walk)}
    results = {name: jax.block_until_ready(way(params, features)) for name, way in ways.items()}
    ours, theirs = (jax.tree.leaves(results[name]) for name in ways)
    apart = max(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)) for a, b in zip(ours, theirs))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way(params, features))
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:<9} {1e3 * middle:9.1f} ms  ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})")
    ratio = statistics.median(times["walk"]) / statistics.median(times["sequence"])
    print(f"ratio     {ratio:9.1f}     on {jax.devices()[0].device_kind}; results differ by {apart:.1e} (relative)")


if __name__ == "__main__":
    main()
