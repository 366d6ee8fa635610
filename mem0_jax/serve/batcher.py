"""One thread that owns the engine, and requests of many sessions gathered into its steps."""

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from mem0_jax.errors import UserError
from mem0_jax.inference.engine import Engine, Reply, Request
from mem0_jax.serve.metrics import Metrics
from mem0_jax.serve.protocol import RequestError

log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    request: Request
    answer: "asyncio.Future[Reply]"


class Batcher:
    """Everything that waits when the engine comes free goes into its next step.

    Args:
        engine: stepped in a thread of its own, one step at a time.
        queue: requests that may wait.
        metrics: where steps are counted.

    Attributes:
        failing: the last step failed, through no fault of its requests.
    """

    def __init__(self, engine: Engine, queue: int, metrics: Metrics):
        self._engine, self._queue, self._metrics = engine, queue, metrics
        self.failing = False
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._task = asyncio.create_task(self._run())

    async def step(self, request: Request) -> Reply:
        """The engine's reply.

        Raises:
            UserError: the request's own fault; nothing has changed.
            RequestError: of kind "busy": too many wait, nothing has changed; of kind "failed": the memory is lost.
        """
        if len(self._waiting) >= self._queue:
            raise RequestError("busy", f"{self._queue} requests wait already: try again")
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._metrics.queued(len(self._waiting))
        self._wake.set()
        return await waiting.answer

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._engine.slots))]
                self._metrics.queue.set(len(self._waiting))
                await self._serve(batch)

    async def _serve(self, batch: list[_Waiting]) -> None:
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            replies = await loop.run_in_executor(self._thread, self._engine.step, [one.request for one in batch])
        except UserError as error:  # one request's fault, found before anything changed: the others must not suffer
            if len(batch) > 1:
                for one in batch:
                    await self._serve([one])
            else:
                _fail(batch, error.__cause__ or error)  # without the slot, which is no client's concern
            return
        except Exception:
            log.exception("a step of %d requests failed", len(batch))
            self.failing = True
            _fail(batch, RequestError("failed", "the policy's step failed and this session's memory is lost: reset"))
            return
        self.failing = False
        self._metrics.stepped(time.perf_counter() - began, len(batch))
        for one, reply in zip(batch, replies):
            if not one.answer.done():
                one.answer.set_result(reply)

    async def call(self, function, *arguments):
        """Calls a function in the engine's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def close(self) -> None:
        """Waits for the step under way and ends the thread."""
        self._task.cancel()
        await asyncio.to_thread(self._thread.shutdown)


def _fail(batch: list[_Waiting], error: BaseException) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)
