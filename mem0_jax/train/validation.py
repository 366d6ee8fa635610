"""Open-loop validation: held-out episodes are shown to the policy frame by frame, and what it would do is compared.

Axes: L lanes, T consecutive frames, C action horizon, A action width.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.pipeline import make_loader
from mem0_jax.train.metrics import classifier_metrics
from mem0_jax.train.prepare import Prepared, held_out_sources
from mem0_jax.train.state import TrainState

FRAMES = 8  # of a lane that are shown at once
OBSERVED = ("patches", "input_ids", "attention_mask", "position", "image_slot", "state", "episode")


class Validation:
    """`validation(state)` plays every held-out episode once with the averaged parameters, memory as in deployment.

    It gives the means over frames of `action_error` (mean absolute difference between a sampled chunk and the recorded
    one, normalised, steps past the episode's end left out) and `first_action_error` (of the chunk's first action); the
    classifier's metrics (see `classifier_metrics`); `frames`; and `score`, the action error.
    """

    def __init__(self, prepared: Prepared) -> None:
        job = prepared.job
        self._lanes = min(job.lanes, job.data.held_out)
        self._sources = held_out_sources(prepared, self._lanes, FRAMES)
        self._policy, self._threshold = prepared.policy, job.model.classifier.threshold
        self._threads = None if job.data.threads < 0 else job.data.threads
        self._play = jax.jit(self._play_window)

    def __call__(self, state: TrainState) -> dict[str, float]:
        params, sums = state.averaged_params, Counter()
        for source in self._sources:
            sums.update(self._play_all(params, source))
        frames = sums.pop("frames")
        means = {name: sums.pop(name) / frames for name in ("action_error", "first_action_error")}
        return means | classifier_metrics(sums) | {"frames": frames, "score": means["action_error"]}

    def _play_all(self, params: Any, source: LaneSource) -> Counter:
        """Sums over the frames of a dataset's first pass through its episodes."""
        sums, memory = Counter(), self._policy.init_state(self._lanes)
        episodes = int(source.fingerprint()["episodes"])
        with make_loader(source, threads=self._threads) as loader:
            for number, batch in enumerate(loader):
                counted = batch["episode"] < episodes  # passes are numbered: these play every episode once
                if not counted.any():
                    return sums
                rng = jax.random.fold_in(jax.random.key(0), number)
                memory, found = self._play(params, memory, batch, rng)
                sums.update(self._count(jax.device_get(found), batch["subtask_end"] > 0, counted))
        raise AssertionError("lanes have no end")

    def _play_window(self, params: Any, memory: Any, batch: Any, rng: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Plays [L, T] frames; gives the memory after them and [L, T] errors and probabilities of a subtask's end."""

        def frame(memory: Any, now: tuple[Any, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
            observed, key = now
            chunk, info, memory = self._policy.act(params, memory, {k: observed[k] for k in OBSERVED}, key)
            error = jnp.abs(chunk - observed["action"]).mean(-1)  # [L, C]
            real = ~observed["action_is_pad"]
            mean = jnp.sum(error * real, -1) / jnp.maximum(real.sum(-1), 1)
            end = info["end_probability"]
            return memory, {"action_error": mean, "first_action_error": error[:, 0], "end": end}

        by_time = jax.tree.map(lambda value: jnp.moveaxis(value, 1, 0), batch)
        memory, found = jax.lax.scan(frame, memory, (by_time, jax.random.split(rng, FRAMES)))
        return memory, jax.tree.map(lambda value: jnp.moveaxis(value, 0, 1), found)

    def _count(self, found: dict[str, np.ndarray], ends: np.ndarray, counted: np.ndarray) -> dict[str, float]:
        guess = found["end"] >= self._threshold
        return {
            "frames": int(counted.sum()),
            "action_error": float(found["action_error"][counted].sum()),
            "first_action_error": float(found["first_action_error"][counted].sum()),
            "cls_tp": int((guess & ends & counted).sum()),
            "cls_fp": int((guess & ~ends & counted).sum()),
            "cls_fn": int((~guess & ends & counted).sum()),
            "cls_correct": int(((guess == ends) & counted).sum()),
            "cls_total": int(counted.sum()),
            "cls_positive": int((ends & counted).sum()),
        }
