"""Closed-loop evaluation of a policy bundle in the built-in environments, many episodes in lockstep.

Axis letters: W memory window. Every executed action is followed by an observation that updates the memory; a new chunk
is sampled when `execute` actions of the last one were executed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mem0_jax.envs import Tabletop, make
from mem0_jax.inference.engine import Engine
from mem0_jax.inference.session import Options, Pilot, advance
from mem0_jax.planner.base import Plan, Planner, Situation
from mem0_jax.policies.bundle import Bundle


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


class Oracle:
    """A faultless planner: names the subtasks of an environment in their order."""

    def __init__(self, env: Tabletop):
        self._env = env

    def next_subtask(self, situation: Situation) -> Plan:
        """The first subtask that is not finished; the last one, where all are."""
        subtasks = self._env.subtasks
        return Plan(subtasks[min(len(situation.finished), len(subtasks) - 1)])


class _Episode:
    """One environment, its pilot and its planner."""

    def __init__(self, env: Tabletop, seed: int, pilot: Pilot, planner: Planner | None, recorded: bool):
        self.env, self.pilot, self.planner, self.recorded = env, pilot, planner, recorded
        self.observation, _ = env.reset(seed=seed)
        pilot.reset(env.instruction, seed)
        self.result, self.over = EpisodeResult(seed), False

    def record(self) -> None:
        """Keeps the present frame and what the memory attended to."""
        assert self.pilot.reply is not None
        self.result.frames.append(self.observation["observation"]["head_camera"]["rgb"])
        self.result.attention.append(self.pilot.reply.attention)
        self.result.stages.append(self.env.subtask)

    def step(self) -> None:
        """Executes one action and notes the outcome."""
        self.observation, _, terminated, truncated, info = self.env.step(self.pilot.actions()[0])
        result = self.result
        result.success, result.placed, result.placed_right = info["success"], info["placed"], info["placed_right"]
        result.reward, result.steps = float(info["reward"]), result.steps + 1
        self.over = terminated or truncated


def evaluate(
    bundle: Bundle,
    task: str,
    seeds: Sequence[int],
    *,
    execute: int,
    sessions: int = 50,
    record: int = 0,
    options: Options | None = None,
    planner: Callable[[Tabletop], Planner] | None = Oracle,
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
        options: how the policy acts otherwise.
        planner: makes the planner of an environment with a staged task; None tells the policy the whole task there too.
        progress: called with the number of episodes finished since the last call.

    Raises:
        UserError: the options do not fit the policy; the planner's.
    """
    options = dataclasses.replace(options or Options(), action_horizon=execute)
    engine = Engine(bundle, min(sessions, len(seeds)), growth=4)
    results = []
    for start in range(0, len(seeds), sessions):
        group = []
        for slot, seed in enumerate(seeds[start : start + sessions]):
            env, recorded = make(task), start + slot < record
            how = dataclasses.replace(options, classify=options.classify or recorded)
            own = planner(env) if planner and env.staged else None
            pilot = Pilot(bundle, how, slot=slot, staged=own is not None)
            group.append(_Episode(env, seed, pilot, own, recorded))
        _play(engine, group, progress)
        results += [episode.result for episode in group]
    return results


def _play(engine: Engine, group: list[_Episode], progress: Callable[[int], Any]) -> None:
    """Plays all episodes of a group to their end."""
    while running := [episode for episode in group if not episode.over]:
        for episode in running:
            episode.pilot.observe(episode.observation)
        _decide(engine, [episode for episode in running if episode.pilot.due or episode.pilot.options.classify])
        _decide(engine, [episode for episode in running if episode.pilot.due])  # those whose subtask ended just now
        for episode in running:
            if episode.recorded:
                episode.record()
            episode.step()
        progress(sum(episode.over for episode in running))


def _decide(engine: Engine, episodes: list[_Episode]) -> None:
    pilots = [episode.pilot for episode in episodes]
    advance(engine, pilots, [pilot.due for pilot in pilots], [episode.planner for episode in episodes])
