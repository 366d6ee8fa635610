"""One episode in a built-in environment: what happened in it, and its film."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.envs import Tabletop, make
from mem0_jax.eval.film import Film
from mem0_jax.planner.base import Plan, Situation


@dataclass
class Outcome:
    """How an episode went.

    Attributes:
        number: of the episode, from 0.
        seed: of the environment and of the sampled chunks.
        success: the task was solved.
        placed, placed_right: a choice among the alternatives was made; it was the right one.
        reward: greatest progress in [0, 1].
        steps: actions executed.
        stages: subtasks the policy finished in its own view (staged tasks).
        error: why it could not be played to its end, such as a failing environment; it is no result then.
        seconds: wall time from its first to its last frame, shared with the episodes beside it.
    """

    number: int
    seed: int
    success: bool = False
    placed: bool = False
    placed_right: bool = False
    reward: float = 0.0
    steps: int = 0
    stages: int = 0
    error: str = ""
    seconds: float = 0.0


class Episode:
    """An episode being played; nothing it does raises: a failing environment ends it with an error.

    Args:
        task: of `mem0_jax.envs`.
        number, seed: see `Outcome`.
        film: mp4 file to write, of every frame the policy sees; None: none.
    """

    def __init__(self, task: str, number: int, seed: int, film: Path | None = None):
        self.outcome, self.over, self._started = Outcome(number, seed), False, time.perf_counter()
        self._task, self._film_path, self._film = task, film, None
        self.observation: dict[str, Any] = {}
        self.env: Tabletop
        with self._guarded():
            self.env = make(task)
            self.observation, _ = self.env.reset(seed=seed)
            self._look()

    @property
    def instruction(self) -> str:
        """The whole task."""
        return self.env.instruction

    def subtask_after(self, finished: int) -> str:
        """The environment's own name of the subtask after `finished` ones; the last one's after all."""
        return self.env.subtasks[min(finished, len(self.env.subtasks) - 1)]

    def next_subtask(self, situation: Situation) -> Plan:
        """A faultless planner."""
        return Plan(self.subtask_after(len(situation.finished)))

    def step(self, action: np.ndarray) -> None:
        """Executes one action, float32 [14]."""
        with self._guarded():
            self.observation, _, terminated, truncated, info = self.env.step(action)
            outcome = self.outcome
            outcome.success, outcome.placed = bool(info["success"]), bool(info["placed"])
            outcome.placed_right, outcome.reward = bool(info["placed_right"]), float(info["reward"])
            outcome.steps += 1
            self._look()
            if terminated or truncated:
                self._end()

    def fail(self, error: str) -> None:
        """Ends it without a result."""
        self.outcome.error = self.outcome.error or error
        self.abandon()
        self._end()

    def abandon(self) -> None:
        """Throws an unfinished film away."""
        if self._film is not None:
            self._film.abandon()
            self._film = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever an environment raises ends the episode, and no other."""
        try:
            yield
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        picture = self.observation["observation"]["head_camera"]["rgb"]
        if self._film_path is not None and self._film is None:
            self._film = Film(self._film_path, picture.shape[0], picture.shape[1])
        if self._film is not None:
            self._film.append(picture)

    def _end(self) -> None:
        self.over, self.outcome.seconds = True, time.perf_counter() - self._started
        if self._film is not None:
            film, self._film = self._film, None
            film.close()
