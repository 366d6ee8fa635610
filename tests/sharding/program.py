"""Runs on virtual CPU devices, in processes of its own: compares Mem-0 on meshes, or trains a toy on several processes.

L lanes, T frames, P patches, S tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tiny import mem0_config

from mem0_jax import tree
from mem0_jax.backbones.qwen3_vl.config import TokenIds
from mem0_jax.distributed.layout import Layout, make_layout
from mem0_jax.distributed.mesh import make_mesh, parse_mesh
from mem0_jax.distributed.startup import start
from mem0_jax.policies.mem0 import Mem0
from mem0_jax.train.config import TrainConfig
from mem0_jax.train.loop import Extras, TrainingInterrupted, fit
from mem0_jax.train.optim import make_optimizer
from mem0_jax.train.state import create_params, create_state
from mem0_jax.train.step import make_train_step

LANES, FRAMES, WIDTH, PATCHES, TOKENS, SEED = 8, 2, 32, 16, 12, 3
SPECIAL = TokenIds(vision_start=1, vision_end=2, image=3, video=4, im_start=5, im_end=6, pad=0)


def make_policy() -> Mem0:
    text = {"hidden_size": WIDTH, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"head_dim": 16, "intermediate_size": 64, "mrope_section": (4, 2, 2), "rope_theta": 5e6}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 4, "out_hidden_size": WIDTH}
    head = {"width": 32, "num_heads": 4, "context_width": WIDTH, "hidden_size": 32, "output_dim": 32}
    head |= {"action_dim": 4, "state_dim": 4, "max_positions": 8}
    parts = {"backbone.text": text, "backbone.vision": vision, "action": head}
    changes = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    changes |= {"memory.window_size": 3, "memory.num_heads": 4, "flow.draws": 2}
    changes |= {"classifier.hidden_sizes": (3 * WIDTH, 32, 15), "image_size": (16, 16), "remat": True}
    return Mem0(mem0_config(changes, SPECIAL, vocabulary=24))


def batch_at(index: int) -> dict[str, np.ndarray]:
    """Batch `index` of all lanes: two episodes begin in turn, prompts of a picture and random words."""
    rng = np.random.default_rng(index)
    shape = (LANES, FRAMES)
    words = rng.integers(7, 24, (*shape, TOKENS - 7))
    ids = np.concatenate([np.broadcast_to([1, 3, 3, 3, 3, 2], (*shape, 6)), words, np.full((*shape, 1), 6)], -1)
    return {
        "patches": rng.integers(0, 256, (*shape, 1, PATCHES, 48), dtype=np.uint8),
        "input_ids": ids.astype(np.int32),
        "attention_mask": np.ones((*shape, TOKENS), bool),
        "position": np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (*shape, 3, TOKENS)).copy(),
        "image_slot": np.broadcast_to(np.r_[-1, 0:4, -np.ones(7)].astype(np.int32), (*shape, TOKENS)).copy(),
        "state": rng.normal(size=(*shape, 4)).astype(np.float32),
        "action": rng.normal(size=(*shape, 3, 4)).astype(np.float32),
        "episode": np.broadcast_to(np.int32((index + np.arange(LANES)[:, None]) // 3), shape).copy(),
        "subtask_end": (rng.random(shape) < 0.3).astype(np.int32),
    }


class Leaky:
    """A policy that compiles in a second: two layers read each frame through a leaky memory of H = 16, with dropout."""

    learning_rate_groups = (("all", ".*"),)
    no_gradient = ()
    logical_axes = (("embed mlp", "read/kernel"), ("mlp", "read/bias"), ("mlp embed", "write/kernel"))

    def init(self, key: jax.Array) -> dict[str, Any]:
        read, write = jax.random.split(key)
        return {
            "read": {"kernel": jax.random.normal(read, (4, 16)), "bias": jnp.zeros(16)},
            "write": {"kernel": jax.random.normal(write, (16, 4))},
        }

    def init_state(self, lanes: int) -> jax.Array:
        return jnp.zeros((lanes, 16))

    def loss(self, params: Any, state: Any, batch: Any, rng: jax.Array, train: bool) -> Any:
        def frame(memory: Any, x: Any) -> Any:
            memory = 0.5 * memory + jnp.tanh(x @ params["read"]["kernel"] + params["read"]["bias"])
            return jax.lax.stop_gradient(memory), memory

        state, features = jax.lax.scan(frame, state, jnp.moveaxis(batch["state"], 1, 0))
        kept = features * jax.random.bernoulli(rng, 0.8, features.shape)
        error = jnp.moveaxis(kept @ params["write"]["kernel"], 0, 1) - batch["action"][:, :, 0]
        loss = jnp.mean(jnp.square(error))
        return loss, {"loss": loss}, state


class Loader:
    """The lanes `first` to `first + count` of `batch_at`."""

    def __init__(self, first: int, count: int):
        self.lanes, self.index = slice(first, first + count), 0

    def __next__(self) -> dict[str, np.ndarray]:
        self.index += 1
        return {name: value[self.lanes] for name, value in batch_at(self.index - 1).items()}

    def get_state(self) -> Any:
        return self.index

    def set_state(self, state: Any) -> None:
        self.index = state


def make_config(policy: Any, steps: int) -> TrainConfig:
    rates = {group: 1e-3 for group, _ in policy.learning_rate_groups}
    optimizer: dict[str, Any] = {"learning_rates": rates, "total_steps": 5000, "warmup_ratio": 0.0, "clip_norm": 0.0}
    return TrainConfig(steps=steps, lanes=LANES, seed=SEED, log_every=1, save_every=100, ema_decay=0.9, **optimizer)


def layout_of(policy: Any, mesh: str) -> Layout:
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    return make_layout(abstract, policy.logical_axes, make_mesh(parse_mesh(mesh)))


def one_step(policy: Mem0, layout: Layout | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The state born on a mesh, after two steps: what was off its place, and every number."""
    config = make_config(policy, 2)
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    optimizer = make_optimizer(config.optimizer, policy.learning_rate_groups, policy.no_gradient, (), abstract)
    step = make_train_step(policy, optimizer, 1, config.ema_decay)

    def create() -> Any:
        return create_state(policy, optimizer, create_params(policy, SEED), SEED, LANES, ema=True)

    state = create() if layout is None else layout.create(create)
    place = (lambda batch: batch) if layout is None else (lambda batch: layout.batch(batch, LANES))
    run = jax.jit(step, donate_argnums=0) if layout is None else layout.jit_step(step, state)
    born, wrong = state, {}
    # Sums are new arrays: NumPy's view of a buffer would keep it from being donated.
    numbers = {f"initial/{path}": np.asarray(leaf + 0) for path, leaf in tree.flatten(state.params).items()}
    for index in range(2):
        state, metrics = run(state, place(batch_at(index)))
        numbers |= {f"{name}/{index}": np.asarray(value) for name, value in metrics.items()}
        # The first moments of nothing but this gradient are a tenth of it, without clipping.
        moments = tree.flatten(state.opt_state.mu).items()
        numbers |= {f"moment/{index}/{path}": np.asarray(leaf + 0) for path, leaf in moments}
    numbers |= {f"carry/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.carry))}
    if layout is not None:
        wanted = jax.tree.leaves(layout.state(state))
        wrong = {
            str(i): f"{leaf.sharding} instead of {sharding}"
            for i, (leaf, sharding) in enumerate(zip(jax.tree.leaves(state), wanted))
            if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        }
        kept = [path for path, leaf in tree.flatten(born.params).items() if not leaf.is_deleted()]
        wrong |= dict.fromkeys(kept, "not donated")
    return wrong, {name: value.astype(np.float64) for name, value in numbers.items()}


def compare(mesh: str) -> dict[str, Any]:
    """What lies wrong on a mesh, and the greatest difference to one device, relative by array."""
    policy = make_policy()
    _, expected = one_step(policy, None)
    wrong, numbers = one_step(policy, layout_of(policy, mesh))
    # A bias of keys has no gradient but rounding: it drops out of the softmax. So errors count relative to no less.
    floor = 1e-3 * max(np.abs(value).max() for name, value in expected.items() if name.startswith("moment"))
    errors = {
        name: float(np.abs(value - expected[name]).max() / max(np.abs(expected[name]).max(), floor))
        for name, value in numbers.items()
    }
    worst = max(errors, key=errors.__getitem__)
    return {"wrong": wrong, "worst": worst, "error": errors[worst]}


def train(mesh: str, steps: str, workdir: str) -> dict[str, Any]:
    """Trains on all processes' devices; what this process saw."""
    start()
    policy: Any = Leaky()
    layout = layout_of(policy, mesh) if mesh else None
    first, count = layout.local_lanes(LANES) if layout else (0, LANES)

    def progress(row: dict[str, Any]) -> None:
        print(json.dumps({"step": row["step"]}), flush=True)

    extras = Extras(layout=layout)
    try:
        result = fit(
            policy, lambda: Loader(first, count), make_config(policy, int(steps)), Path(workdir), progress, extras
        )
    except TrainingInterrupted as stopped:
        return {"stopped": str(stopped)}
    total = {p: float(abs(x).sum()) for p, x in tree.flatten(result.state.averaged_params).items()}
    return {"resumed_from": result.resumed_from, "lanes": [first, count], "total": total, "devices": jax.device_count()}


if __name__ == "__main__":
    print(json.dumps({"compare": compare, "train": train}[sys.argv[1]](*sys.argv[2:])), flush=True)
