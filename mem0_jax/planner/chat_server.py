"""OpenAI's chat API over a `Generator`: POST /v1/chat/completions, GET /v1/models and /v1/models/NAME, /healthz, and
/metrics for Prometheus.

Requests that wait are answered as one batch. Temperature is 0 unless a request says otherwise: a robot's planner shall
say the same thing twice. No address outside the request is ever opened.
Source: OpenAI's API reference; paths without /v1 are served too, as the reference's client asks for them.
"""

import asyncio
import hmac
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from mem0_jax.backbones.chat import Answer, ContextError, Encoded, Generator, Settings
from mem0_jax.errors import UserError
from mem0_jax.planner.chat import ChatError, ChatLimits, ChatRequest, no_model, read_request
from mem0_jax.serve.door import Door, Handler, told_to_stop

Event = str | Answer | ChatError  # a piece of text, and at last the answer or what went wrong
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerLimits:
    """Of the server.

    Attributes:
        batch: requests answered together.
        queue: requests that may wait besides, or be on their way in; more are told to come back.
        body_bytes: of a request.
        seconds: from a request's arrival to the end of its answer; a longer answer is cut off and refused.
        chat: of what a request holds.
    """

    batch: int = 8
    queue: int = 64
    body_bytes: int = 64 * 2**20
    seconds: float = 600.0
    chat: ChatLimits = field(default_factory=ChatLimits)


class _Job:
    """A request on its way: `events` brings what happens to it to the handler, pieces of text if it `streams`."""

    def __init__(self, encoded: Encoded, settings: Settings, deadline: float, streams: bool):
        self.encoded, self.settings, self.deadline, self.streams = encoded, settings, deadline, streams
        self.begun = False  # pieces of the answer were sent
        self.abandoned = threading.Event()
        self.events: asyncio.Queue[Event] = asyncio.Queue()


