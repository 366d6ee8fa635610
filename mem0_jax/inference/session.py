"""What one robot's session does between observations and actions.

`Pilot` holds the state of a session and does no computing and no waiting: it says what it needs (a plan, a step of the
engine) and is told the answers, so that many pilots share one engine. `Session` is a pilot with an engine of its own.

Axis letters: N pending frames, K actions to execute, E action width of the environment, C action chunk length, D width
of the robot's action, A of the policy's.
Source of the stage rule and of the averaging: RMBench `policy/Mem-0/deploy_policy.py`, `memorymatters_agent.py`
(behaviour).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mem0_jax.errors import UserError
from mem0_jax.inference.engine import Engine, Reply, Request
from mem0_jax.inference.planning import Finished, Plan, Planner, Situation
from mem0_jax.policies.bundle import Bundle
from mem0_jax.policies.inputs import Frame


class _Frame(NamedTuple):
    """A frame as the policy sees it, by camera, and as the first camera took it, which is what planners are shown."""

    images: tuple[np.ndarray, ...]
    raw: np.ndarray


@dataclass(frozen=True)
class Options:
    """How a session acts; recorded with every result.

    Attributes:
        n_action_steps: actions of a chunk that are executed before the next one is sampled; None: all.
        average: predictions of overlapping chunks for the same time are averaged.
        threshold: end-of-subtask probability that counts as positive; None: the policy's own.
        patience: positive frames after which a staged task goes on to its next subtask.
        classify: every frame is judged for the end of the subtask. Without it, frames between two chunks are only
            remembered, which is cheaper. Staged tasks always do.
        rearm: a subtask ends only after a frame of it that was not positive. Policies are trained to see the end in
            several frames; where two subtasks in a row look alike, what is left of the end of one would end the next.
    """

    n_action_steps: int | None = None
    average: bool = False
    threshold: float | None = None
    patience: int = 2
    classify: bool = False
    rearm: bool = False

    def completed(self, bundle: Bundle, staged: bool) -> "Options":
        """These options with the policy's own in place of None. Raises UserError where a value cannot be."""
        spec = bundle.policy.spec
        horizon = spec.horizon
        steps = horizon if self.n_action_steps is None else self.n_action_steps
        threshold = spec.end_threshold if self.threshold is None else self.threshold
        if not 1 <= steps <= horizon:
            raise UserError(f"n_action_steps must lie between 1 and the policy's horizon {horizon}, got {steps}")
        if threshold is None:
            if staged or self.classify:
                raise UserError("this policy sees no ends of subtasks: a planner's stages cannot be followed")
        elif not 0 < threshold < 1:
            raise UserError(f"threshold must lie between 0 and 1, got {threshold}")
        if self.patience < 1:
            raise UserError(f"patience must be at least 1, got {self.patience}")
        return dataclasses.replace(self, n_action_steps=steps, threshold=threshold, classify=self.classify or staged)


