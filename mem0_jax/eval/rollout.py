"""Closed-loop evaluation of a policy bundle for programs: outcomes instead of files."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mem0_jax.errors import UserError
from mem0_jax.eval.episode import Oracle, Outcome
from mem0_jax.eval.lockstep import ROWS, Planners, play
from mem0_jax.inference.session import Options
from mem0_jax.policies.bundle import Bundle

__all__ = ["Oracle", "Outcome", "evaluate"]


def evaluate(
    bundle: Bundle,
    task: str,
    seeds: Sequence[int],
    *,
    n_action_steps: int,
    sessions: int = ROWS,
    record: int = 0,
    options: Options | None = None,
    planner: Planners | None = Oracle,
    progress: Callable[[int], Any] = lambda finished: None,
) -> list[Outcome]:
    """Plays one episode for each seed; see `lockstep.play`.

    Args:
        bundle: the policy.
        task: a task of `mem0_jax.envs`.
        seeds: environment seeds; they also seed the sampling of chunks, so a result can be repeated.
        n_action_steps: actions of a chunk that are executed before the next one is sampled.
        sessions: episodes played side by side, and rows of every batch: results repeat for the same number.
        record: the outcomes of the first so many episodes have a recording.
        options: how the policy acts otherwise.
        planner: makes the planner of an environment with a staged task; None tells the policy the whole task there too.
        progress: called with the number of episodes finished since the last call.

    Raises:
        UserError: the options do not fit the policy, or an episode could not be played to its end.
    """
    options, outcomes = dataclasses.replace(options or Options(), n_action_steps=n_action_steps), []
    how: dict[str, Any] = {"planner": planner, "parallel": sessions, "rows": sessions, "record": record}
    for outcome in play(bundle, task, seeds, options, **how):
        if outcome.error:
            raise UserError(f"{task}, episode of seed {outcome.seed}: {outcome.error}")
        outcomes.append(outcome)
        progress(1)
    return sorted(outcomes, key=lambda outcome: outcome.number)
