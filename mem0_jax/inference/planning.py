"""The seam between staged policies and whatever names their next subtask."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from mem0_jax.errors import UserError


class PlannerError(UserError):
    """A planner that cannot be reached, or whose answer cannot be used."""


@dataclass(frozen=True)
class Finished:
    """A subtask that was finished, and the image uint8 [height, width, 3] in which it was."""

    subtask: str
    image: np.ndarray


@dataclass(frozen=True)
class Situation:
    """What a planner knows.

    Attributes:
        task: the whole task.
        initial: the episode's first image, uint8 [height, width, 3].
        finished: subtasks finished so far, oldest first.
        present: the image now, uint8 [height, width, 3]; at the start of an episode the initial one.
        summary: the planner's own running text summary, for planners that keep one.
    """

    task: str
    initial: np.ndarray
    present: np.ndarray
    finished: tuple[Finished, ...] = field(default=())
    summary: str = ""


@dataclass(frozen=True)
class Plan:
    """The next subtask, and the updated summary of planners that keep one."""

    subtask: str
    summary: str = ""


class Planner(Protocol):
    """Names the next subtask. May take seconds and may be called from several threads at once."""

    def next_subtask(self, situation: Situation) -> Plan:
        """Raises PlannerError."""
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """A planner of this process, which compiles."""

    def warm_up(self) -> None:
        """Compiles all that it can need."""
        ...