class Pilot:
    """The state of one session.

    A turn: `observe` a frame; then as long as `plan_needed`, tell `planned`, and as long as `step_needed(decide)`, pass
    `request(decide)` to an engine and its reply to `receive`; then, if `decide`, take `actions`. `needs` is that loop.

    Attributes:
        slot: memory of the engine that belongs to it.
        options: completed ones.
        staged: a planner names the subtasks.
        task, instruction: the whole task, and what the policy is told now.
        time: frames seen in this episode, less one.
        stage: subtasks finished.
        reply: the engine's last one.
    """

    def __init__(self, bundle: Bundle, options: Options, *, slot: int = 0, staged: bool = False):
        self.bundle, self.slot, self.staged = bundle, slot, staged
        self.options = options.completed(bundle, staged)
        self.reset("")

    def reset(self, task: str, seed: int = 0) -> None:
        """A new episode of `task`.

        Chunks are sampled from noise that depends on `seed`, the time and the stage alone. Raises UserError for a
        negative seed.
        """
        if seed < 0:
            raise UserError(f"seed must be a whole number, 0 or greater, got {seed}")
        self.task, self.instruction, self.seed = task, "" if self.staged else task, seed
        self.time, self.stage, self.reply = -1, 0, None
        self._pending: list[_Frame] = []
        self._seen: Frame | None = None  # the last one
        self._initial: _Frame | None = None
        self._present: _Frame | None = None
        self._finished: tuple[Finished, ...] = ()
        self._summary = ""
        self._begin_stage(0)

    def _begin_stage(self, began: int) -> None:
        self.plan_needed = self.staged
        self._fresh, self._positives, self._began = True, 0, began  # the time of its first frame
        self._armed = not self.options.rearm
        self._predictions: dict[int, list[np.ndarray]] = {}
        self._decided: int | None = None  # time of the present chunk

    def observe(self, observation: Mapping[str, Any], instruction: str | None = None) -> None:
        """Takes the next frame, in any of the spellings of `data.observation`; `instruction`, or the observation's own
        prompt, replaces what the policy is told (not in staged tasks).

        Raises:
            UserError: the observation lacks an entry or has a wrong shape or dtype; nothing has changed then.
        """
        try:
            seen = self.bundle.transform(observation)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"observation: {error.args[0] if error.args else error}") from error
        instruction = observation.get("prompt") if instruction is None else instruction
        if isinstance(instruction, str) and not self.staged:
            self.instruction = instruction
        self._present = _Frame(seen.images, np.array(seen.raw[0]) if self.staged else seen.images[0])
        self._seen = seen
        if self._initial is None:
            self._initial = self._present
        self.time += 1
        self._pending.append(self._present)
        self._forget()

    def _forget(self) -> None:
        """Drops pending frames that the memory will not hold at the next step: all but the first and the window's."""
        kept = self.bundle.policy.spec.history + 1
        if not self.options.classify and len(self._pending) > kept + self._fresh:
            del self._pending[int(self._fresh)]

    @property
    def due(self) -> bool:
        """The present chunk is used up or was abandoned: `actions` needs a decision first."""
        assert self.options.n_action_steps is not None
        return self._decided is None or self.time - self._decided >= self.options.n_action_steps

    @property
    def situation(self) -> Situation:
        """What the planner is asked. Needs a frame."""
        if self._initial is None or self._present is None:
            raise UserError("there is no frame yet: call observe before act")
        present = self._pending[0] if self._pending else self._present  # frames after it are still to be judged
        return Situation(self.task, self._initial.raw, present.raw, self._finished, self._summary)

    def planned(self, plan: Plan) -> None:
        """The planner's answer."""
        self.instruction, self._summary, self.plan_needed = plan.subtask, plan.summary, False

    def step_needed(self, decide: bool) -> bool:
        """The engine has something to do; `decide`: a new chunk is wanted of the present frame."""
        pending = bool(self._pending) and (self.options.classify or decide)
        return pending or (decide and self._decided != self.time)

    def request(self, decide: bool) -> Request:
        """What the engine is asked; see `step_needed`."""
        frames = self._pending[:1] if self.options.classify else self._pending
        decide = decide and len(frames) == len(self._pending)
        if not frames and self.time < 0:
            raise UserError("there is no frame yet: call observe before act")
        return Request(
            slot=self.slot,
            images=self._images(frames),
            instruction=self.instruction,
            fresh=self._fresh and bool(frames),
            state=self._seen.state if decide and self._seen else None,
            noise=self._noise() if decide else None,
        )

    def _images(self, frames: Sequence[_Frame]) -> tuple[np.ndarray, ...]:
        if not frames:
            return tuple(np.zeros((0, 1, 1, 3), np.uint8) for _ in self.bundle.inputs.cameras)
        return tuple(np.stack(views) for views in zip(*(frame.images for frame in frames)))

    def _noise(self) -> np.ndarray:
        return self.bundle.policy.spec.draw(np.random.default_rng([self.seed, self.time, self.stage]))

    def receive(self, reply: Reply) -> None:
        """The engine's reply to the last `request`."""
        seen = self._pending[:1] if self.options.classify else self._pending[:]
        del self._pending[: len(seen)]
        self.reply = reply
        if seen:
            self._fresh = False
            self._judge(reply.end_probability, seen[-1])
        if reply.chunk is not None and not self.plan_needed:
            self._remember(reply.chunk)

    def _judge(self, probability: float, frame: _Frame) -> None:
        if self.options.threshold is None:
            return
        time = self.time - len(self._pending)  # of this frame
        positive = probability >= self.options.threshold
        self._armed |= not positive
        self._positives += self.staged and self._armed and positive
        # The frame that opens a stage cannot end it: at least one action comes between.
        if self._positives < self.options.patience or not self.staged or time == self._began:
            return
        self._finished += (Finished(self.instruction, frame.raw),)
        self.stage += 1
        self._begin_stage(time)
        self._pending.insert(0, frame)

    def _remember(self, chunk: np.ndarray) -> None:
        old = self._predictions if self.options.average else {}
        self._predictions = {time: chunks for time, chunks in old.items() if time >= self.time}
        assert self._seen is not None
        for i, action in enumerate(self.bundle.transform.kept(chunk, self._seen.start)):
            self._predictions.setdefault(self.time + i, []).append(action)
        self._decided = self.time

    def actions(self) -> np.ndarray:
        """Environment actions float32 [K, E] from now to the end of the present chunk's executed part."""
        assert self.options.n_action_steps is not None
        if self._decided is None or self.due:
            raise UserError("the present action chunk is used up: ask for a decision first")
        times = range(self.time, self._decided + self.options.n_action_steps)
        assert self._seen is not None
        return self.bundle.transform.actions([self._predictions[time] for time in times], self._seen.count)


