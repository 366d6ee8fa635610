"""A small policy with memory over a real grain stream; run as a program it trains, so that tests can kill it.

L lanes, T frames, F = 3 inputs, H = 5 features of memory.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import grain
import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.policies.base import Policy
from mem0_jax.train import TrainConfig

LANES, FRAMES, INPUTS, WIDTH = 4, 3, 3, 5


class ToyPolicy:
    """Predicts the sum of two frames through a leaky memory and the episode's first frame, with dropout."""

    learning_rate_groups = (("memory", "memory/.*"), ("base", ".*"))
    no_gradient = ("head/unused",)

    def init(self, key: Any) -> dict[str, Any]:
        read, write = jax.random.split(key)
        return {
            "memory": {"kernel": 0.3 * jax.random.normal(read, (INPUTS, WIDTH)), "decay": jnp.zeros(WIDTH)},
            "head": {
                "kernel": 0.3 * jax.random.normal(write, (WIDTH, INPUTS)),
                "bias": jnp.zeros(INPUTS),
                "unused": jnp.full(2, -0.0),
            },
        }

    def init_state(self, lanes: int) -> Any:
        zeros = jnp.zeros((lanes, WIDTH))
        return {"feature": zeros, "first": (zeros, jnp.zeros(lanes, bool))}  # the same buffer twice, on purpose

    def loss(self, params: Any, state: Any, batch: Any, rng: Any, train: bool) -> Any:
        def read_write(memory: Any, frame: Any) -> Any:
            x, is_first = frame
            decay = jax.nn.sigmoid(params["memory"]["decay"])
            fresh = x @ params["memory"]["kernel"]
            feature = jnp.where(is_first[:, None], fresh, decay * memory["feature"] + (1 - decay) * fresh)
            first = jnp.where(is_first[:, None], fresh, memory["first"][0])
            return {"feature": feature, "first": (first, memory["first"][1] | is_first)}, feature + 0.1 * first

        frames = jax.tree.map(lambda a: jnp.moveaxis(jnp.asarray(a), 1, 0), (batch["x"], batch["is_first"]))
        state, features = jax.lax.scan(read_write, state, frames)
        if train:
            features = features * jax.random.bernoulli(rng, 0.8, features.shape) / 0.8
        output = jnp.moveaxis(features, 0, 1) @ params["head"]["kernel"] + params["head"]["bias"]
        loss = jnp.mean(jnp.square(output - batch["y"]))
        guess, label = output[..., 0] > 0, jnp.asarray(batch["y"])[..., 0] > 0
        metrics = {
            "action_loss": loss,
            "cls_tp": jnp.sum(guess & label),
            "cls_fp": jnp.sum(guess & ~label),
            "cls_fn": jnp.sum(~guess & label),
            "cls_correct": jnp.sum(guess == label),
            "cls_total": jnp.asarray(label.size),
            "cls_positive": jnp.sum(label),
        }
        return loss, metrics, jax.lax.stop_gradient(state)


def make_policy() -> Policy:
    """The toy as the trainer sees it: it has no `act`, which training never calls."""
    return cast(Policy, ToyPolicy())


def batch_at(index: int) -> dict[str, np.ndarray]:
    """Batch `index` of an endless stream, a pure function of it."""
    rng = np.random.default_rng(index)
    x = rng.normal(size=(LANES, FRAMES, INPUTS)).astype(np.float32)
    return {"x": x, "y": x + np.roll(x, 1, axis=1) + 0.3, "is_first": rng.random((LANES, FRAMES)) < 0.1}


def make_loader(batches: int = 10**6, delay: float = 0.0) -> grain.DatasetIterator:
    """A threaded grain iterator over `batch_at`, so that batches are prefetched ahead of the one handed out."""

    def load(index: int) -> dict[str, np.ndarray]:
        time.sleep(delay)
        return batch_at(index)

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.range(batches).map(load).to_iter_dataset(options))


def make_config(steps: int, **changes: Any) -> TrainConfig:
    rates: dict[str, Any] = {"learning_rates": {"memory": 1e-2, "base": 3e-2}, "floors": {"memory": 1e-3, "base": 1e-3}}
    own: dict[str, Any] = {
        "steps": steps,
        "lanes": LANES,
        "total_steps": 200,
        "log_every": 5,
        "seed": 0,
        "metrics_window": 10,
    }
    return TrainConfig(**rates | own | changes)


def main(workdir: str, steps: str, save_every: str, delay: str) -> None:
    from mem0_jax.train.loop import TrainingInterrupted, fit

    config = make_config(int(steps), save_every=int(save_every), seed=7)

    def progress(row: dict[str, Any]) -> None:
        print(json.dumps({"step": row["step"]}), flush=True)

    try:
        result = fit(make_policy(), lambda: make_loader(delay=float(delay)), config, Path(workdir), progress)
    except TrainingInterrupted as error:
        print(error, flush=True)
        sys.exit(130)
    print(f"resumed from {result.resumed_from}", flush=True)
    flat = [np.asarray(leaf) for leaf in jax.tree.leaves(result.state)]
    np.savez(Path(workdir) / "final.npz", *flat)


if __name__ == "__main__":
    main(*sys.argv[1:])
