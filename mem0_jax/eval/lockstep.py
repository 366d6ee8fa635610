"""Episodes in this process, side by side: their pilots share one engine.

An episode's result depends on its seed and on nothing that plays beside it. Sums of another batch size round otherwise,
and a closed loop amplifies that, so all batches of the engine have the same number of rows.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium

from mem0_jax.envs import Tabletop, make
from mem0_jax.errors import UserError
from mem0_jax.eval.episode import Episode, Oracle, Outcome
from mem0_jax.inference.engine import Engine
from mem0_jax.inference.planning import Planner, PlannerError
from mem0_jax.inference.session import Options, Pilot, Plans, needs, step
from mem0_jax.policies.bundle import Bundle

ROWS = 16  # enough to keep a processor busy, few enough to wait for
Films = Callable[[int], Path | None]
Planners = Callable[[Tabletop], Planner]  # the planner of an episode, which some need its environment for


def play(
    bundle: Bundle,
    task: str,
    seeds: Sequence[int],
    options: Options,
    *,
    planner: Planners | None = Oracle,
    parallel: int = ROWS,
    rows: int = ROWS,
    films: Films = lambda number: None,
    record: int = 0,
) -> Generator[Outcome]:
    """Plays one episode a seed and gives the outcomes as they come.

    Args:
        bundle: the policy.
        task: of `mem0_jax.envs`.
        seeds: of the environments; they seed the sampled chunks, too.
        options: how the policy acts.
        planner: names the subtasks of staged tasks; None: the policy is told the whole task there too.
        parallel: episodes side by side.
        rows: of every batch of the engine, see above.
        films: number of an episode -> mp4 file to write, or None.
        record: the first so many episodes are recorded; they judge every frame, see `Options.classify`.

    Raises:
        UserError: the policy was trained on a camera that the environment has not.
    """
    check_cameras(task, bundle.transform.cameras)
    table = _Table(bundle, options, planner if make(task, render=False).staged else None, parallel, rows)
    waiting = deque(enumerate(seeds))
    try:
        while waiting or table.playing:
            while waiting and table.free and table.at_decision:
                number, seed = waiting.popleft()
                table.seat(Episode(task, number, seed, films(number), number < record))
            yield from table.turn()
    finally:
        table.close()


def check_cameras(task: str, cameras: Sequence[str]) -> None:
    """Raises UserError: the environments of a task do not have a camera that a policy was trained on."""
    view = make(task, render=False).observation_space["observation"]  # pyright: ignore[reportIndexIssue]
    assert isinstance(view, gymnasium.spaces.Dict)
    for camera in cameras:
        if camera not in view.spaces:
            has = ", ".join(view.spaces)
            raise UserError(f"the policy was trained on the camera {camera!r}; {task} has {has} alone")


class _Table:
    """Episodes and their pilots; all take one action a turn."""

    def __init__(self, bundle: Bundle, options: Options, planner: Planners | None, parallel: int, rows: int):
        self._options = options.completed(bundle, planner is not None)
        self._engine = Engine(bundle, parallel, rows=rows)
        self._pilots: dict[int, Pilot] = {}  # by slot, as are
        self._planners: dict[int, Planner] = {}
        self._planner, self._parallel, self._turns = planner, parallel, 0
        self._threads = ThreadPoolExecutor(parallel, "planner")
        self.playing: dict[int, Episode] = {}  # by slot

    @property
    def free(self) -> bool:
        """There is a slot."""
        return len(self.playing) < self._parallel

    @property
    def at_decision(self) -> bool:
        """Episodes that begin now decide together with those that are under way, which makes fewer steps."""
        assert self._options.n_action_steps is not None
        return self._turns % self._options.n_action_steps == 0

    def seat(self, episode: Episode) -> None:
        """Begins an episode."""
        slot = next(slot for slot in range(self._parallel) if slot not in self.playing)
        self.playing[slot] = episode
        if episode.over:
            return
        recorded = episode.outcome.recording is not None
        options = dataclasses.replace(self._options, classify=self._options.classify or recorded)
        pilot = Pilot(self._engine.bundle, options, slot=slot, staged=self._planner is not None)
        pilot.reset(episode.instruction, episode.outcome.seed)
        self._pilots[slot] = pilot
        if self._planner is not None:
            self._planners[slot] = self._planner(episode.env)

    def turn(self) -> list[Outcome]:
        """One action of every episode; gives the outcomes of those that are over, which leave."""
        for slot, episode in self._running():
            try:
                self._pilots[slot].observe(episode.observation)
            except Exception as error:  # an environment that shows nonsense
                episode.fail(f"{type(error).__name__}: {error}")
        self._think()
        for slot, episode in self._running():
            pilot = self._pilots[slot]
            if episode.outcome.recording is not None:
                assert pilot.reply is not None
                episode.record(pilot.reply.info["attention"])
            episode.step(pilot.actions()[0])
            episode.outcome.stages = pilot.stage
        self._turns += 1
        over = [(slot, episode) for slot, episode in self.playing.items() if episode.over]
        for slot, _ in over:
            del self.playing[slot]
        return [episode.outcome for _, episode in over]

    def _running(self) -> list[tuple[int, Episode]]:
        return [(slot, episode) for slot, episode in self.playing.items() if not episode.over]

    def _think(self) -> None:
        """Plans, and steps of the engine, until every episode has an action."""
        for plans, steps in needs(
            lambda: [(self._pilots[slot], self._pilots[slot].due) for slot, _ in self._running()]
        ):
            self._plan(plans)
            step(self._engine, steps)

    def _plan(self, plans: Plans) -> None:
        """Asks for the subtasks that are due, all at once."""
        answers = [
            self._threads.submit(self._planners[pilot.slot].next_subtask, situation) for pilot, situation in plans
        ]
        for (pilot, _), answer in zip(plans, answers):
            try:
                pilot.planned(answer.result())
            except PlannerError as error:
                self.playing[pilot.slot].fail(f"planner: {error}")

    def close(self) -> None:
        """Lets go of everything."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for episode in self.playing.values():
            episode.abandon()
