"""What the server does with a message: sessions, the turn of a pilot, the answer. Knows nothing of sockets."""

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mem0_jax import __version__
from mem0_jax.errors import UserError
from mem0_jax.inference.engine import Engine, LostMemoryError
from mem0_jax.inference.planning import Plan, Planner, PlannerError, WarmsUp
from mem0_jax.inference.session import Options, Pilot, needs
from mem0_jax.policies.bundle import Bundle
from mem0_jax.serve.batcher import Batcher
from mem0_jax.serve.client import MAX_DEPTH, MAX_ITEMS
from mem0_jax.serve.metrics import Metrics
from mem0_jax.serve.protocol import Limits, Message, RequestError, Reset, Senses, parse
from mem0_jax.serve.sessions import Session, Sessions

log = logging.getLogger(__name__)
GROWTH = 4  # of batch sizes: some padding for a start-up in half the time; all are compiled before it is healthy


class Service:
    """A bundle that answers messages of many sessions. Lives in one event loop: `start`, `answer`, `close`.

    Args:
        bundle: the policy, with statistics and tokenizer.
        options: of sessions that do not choose their own.
        planner: names the subtasks of staged sessions, in threads.
        slots: sessions at a time.
        idle_seconds: a session without a message for so long is dropped.
        queue: requests that may wait for a step.
        limits: of a message.
        rows: all steps have this size; see `Engine`.

    Raises:
        UserError: options the policy cannot have, or a bundle that cannot act.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: Options | None = None,
        planner: Planner | None = None,
        *,
        slots: int = 16,
        idle_seconds: float = 600.0,
        queue: int = 256,
        limits: Limits | None = None,
        rows: int | None = None,
    ):
        if slots < 1 or queue < 1 or not idle_seconds > 0 or (rows is not None and rows < 1):
            raise UserError(
                f"sessions, queue, idle time and rows must be positive, got {slots}, {queue}, {idle_seconds:g}, {rows}"
            )
        self.bundle, self.planner, self.limits = bundle, planner, limits or Limits()
        self.options = (options or Options()).completed(bundle, False)
        self.senses = Senses(bundle.transform.cameras, bundle.inputs.robot.state.counts)
        self.metrics, self.sessions = Metrics(), Sessions(slots, idle_seconds)
        self.ready, self.stopping = asyncio.Event(), False
        self._queue, self._rows, self._running, self._idle = queue, rows, 0, asyncio.Event()
        self._idle.set()
        self._batcher: Batcher | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.metrics.gauge("sessions", "Sessions", lambda: len(self.sessions))

    @property
    def healthy(self) -> bool:
        """Warm, and the last step went well."""
        return self.ready.is_set() and not self.stopping and not (self._batcher and self._batcher.failing)

    @property
    def state(self) -> str:
        """What it is doing, in words."""
        if self.stopping:
            return "stopping"
        return "ready" if self.healthy else "its last step failed" if self.ready.is_set() else "warming up"

    def metadata(self) -> dict[str, Any]:
        """What a client is told first."""
        options = {name: getattr(self.options, name) for name in self.options.__dataclass_fields__}
        more = {"tokens": self.bundle.inputs.max_length, "items": MAX_ITEMS, "depth": MAX_DEPTH}
        return {
            "server": f"mem0-jax {__version__}",
            "policy": self.bundle.family.name,
            "provenance": dict(self.bundle.provenance),
            "camera": self.senses.cameras[0],
            "cameras": list(self.senses.cameras),
            "state": list(self.senses.counts),
            "actions": list(self.bundle.inputs.robot.action.counts),
            "horizon": self.bundle.policy.spec.horizon,
            "flow_steps": self.bundle.flow_steps,
            "options": options,
            "planner": "server" if self.planner else "none",
            "sessions": self.sessions.slots,
            "idle_seconds": self.sessions.idle_seconds,
            "limits": vars(self.limits) | more,
        }

    async def start(self) -> None:
        """Makes the engine, compiles its steps and those of a planner in this process, and is ready."""
        engine = await asyncio.to_thread(Engine, self.bundle, self.sessions.slots, growth=GROWTH, rows=self._rows)
        self._batcher = Batcher(engine, self._queue, self.metrics)
        await self._batcher.call(engine.warm_up)
        if isinstance(self.planner, WarmsUp):
            await asyncio.to_thread(self.planner.warm_up)
        self._sweeper = asyncio.create_task(self._sweep())
        self.ready.set()

    async def close(self, seconds: float = 10.0) -> None:
        """Refuses what comes, waits so long for what runs, ends."""
        self.stopping = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            log.warning("%d requests were still running after %g s", self._running, seconds)
        if self._sweeper:
            self._sweeper.cancel()
        if self._batcher:
            await self._batcher.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(5.0, self.sessions.idle_seconds / 4))
            self.metrics.dropped.inc(self.sessions.expire())

    async def answer(self, value: Any, connection: object) -> dict[str, Any]:
        """The answer to an unpacked message; `connection` is whoever sent it. Raises RequestError."""
        began = time.perf_counter()
        kind = "unknown"
        self._running += 1
        self._idle.clear()
        try:
            if self.stopping:
                raise RequestError("stopping", "the server is stopping")
            await self.ready.wait()
            parsed = parse(value, self.senses, self.limits)
            kind = parsed.type if isinstance(parsed, Message) else "batch"
            if isinstance(parsed, Message):
                return await self._serve(parsed, connection)
            return {"batch": await self._serve_all(parsed, connection)}
        except RequestError as error:
            self.metrics.errors.labels(error.kind).inc()
            raise
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
            self.metrics.requests.labels(kind).inc()
            self.metrics.seconds.labels(kind).observe(time.perf_counter() - began)

    async def _serve_all(self, values: list[Any], connection: object) -> list[dict[str, Any]]:
        async def one(value: Any) -> dict[str, Any]:
            try:
                message = parse(value, self.senses, self.limits)
                if not isinstance(message, Message):
                    raise RequestError("bad_message", "a batch cannot hold a batch")
                return await self._serve(message, connection)
            except RequestError as error:
                self.metrics.errors.labels(error.kind).inc()
                return {"error": {"kind": error.kind, "message": str(error)}}

        return list(await asyncio.gather(*map(one, values)))

    async def _serve(self, message: Message, connection: object) -> dict[str, Any]:
        session = self.sessions.find(message.session, connection)
        # Refused and not queued: a client that does not wait would else act on answers of older frames.
        if session is not None and session.lock.locked():
            raise RequestError("busy", f"session {session.id!r} is being served: wait for the answer")
        if message.type == "close":
            if session:
                self.sessions.drop(session)
            return {"session": message.session or "", "closed": True}
        session = self._begin(message, connection, session)
        async with session.lock:
            try:
                return await self._turn(session, message)
            except (UserError, RequestError) as error:
                raise self._refused(session, error) from error
            except BaseException:
                self.sessions.drop(session)
                raise
            finally:
                session.used = time.monotonic()
                if session.connection is None and not session.named:  # it left meanwhile
                    self.sessions.drop(session)

    def _refused(self, session: Session, error: UserError | RequestError) -> RequestError:
        """What the client is told. A session whose memory is lost ends, alone: others may be in a turn, and a slot must
        not be given away before its turn is over."""
        if isinstance(error, LostMemoryError):
            error = RequestError("unknown_session", "the policy failed, this session's memory is lost: reset")
        if isinstance(error, RequestError):
            if error.kind in ("failed", "unknown_session"):
                self.sessions.drop(session)
            return error
        return RequestError("planner" if isinstance(error, PlannerError) else "bad_request", str(error))

    def _begin(self, message: Message, connection: object, session: Session | None) -> Session:
        """The session, with a new episode where the message asks for one, or is the first of its connection."""
        reset = message.reset
        if session is not None and reset is None:
            return session
        if reset is None and (message.session is not None or self.sessions.knows(connection)):
            raise RequestError(
                "unknown_session",
                f"there is no session {message.session or 'of this connection'!r}: it ended, was idle for "
                f"{self.sessions.idle_seconds:g} s, or the server is new. Its memory is gone: begin with a reset",
            )
        reset = reset or Reset(message.prompt or "")
        if not reset.task:
            what = "missing" if message.prompt is None else "empty"
            raise RequestError("bad_message", f"the first message must tell the policy what to do: prompt is {what}")
        planner = reset.planner or ("server" if self.planner else "none")
        if planner == "server" and self.planner is None:
            raise RequestError("bad_request", "this server has no planner: start it with --planner, or plan yourself")
        try:
            if planner == "none":
                self.bundle.processor.prompt(reset.task)
            pilot = Pilot(self.bundle, Options(**(vars(self.options) | dict(reset.options))), staged=planner != "none")
            pilot.reset(reset.task, reset.seed)
        except UserError as error:
            raise RequestError("bad_request", str(error)) from error
        # Only now, when nothing can be refused any more, does the old episode end.
        if session is None:
            session = self.sessions.add(message.session, connection, pilot, planner)
        else:
            pilot.slot = session.pilot.slot  # a new pilot's first request empties the memory
        session.pilot, session.planner, session.image, session.actions = pilot, planner, None, None
        session.env = message.env or session.env
        return session

    async def _turn(self, session: Session, message: Message) -> dict[str, Any]:
        began, pilot = time.perf_counter(), session.pilot
        stage, decide = pilot.stage, message.type == "infer"
        unseen = self._unseen(pilot, message)
        if decide and pilot.time < 0 and not unseen:
            raise RequestError("bad_request", "there is no frame yet: the message needs an observation")
        repeated = not pilot.plan_needed and message.subtask == pilot.instruction  # its first answer was lost
        if message.type == "plan" and not (session.planner == "client" and (pilot.plan_needed or repeated)):
            raise RequestError("bad_request", "no subtask is needed from the client now")
        for text in (message.prompt if not pilot.staged else None, message.subtask):
            self.bundle.processor.prompt(text or "")  # refused before anything has changed
        if unseen:  # resizing takes milliseconds that other sessions need not wait
            await asyncio.to_thread(_observe, pilot, unseen, message.prompt)
            session.image = unseen[-1]["images"][self.senses.cameras[0]]
        if message.type == "plan" and pilot.plan_needed:
            pilot.planned(Plan(message.subtask))
        steps = await self._advance(session, decide) if pilot.time >= 0 else 0
        answer = _status(session, stage)
        if decide and not pilot.plan_needed:
            session.actions = answer["actions"] = pilot.actions()
        seconds = time.perf_counter() - began
        if steps:
            session.seconds.append(seconds)
            self.metrics.turn_ms.add(1000 * seconds)
        return answer | {"policy_timing": {"infer_ms": 1000 * seconds, "steps": steps}}

    def _unseen(self, pilot: Pilot, message: Message) -> tuple[Any, ...]:
        """The message's frames that the pilot has not seen."""
        if message.after is None:
            return message.frames
        # After a lost answer a client sends its frames again: those that were seen must not be remembered twice.
        seen = pilot.time - message.after
        if not 0 <= seen <= len(message.frames):
            raise RequestError(
                "bad_request", f"the session is at time {pilot.time}, the frames follow {message.after}: reset"
            )
        return message.frames[seen:]

    async def _advance(self, session: Session, decide: bool) -> int:
        """As `inference.session.advance`, without blocking others; gives the number of steps."""
        mine, count = session.pilot, 0
        assert self._batcher is not None
        for plans, steps in needs(lambda: [(mine, decide)]):
            if plans and session.planner == "client":
                break  # the answer says that a plan is needed, and the client's next message brings it
            for pilot, situation in plans:
                assert self.planner is not None
                began = time.perf_counter()
                plan = await _in_thread(self.planner.next_subtask, situation)
                self.metrics.planned(time.perf_counter() - began)
                self._check_plan(plan)
                pilot.planned(plan)
            for pilot, request in steps:
                pilot.receive(await self._batcher.step(request))
                count += 1
        return count

    def _check_plan(self, plan: Plan) -> None:
        try:
            self.bundle.processor.prompt(plan.subtask)
        except UserError as error:
            raise PlannerError(f"the planner's subtask cannot be followed: {error}") from None


def _observe(pilot: Pilot, frames: tuple[Any, ...], prompt: str | None) -> None:
    for frame in frames:
        pilot.observe(frame, prompt or None)


def _status(session: Session, stage: int) -> dict[str, Any]:
    pilot = session.pilot
    answer = {
        "session": session.id,
        "time": pilot.time,
        "stage": pilot.stage,
        "instruction": pilot.instruction,
        "subtask_ended": pilot.stage > stage,
        "due": pilot.due,
        "plan_needed": pilot.plan_needed,
        "classify": pilot.options.classify,
    }
    if pilot.reply is not None:
        answer |= {name: told if np.ndim(told) else float(told) for name, told in pilot.reply.info.items()}
    return answer


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a slow function in a thread that nobody waits for at the end of the process."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)