Plans = list[tuple[Pilot, Situation]]
Steps = list[tuple[Pilot, Request]]


def needs(pilots: Callable[[], Iterable[tuple[Pilot, bool]]]) -> Iterator[tuple[Plans, Steps]]:
    """The loop that brings pilots of one engine up to their present frames, and to new chunks of those that decide.

    Gives what they need next, until they need nothing: either the plans of all that need one, or the requests of one
    step of the engine. Each pilot is to be told its answer (`planned`, `receive`) before the loop goes on; in between,
    whoever walks it may wait as it likes: `advance` does not, `eval.lockstep` waits for threads, `serve.service`
    awaits.

    Args:
        pilots: the pilots now, and whether each decides; one that is left out needs nothing any more.
    """
    while True:
        plans = [(pilot, pilot.situation) for pilot, _ in pilots() if pilot.plan_needed]
        if plans:
            yield plans, []
            continue
        steps = [(pilot, pilot.request(decide)) for pilot, decide in pilots() if pilot.step_needed(decide)]
        if not steps:
            return
        yield [], steps


def step(engine: Engine, steps: Steps) -> None:
    """One step of an engine, if there is anything to do: its replies go to the pilots."""
    replies = engine.step([request for _, request in steps]) if steps else []
    for (pilot, _), reply in zip(steps, replies):
        pilot.receive(reply)


def advance(
    engine: Engine, pilots: Sequence[Pilot], decide: Sequence[bool], planners: Sequence[Planner | None] | None = None
) -> None:
    """Brings pilots of one engine up to their present frames, and to new chunks where `decide`.

    `planners` holds one for each pilot, None for those that need none.

    Raises:
        UserError: a staged pilot without a planner; PlannerError: the planner's.
    """
    by_pilot = dict(zip(pilots, planners or [None] * len(pilots), strict=True))
    for plans, steps in needs(lambda: zip(pilots, decide, strict=True)):
        for pilot, situation in plans:
            if (planner := by_pilot[pilot]) is None:
                raise UserError("a staged task needs a planner")
            pilot.planned(planner.next_subtask(situation))
        step(engine, steps)


class Session:
    """One robot driven by a bundle in this process.

    >>> session = Session(load_bundle("bundles/m1_mix"))
    >>> session.reset("put the block back", seed=0)
    >>> session.observe(observation)
    >>> actions = session.act()  # execute, calling observe after each, until session.due
    """

    def __init__(self, bundle: Bundle, options: Options | None = None, planner: Planner | None = None):
        self.engine, self.planner = Engine(bundle), planner
        self.pilot = Pilot(bundle, options or Options(), staged=planner is not None)

    def reset(self, task: str, seed: int = 0) -> None:
        """Begins an episode: empty memory; see `Pilot.reset`."""
        self.pilot.reset(task, seed)

    def observe(self, observation: Mapping[str, Any]) -> Pilot:
        """Takes the next frame, see `Pilot.observe`, and gives the state of the session.

        Raises:
            UserError: the observation cannot be used; nothing has changed then.
            PlannerError: the planner's, in staged tasks.
        """
        self.pilot.observe(observation)
        advance(self.engine, [self.pilot], [False], [self.planner])
        return self.pilot

    @property
    def due(self) -> bool:
        """The last actions are used up, or were abandoned with their subtask: `act` again."""
        return self.pilot.due

    def act(self) -> np.ndarray:
        """Samples an action chunk of the present frame; gives the environment actions to execute, float32 [K, E]."""
        advance(self.engine, [self.pilot], [True], [self.planner])
        return self.pilot.actions()
