"""Where an aiohttp application meets the network: whatever a stranger sends gets one clear answer or none, costs one
counted line of the log at most, and keeps nobody else waiting.

aiohttp itself answers what it cannot read with its parser's words, and logs a traceback of each.
"""

import asyncio
import logging
import signal
import sys
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from prometheus_client import CollectorRegistry

from mem0_jax.serve.garbage import Garbage

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Refuse = Callable[[str, str, int], web.Response]
MAX_LINE, MAX_HEADERS = 8190, 128  # of a request's head: bytes of a line, and lines
SILENT_SECONDS = 75.0  # for the head of a request, and between two: longer than proxies keep theirs
SILENT_CONNECTIONS = 128  # that may be open without a request: the oldest is cut off for a newer one
LINGER_SECONDS, LINGER_PAUSE = 10.0, 0.5


class Door:
    """Listens for an application.

    Args:
        refuse: makes an error's answer of its kind, its sentence and its status.
        registry: where garbage is counted.
        addresses: what those of this port begin with.

    Attributes:
        garbage: counts what is no request.
        silent: connections that asked nothing yet, the oldest first.
    """

    def __init__(self, refuse: Refuse, registry: CollectorRegistry, addresses: str = "http://"):
        self.refuse, self.garbage, self.addresses = refuse, Garbage(registry), addresses
        self.silent: dict[Connection, None] = {}

    async def open(self, runner: web.AppRunner, **where: Any) -> asyncio.Server:
        """Listens for a runner that was set up; `where` is that of `create_server`. Raises OSError."""
        # Packages warn of what strangers send, in the strangers' words: of subprotocols, parts of forms, pictures.
        logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        assert runner.server is not None
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._trouble)
        runner.server.request_handler = partial(self._expecting, runner.server.request_handler)
        return await loop.create_server(partial(Connection, self, runner.server), **where)

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What no handler saw: connections that broke or were never had, for want of file descriptors."""
        accepting = isinstance(context.get("exception"), OSError) and "socket" in context
        if accepting or isinstance(context.get("exception"), ConnectionError):
            self.garbage("system", "the network")
        else:
            loop.default_exception_handler(context)

    async def _expecting(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], request: web.BaseRequest
    ) -> web.StreamResponse:
        """Refuses what aiohttp itself would, before any middleware and in the stranger's words."""
        if request.headers.get("Expect", "100-continue").lower() != "100-continue":
            if isinstance(request.protocol, Connection):
                request.protocol.asks()
            return self.refuse("bad_request", "the header 'Expect' may only say 100-continue", 417)
        return await handler(request)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """To be the application's first: no error leaves it but as an answer."""
        if isinstance(request.protocol, Connection):
            request.protocol.asks()
        most, size = request.client_max_size, request.content_length or 0
        try:
            if request.headers.get("Content-Encoding", "identity").lower() != "identity":
                return self.refuse("bad_message", "the body has a Content-Encoding: send it plain", 415)
            if size > most:
                raise web.HTTPRequestEntityTooLarge(most, size)
            return await handler(request)
        except web.HTTPException as error:
            return self.refuse(*_sentence(request, error))
        except web.RequestPayloadError:
            self.garbage("body", request.remote or "")
            return self.refuse("bad_message", "the request's body is damaged: its chunks are none of HTTP's", 400)
        except ConnectionError:
            self.garbage("half", request.remote or "")
            raise
        except Exception:
            log.exception("a request failed")
            return self.refuse("failed", "the server failed to serve this request; its log says why", 500)


def _sentence(request: web.Request, error: web.HTTPException) -> tuple[str, str, int]:
    """Kind, sentence and status for an error of aiohttp's."""
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        most = request.client_max_size
        found = request.content_length if (request.content_length or 0) > most else f"more than {most}"
        return "too_large", f"the request has {found} bytes; at most {most} are taken", error.status
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return "bad_request", f"{request.path[:100]!r} takes {allowed}, not {request.method}", error.status
    if isinstance(error, web.HTTPNotFound):
        return "bad_request", f"there is no {request.path[:100]!r} here", error.status
    return "bad_request", error.reason, error.status


class Connection(web.RequestHandler):
    """One connection, as aiohttp serves it, but for what is no request."""

    def __init__(self, door: Door, server: web.Server):
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # pyright: ignore[reportArgumentType]
            keepalive_timeout=SILENT_SECONDS,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
        )
        self.door, self.peer = door, ""
        self._beginning, self._heard_at, self._asked = b"", 0.0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) else "this machine"
        silent = self.door.silent
        silent[self] = None
        if len(silent) > SILENT_CONNECTIONS:
            oldest = next(iter(silent))
            oldest.asks()
            self.door.garbage("crowd", oldest.peer)
            if oldest.transport is not None:
                oldest.transport.abort()

    def asks(self) -> None:
        """A request has come."""
        self._asked = True
        self.door.silent.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self._beginning = self._beginning or data[:1]
        self._heard_at = asyncio.get_running_loop().time()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._asked:
            self.door.garbage("half" if self._beginning else "silent", self.peer)
        self.asks()
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to what cannot be read; aiohttp's own is its parser's."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionError("there is nobody to be answered")
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        self.asks()
        kind = "tls" if self._beginning == b"\x16" else "http"
        self.door.garbage(kind, self.peer)
        if kind == "tls":
            why = f"this port speaks plain HTTP, no TLS: use {self.door.addresses}"
        elif isinstance(exc, LineTooLong):
            why = f"a line of the request's head is longer than {MAX_LINE} bytes, the most that are taken"
        else:
            why = f"this is no HTTP/1.1 request that can be read, with at most {MAX_HEADERS} lines in its head"
        response = self.door.refuse("bad_message", why, 400)
        response.force_close()
        return response

    async def hang_up(self) -> None:
        """Reads on and forgets it, until the peer is still, gone or was given time enough; then closes.

        A connection closed with data unread is reset, and what was said before may never arrive.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + LINGER_SECONDS
        while self.transport is not None and loop.time() < min(end, self._heard_at + LINGER_PAUSE):
            await asyncio.sleep(LINGER_PAUSE / 10)
        if self.transport is not None:
            self.transport.close()


class Socket(web.WebSocketResponse):
    """A WebSocket that leaves it to its user to say goodbye where a frame cannot be read; aiohttp gives a bare code."""

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        if code in (WSCloseCode.PROTOCOL_ERROR, WSCloseCode.INVALID_TEXT, WSCloseCode.MESSAGE_TOO_BIG):
            return False
        return await super().close(code=code, message=message, drain=drain)

    async def part(self, code: int, text: str) -> None:
        """Says why, as a message and as the reason of the close."""
        await self.send_str(text)
        await self.send_frame(code.to_bytes(2, "big") + text.encode()[:120], WSMsgType.CLOSE)


async def told_to_stop() -> None:
    """Waits for SIGTERM or SIGINT; another one has its ordinary effect."""
    told, loop, numbers = asyncio.Event(), asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, told.set)
    await told.wait()
    for number in numbers:
        loop.remove_signal_handler(number)