class ChatServer:
    """The application and the task that feeds the generator.

    Args:
        generator: answers.
        model: name it is served under.
        api_key: required of clients where it is given.
        limits: see there.
    """

    def __init__(
        self, generator: Generator, model: str, api_key: str | None = None, limits: ServerLimits | None = None
    ):
        self._generator, self._model, self._key = generator, model, api_key
        self._limits, self._created = limits or ServerLimits(), int(time.time())
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()
        self._taken = 0  # requests from their first byte to the last of their answers
        tokens = generator.tokenizer.get_added_tokens_decoder().values()
        self._registry = CollectorRegistry()
        self.door = Door(_refuse, self._registry)
        self._controls = [token.content for token in tokens if token.special]

    def application(self) -> web.Application:
        """To be run by aiohttp; it stops when the requests it has taken are answered."""
        app = web.Application(
            client_max_size=self._limits.body_bytes, middlewares=[self.door.middleware, self._guarded]
        )
        for prefix in ("/v1", ""):
            app.router.add_post(f"{prefix}/chat/completions", self._chat)
            app.router.add_get(f"{prefix}/models", self._models)
            app.router.add_get(f"{prefix}/models/{{model:.+}}", self._model_named)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.cleanup_ctx.append(self._worker)
        return app

    async def run(self, listening: socket.socket) -> None:
        """Serves on a bound socket until SIGTERM or SIGINT, and then finishes what runs."""
        patience = {"shutdown_timeout": self._limits.seconds, "handler_cancellation": True}
        runner = web.AppRunner(self.application(), **patience)
        await runner.setup()
        server = await self.door.open(runner, sock=listening)
        await told_to_stop()
        server.close()
        await runner.cleanup()
        self.door.garbage.close()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Asks for the key."""
        try:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if request.path != "/healthz" and not self._knows_key(given):
                raise ChatError("wrong or missing API key", None, "invalid_api_key", 401)
            return await handler(request)
        except ChatError as error:
            return web.json_response(error.body, status=error.status)

    def _knows_key(self, given: str) -> bool:
        given_bytes = given.encode("utf-8", "surrogateescape")  # a header may hold any bytes
        return not self._key or hmac.compare_digest(given_bytes, self._key.encode())

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="OK\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._description]})

    async def _model_named(self, request: web.Request) -> web.Response:
        if (name := request.match_info["model"]) != self._model:
            raise no_model(name, self._model)
        return web.json_response(self._description)

    @property
    def _description(self) -> dict[str, Any]:
        model = {"id": self._model, "object": "model", "created": self._created, "owned_by": "mem0_jax"}
        return model | {"max_model_len": self._generator.context}

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":  # so that no page of another site can post here
            raise ChatError("expected Content-Type: application/json", None, None, 415)
        if self._taken >= self._limits.queue + self._limits.batch:
            message = f"{self._limits.queue} requests are waiting: try again later"
            raise ChatError(message, None, "queue_full", 429, "rate_limit_error")
        self._taken += 1
        try:
            return await self._taken_in(request, time.monotonic() + self._limits.seconds)
        finally:
            self._taken -= 1

    async def _taken_in(self, request: web.Request, deadline: float) -> web.StreamResponse:
        try:
            body = await asyncio.wait_for(request.read(), self._limits.seconds)
        except TimeoutError:
            seconds = f"{self._limits.seconds:g} s"
            raise ChatError(f"the request did not arrive within {seconds}", None, None, 408) from None
        asked, job = await asyncio.to_thread(self._read, body, deadline)
        self._waiting.put_nowait(job)
        try:
            if asked.stream:
                return await self._stream(request, asked, job)
            answer = await self._outcome(job)
            return web.json_response(self._described("chat.completion", [_choice(answer)], usage=_usage(answer)))
        finally:
            job.abandoned.set()

    def _read(self, body: bytes, deadline: float) -> tuple[ChatRequest, _Job]:
        asked = read_request(_json(body), self._model, self._controls, self._limits.chat)
        try:
            encoded = self._generator.encode(asked.prompt, asked.settings)
        except ContextError as error:
            raise ChatError(str(error), "messages", "context_length_exceeded") from None
        except UserError as error:
            raise ChatError(str(error), "messages") from None
        return asked, _Job(encoded, asked.settings, deadline, asked.stream)

    async def _outcome(self, job: _Job) -> Answer:
        event = await job.events.get()
        if isinstance(event, ChatError):
            raise event
        assert isinstance(event, Answer)
        return event

    async def _stream(self, request: web.Request, asked: ChatRequest, job: _Job) -> web.StreamResponse:
        """Server-sent events: pieces of the answer as they come."""
        event = await job.events.get()
        if isinstance(event, ChatError):
            raise event
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        name = _name()

        async def send(value: dict[str, Any] | str) -> None:
            text = value if isinstance(value, str) else json.dumps(value)
            # A reader that never reads would hold its place for ever.
            await asyncio.wait_for(response.write(f"data: {text}\n\n".encode()), self._limits.seconds)

        async def piece(delta: dict[str, str], reason: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            await send(self._described("chat.completion.chunk", [choice], name))

        await piece({"role": "assistant", "content": ""})
        while isinstance(event, str):
            await piece({"content": event})
            event = await job.events.get()
        if isinstance(event, ChatError):
            await send(event.body)
        else:
            await piece({}, _reason(event))
            if asked.stream_usage:
                await send(self._described("chat.completion.chunk", [], name, usage=_usage(event)))
        await send("[DONE]")
        await response.write_eof()
        return response

    def _described(self, kind: str, choices: list[Any], name: str | None = None, **more: Any) -> dict[str, Any]:
        head = {"id": name or _name(), "object": kind, "created": int(time.time()), "model": self._model}
        return head | {"choices": choices} | more

    async def _worker(self, _: web.Application) -> AsyncIterator[None]:
        """Runs while the application does."""
        task = asyncio.create_task(self._work())
        yield
        task.cancel()

    async def _work(self) -> None:
        while True:
            jobs = [await self._waiting.get()]
            while len(jobs) < self._limits.batch and not self._waiting.empty():
                jobs.append(self._waiting.get_nowait())
            for job in jobs:
                if time.monotonic() > job.deadline:
                    job.events.put_nowait(_late(self._limits.seconds))
            jobs = [job for job in jobs if not job.abandoned.is_set() and time.monotonic() <= job.deadline]
            if jobs:
                await self._answer(jobs)

    async def _answer(self, jobs: Sequence[_Job]) -> None:
        loop = asyncio.get_running_loop()

        def tell(number: int, piece: str) -> bool:
            job = jobs[number]
            if job.streams:
                job.begun = True
                loop.call_soon_threadsafe(job.events.put_nowait, piece)
            return not job.abandoned.is_set() and time.monotonic() <= job.deadline

        try:
            generate = self._generator.generate
            encoded, settings = [job.encoded for job in jobs], [job.settings for job in jobs]
            answers = await asyncio.to_thread(generate, encoded, settings, tell)
        except Exception:
            _log.exception("a batch of %d failed", len(jobs))
            # One may need more memory than there is: the others can do without it, but nothing is sent twice.
            again = [job for job in jobs if len(jobs) > 1 and not job.begun]
            for job in jobs:
                if job not in again:
                    job.events.put_nowait(ChatError("generation failed", None, None, 500, "server_error"))
            for job in again:
                await self._answer([job])
            return
        for job, answer in zip(jobs, answers):
            late = time.monotonic() > job.deadline
            job.events.put_nowait(_late(self._limits.seconds) if late else answer)


def _refuse(kind: str, message: str, status: int) -> web.Response:
    """An error that is none of the API's own, in its form."""
    failure = ChatError(message, None, None, status, "server_error" if kind == "failed" else "invalid_request_error")
    return web.json_response(failure.body, status=status)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
    except RecursionError:
        where = "it is nested too deeply"
    except ValueError:  # a text, or a number of thousands of digits
        where = "it is not UTF-8, or holds a number that is too long"
    raise ChatError(f"the request is not JSON: {where}")


def _name() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _reason(answer: Answer) -> str:
    return "stop" if answer.finished else "length"


def _choice(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    return {"index": 0, "message": message, "finish_reason": _reason(answer), "logprobs": None}


def _usage(answer: Answer) -> dict[str, int]:
    said = len(answer.tokens)
    total = answer.prompt_tokens + said
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": said, "total_tokens": total}


def _late(seconds: float) -> ChatError:
    return ChatError(f"not answered within {seconds:g} s", None, "timeout", 504, "server_error")
