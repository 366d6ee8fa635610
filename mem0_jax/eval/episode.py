"""One episode in a built-in environment: what happened in it, and its film.

Axes: W memory window.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.envs import Tabletop, make
from mem0_jax.eval.film import Film
from mem0_jax.inference.planning import Plan, Situation


class Oracle:
    """A faultless planner: names the subtasks of an environment in their order."""

    def __init__(self, env: Tabletop):
        self._env = env

    def next_subtask(self, situation: Situation) -> Plan:
        """The first subtask that is not finished; the last one, where all are."""
        return Plan(self.after(len(situation.finished)))

    def after(self, finished: int) -> str:
        """Name of the subtask after so many."""
        return self._env.subtasks[min(finished, len(self._env.subtasks) - 1)]


@dataclass
class Recording:
    """One entry a step: `frames` uint8 [240, 320, 3], the memory's `attention` [W] by rank (0 newest), and `subtasks`:
    number of the one that the environment is in."""

    frames: list[np.ndarray] = field(default_factory=list)
    attention: list[np.ndarray] = field(default_factory=list)
    subtasks: list[int] = field(default_factory=list)


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
        recording: where it was asked for.
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
    recording: Recording | None = None


class Episode:
    """An episode being played; nothing it does raises: a failing environment ends it with an error.

    Args:
        task: of `mem0_jax.envs`.
        number, seed: see `Outcome`.
        film: mp4 file to write, of every frame the policy sees; None: none.
        recorded: its outcome has a recording; see `record`.
    """

    def __init__(self, task: str, number: int, seed: int, film: Path | None = None, recorded: bool = False):
        self.outcome = Outcome(number, seed, recording=Recording() if recorded else None)
        self.over, self._started = False, time.perf_counter()
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

    def record(self, attention: np.ndarray) -> None:
        """Keeps the present frame, and what the memory attended to in it, float [W]."""
        recording = self.outcome.recording
        assert recording is not None
        recording.frames.append(self.observation["observation"]["head_camera"]["rgb"])
        recording.attention.append(attention)
        recording.subtasks.append(self.env.subtask)

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
