"""Open-loop validation: held-out episodes are shown to the policy frame by frame, and what it would do is compared.

Axes: L lanes, T consecutive frames, C action horizon, A action width.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.pipeline import make_loader
from mem0_jax.distributed.layout import Layout
from mem0_jax.distributed.mesh import lane_shards
from mem0_jax.heads.classifier import confusion
from mem0_jax.train.lora import LoraPolicy
from mem0_jax.train.metrics import classifier_metrics
from mem0_jax.train.state import TrainState

if TYPE_CHECKING:
    from mem0_jax.policies.base import Trainable
    from mem0_jax.train.episodes import Episodes

FRAMES = 8  # of a lane that are shown at once


class Validation:
    """`validation(state)` plays every held-out episode once with the averaged parameters, memory as in deployment.

    It gives the means over frames of `action_error` (mean absolute difference between a sampled chunk and the recorded
    one, normalised, steps past the episode's end left out) and `first_action_error` (of the chunk's first action); the
    classifier's metrics (see `classifier_metrics`); `frames`; and `score`, the action error.

    On a mesh every process plays the lanes of its own devices, all must call, and all get the same figures: up to
    rounding those of one device, if the mesh divides the lanes, which are as many as held-out episodes at most.
    """

    def __init__(self, lessons: Episodes, trained: Trainable, layout: Layout | None = None) -> None:
        job = lessons.job
        parts = 1 if layout is None else lane_shards(dict(layout.mesh.shape))
        # More lanes than episodes, where the mesh asks for them, play some again, which is not counted.
        self._lanes = math.ceil(min(job.lanes, job.data.held_out) / parts) * parts
        first, count = (0, self._lanes) if layout is None else layout.local_lanes(self._lanes)
        self._sources = lessons.held_out_sources(self._lanes, FRAMES, first, count)
        self._policy = lessons.policy()
        self._width = len(lessons.inputs.robot.action.names)  # what a policy has beyond is no robot's
        announced = self._policy.batch(job.data.max_length, len(lessons.inputs.cameras))
        self._observed = announced.keys() - set(self._policy.labels)
        self._plain = trained.composed if isinstance(trained, LoraPolicy) else lambda params: params
        self._threads = None if job.data.threads < 0 else job.data.threads
        self._layout = layout
        start = partial(self._policy.init_state, self._lanes)
        if layout is None:
            self._start, self._play = jax.jit(start), jax.jit(self._play_window)
        else:
            lanes, everywhere = layout.lanes_sharding, layout.everywhere
            self._start = jax.jit(start, out_shardings=lanes)
            self._play = jax.jit(self._play_window, out_shardings=(lanes, everywhere))

    def __call__(self, state: TrainState) -> dict[str, float]:
        params, sums = state.averaged_params, Counter()
        with nullcontext() if self._layout is None else jax.set_mesh(self._layout.mesh):
            for source in self._sources:
                sums.update(self._play_all(params, source))
        frames = sums.pop("frames")
        means = {name: sums.pop(name) / frames for name in ("action_error", "first_action_error")}
        ends = classifier_metrics(sums) if self._policy.spec.end_threshold else {}
        return means | ends | {"frames": int(frames), "score": means["action_error"]}

    def _play_all(self, params: Any, source: LaneSource) -> Counter:
        """Sums over the frames of a dataset's first pass through its episodes."""
        sums, memory = Counter(), self._start()
        # Passes are numbered over all lanes: these play every episode once.
        episodes = np.int32(source.fingerprint()["episodes"])
        with make_loader(source, threads=self._threads) as loader:
            for number, batch in enumerate(loader):
                placed = batch if self._layout is None else self._layout.batch(batch, self._lanes)
                memory, found = self._play(params, memory, placed, episodes, np.int32(number))
                found = {name: float(value) for name, value in jax.device_get(found).items()}
                # No process knows the others' lanes: what all play tells all of them when to stop.
                if not found["frames"]:
                    return sums
                sums.update(found)
        raise AssertionError("lanes have no end")

    def _play_window(
        self, params: Any, memory: Any, batch: Any, episodes: jax.Array, number: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Plays window `number`, [L, T] frames; gives the memory after them and sums over frames of `episodes`."""

        policy, params, spec = self._policy, self._plain(params), self._policy.spec
        constants = policy.constants(params)

        def frame(memory: Any, now: tuple[Any, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
            observed, key = now
            context, info, memory = policy.observe(params, memory, {name: observed[name] for name in self._observed})
            noise = spec.draws(key, len(observed["state"]))
            chunk = policy.decide(params, context, observed["state"], noise, constants)
            error = jnp.abs(chunk - observed["action"])[..., : self._width].mean(-1)  # [L, C]
            real = ~observed["action_is_pad"]
            mean = jnp.sum(error * real, -1) / jnp.maximum(real.sum(-1), 1)
            ends = {"end": info["end_probability"]} if spec.end_threshold else {}
            return memory, {"mean": mean, "first": error[:, 0], **ends}

        by_time = jax.tree.map(lambda value: jnp.moveaxis(value, 1, 0), batch)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), FRAMES)
        memory, found = jax.lax.scan(frame, memory, (by_time, keys))  # [T, L] each
        counted = by_time["episode"] < episodes
        sums = {
            "frames": counted,
            "action_error": jnp.where(counted, found["mean"], 0.0),
            "first_action_error": jnp.where(counted, found["first"], 0.0),
        }
        if spec.end_threshold:
            sums |= confusion(found["end"] >= spec.end_threshold, by_time["subtask_end"] > 0, counted)
        return memory, {name: value.sum() for name, value in sums.items()}
