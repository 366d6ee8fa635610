"""Closed-loop evaluation of a policy bundle in the built-in environments, many episodes in lockstep.

Axis letters: N sessions (one episode each, finished ones idle), C chunk length, A model action width, W memory window.
Every executed action is followed by an observation that updates the memory; a new chunk is sampled when `execute`
actions of the last one were executed. Source of the stage rule: RMBench `policy/Mem-0/deploy_policy.py` (behaviour).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.envs import Tabletop, make
from mem0_jax.envs.arm import STATE_SIZE
from mem0_jax.errors import UserError
from mem0_jax.policies.bundle import Bundle

STAGE_PATIENCE = 2  # positive end-of-subtask frames after which the next subtask begins


@dataclass
class EpisodeResult:
    """Outcome of one episode. Only where recorded, one entry a step: `frames` uint8 [240, 320, 3], `attention` [W] by
    rank (0 newest), `stages`, the true stage of the task."""

    seed: int
    success: bool = False
    placed: bool = False
    placed_right: bool = False
    reward: float = 0.0
    steps: int = 0
    frames: list[np.ndarray] = field(default_factory=list)
    attention: list[np.ndarray] = field(default_factory=list)
    stages: list[int] = field(default_factory=list)


class _Session:
    """One environment and what the policy is told in it."""

    def __init__(self, task: str, seed: int, recorded: bool):
        self.env: Tabletop = make(task)
        self.observation, _ = self.env.reset(seed=seed)
        self.result = EpisodeResult(seed)
        self.recorded, self.over = recorded, False
        self.stage, self.positives, self.age = 0, 0, 0

    @property
    def instruction(self) -> str:
        """The whole task, or in a staged task the present subtask as a faultless planner names it."""
        if not self.env.staged:
            return self.env.instruction
        return self.env.subtasks[min(self.stage, len(self.env.subtasks) - 1)]

    def hear(self, ended: bool) -> bool:
        """Counts end-of-subtask frames; True if the next subtask begins (memory and chunk are dropped)."""
        self.positives += ended
        if not self.env.staged or self.positives < STAGE_PATIENCE:
            return False
        self.stage, self.positives, self.age = self.stage + 1, 0, 0
        return True

    def step(self, action: np.ndarray) -> None:
        """Executes one action and notes the outcome."""
        self.observation, _, terminated, truncated, info = self.env.step(action)
        result = self.result
        result.success, result.placed, result.placed_right = info["success"], info["placed"], info["placed_right"]
        result.reward, result.steps = float(info["reward"]), result.steps + 1
        self.over, self.age = terminated or truncated, self.age + 1


def evaluate(
    bundle: Bundle,
    task: str,
    seeds: Sequence[int],
    *,
    execute: int,
    sessions: int = 50,
    record: int = 0,
    progress: Callable[[int], Any] = lambda finished: None,
) -> list[EpisodeResult]:
    """Plays one episode for each seed.

    Args:
        bundle: the policy.
        task: a task of `mem0_jax.envs`.
        seeds: environment seeds; they also seed the sampling of chunks, so a result can be repeated.
        execute: actions of a chunk that are executed before the next one is sampled.
        sessions: episodes played side by side.
        record: the first so many episodes keep their frames and the memory's attention.
        progress: called with the number of episodes finished since the last call.
    """
    horizon = bundle.config.action.horizon
    if not 1 <= execute <= horizon:
        raise UserError(f"execute must lie between 1 and the policy's horizon {horizon}, got {execute}")
    runner = _Runner(bundle)
    results = []
    for start in range(0, len(seeds), sessions):
        group = [_Session(task, seed, start + i < record) for i, seed in enumerate(seeds[start : start + sessions])]
        runner.play(group, execute, progress)
        results += [session.result for session in group]
    return results


class _Runner:
    """The compiled policy."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        self.observe, self.decide = jax.jit(bundle.policy.observe), jax.jit(bundle.policy.decide)

    def play(self, group: list[_Session], execute: int, progress: Callable[[int], Any]) -> None:
        """Plays all sessions of a group to their end."""
        bundle, action = self.bundle, self.bundle.config.action
        memory = bundle.policy.init_state(len(group))
        chunks = np.zeros((len(group), action.horizon, STATE_SIZE), np.float32)
        noise = [np.random.default_rng([session.result.seed, 1]) for session in group]
        while not all(session.over for session in group):
            inputs, context, info, memory = self._look(group, memory)
            advanced = self._advance_stages(group, info)
            if advanced.any():  # a new subtask starts from an empty memory; the other sessions have seen this frame
                _, *again = self._look(group, memory)
                context, info, memory = jax.tree.map(partial(_where, advanced), tuple(again), (context, info, memory))
            self._record(group, info)
            due = [i for i, session in enumerate(group) if not session.over and session.age % execute == 0]
            if due:
                draws = np.stack(
                    [rng.standard_normal((action.horizon, action.action_dim), np.float32) for rng in noise]
                )
                decided = np.asarray(self.decide(bundle.params, context, inputs["state"], draws))
                for i in due:
                    chunks[i], group[i].age = bundle.transform.actions(decided[i], chunks.shape[-1]), 0
            running = [(i, session) for i, session in enumerate(group) if not session.over]
            for i, session in running:
                session.step(chunks[i, session.age])
            progress(sum(session.over for _, session in running))

    def _look(self, group: list[_Session], memory: Any) -> tuple[dict[str, Any], Any, dict[str, np.ndarray], Any]:
        bundle = self.bundle
        seen = [bundle.transform(session.observation) for session in group]
        inputs = bundle.processor.prepare(np.stack([s["image"] for s in seen]), [s.instruction for s in group])
        inputs["state"] = np.stack([s["state"] for s in seen])
        inputs["episode"] = np.array([session.stage for session in group], np.int32)
        context, info, memory = self.observe(bundle.params, memory, inputs)
        return inputs, context, {key: np.asarray(value) for key, value in info.items()}, memory

    def _advance_stages(self, group: list[_Session], info: dict[str, np.ndarray]) -> np.ndarray:
        ended = info["end_probability"] >= self.bundle.config.classifier.threshold
        return np.array([not session.over and session.hear(bool(end)) for session, end in zip(group, ended)])

    def _record(self, group: list[_Session], info: dict[str, np.ndarray]) -> None:
        for session, attention in zip(group, info["attention"]):
            if session.recorded and not session.over:
                session.result.frames.append(session.observation["observation"]["head_camera"]["rgb"])
                session.result.attention.append(attention)
                session.result.stages.append(session.env.subtask)


def _where(rows: np.ndarray, chosen: Any, otherwise: Any) -> Any:
    """Rows of `chosen` where `rows` [N], else of `otherwise`, for arrays that lead with N."""
    return jnp.where(rows.reshape(-1, *[1] * (np.ndim(chosen) - 1)), chosen, otherwise)
