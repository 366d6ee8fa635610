"""The policy server's sockets: WebSocket (see `protocol`), HTTP (see `http`), who may connect, beginning and end."""

import asyncio
import base64
import hmac
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from mem0_jax.errors import UserError
from mem0_jax.serve import http
from mem0_jax.serve.client import WireError, pack, unpack
from mem0_jax.serve.door import Connection, Door, Socket, told_to_stop
from mem0_jax.serve.protocol import RequestError
from mem0_jax.serve.service import Service

log = logging.getLogger(__name__)
OPEN_PATHS = ("/", "/healthz")  # "/" gives the page to anybody; what it shows needs the token


@dataclass(frozen=True)
class Settings:
    """Where a server listens and how patient it is.

    Attributes:
        host, port: address; port 0 takes a free one.
        token: what clients must know, if anything.
        send_seconds: a client that does not read an answer for so long is cut off.
        grace_seconds: what runs may take so long to finish when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    send_seconds: float = 10.0
    grace_seconds: float = 10.0

    @property
    def local(self) -> bool:
        """Only this machine can connect."""
        return _is_local(self.host)


class Server:
    """A service on the network: `start`, then `stop`.

    Attributes:
        port: the one it listens on, once started.
    """

    def __init__(self, service: Service, settings: Settings | None = None):
        self.service, self.settings = service, settings or Settings()
        self.port = self.settings.port
        self._connections: set[Socket] = set()
        self._most = 2 * service.sessions.slots + 16
        service.metrics.gauge("connections", "WebSocket connections", lambda: len(self._connections))
        self._door = Door(http.refuse, service.metrics.registry, "http:// or ws://")
        app = web.Application(middlewares=[self._door.middleware, self._guard], client_max_size=service.limits.message)
        app.router.add_get("/", self._root)
        http.add_routes(app, service)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens at once, and is healthy when the service is warm. Raises UserError: the address cannot be had."""
        await self._runner.setup()
        try:
            self._listening = await self._door.open(self._runner, host=self.settings.host, port=self.settings.port)
        except OSError as error:
            await self._runner.cleanup()
            raise UserError(f"cannot listen on {self.settings.host}:{self.settings.port}: {error.strerror}") from None
        self.port = self._listening.sockets[0].getsockname()[1]
        await self.service.start()

    async def stop(self) -> None:
        """Refuses what is new, finishes what runs, says goodbye."""
        await self.service.close(self.settings.grace_seconds)
        goodbye = {"code": WSCloseCode.GOING_AWAY, "message": b"the server is stopping"}
        await asyncio.gather(*(ws.close(**goodbye) for ws in self._connections), return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()
        self._door.garbage.close()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Turns away other sites' pages, names that lead here by DNS rebinding, and those without the token."""
        if self.settings.local and not _is_local(_name_of(request.host)):
            named = f"{request.host[:100]!r} is no name of this machine, which alone is served"
            return http.refuse("forbidden", named, 403)
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return http.refuse("forbidden", "requests from other sites' pages are refused", 403)
        upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
        if self.settings.token and (upgrade or request.path not in OPEN_PATHS):
            kind, _, given = request.headers.get("Authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self.settings.token.encode())
            if kind.lower() not in ("api-key", "bearer") or not same:
                return http.refuse("unauthorized", "the header 'Authorization: Api-Key TOKEN' is missing or wrong", 401)
        return await handler(request)

    async def _root(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return http.page()
        if self.service.stopping or len(self._connections) >= self._most:
            why = "the server is stopping" if self.service.stopping else f"{self._most} connections are open already"
            return http.refuse("busy", why, 503)
        if why := _misshaken(request):
            self._door.garbage("handshake", request.remote or "")
            return http.refuse("bad_message", why, 426 if "Version" in why else 400)
        most = self.service.limits.message + 1  # aiohttp takes less than it is told
        ws = Socket(max_msg_size=most, compress=False, timeout=2.0)
        self._connections.add(ws)
        try:
            await ws.prepare(request)
            _watch_for_death(request.transport)
            await self._converse(ws, request)
        except (TimeoutError, ConnectionError):
            if not ws.prepared:
                raise
            if request.transport:
                request.transport.abort()
        finally:
            self._connections.discard(ws)
            self.service.sessions.leave(ws)
        return ws

    async def _converse(self, ws: Socket, request: web.Request) -> None:
        """Metadata, then an answer a message. A task of its own reads, so that pings are answered meanwhile."""
        inbox: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        reader = asyncio.create_task(_read(ws, inbox))
        previous = None
        try:
            await self.service.ready.wait()
            await self._send(ws.send_bytes(pack(self.service.metadata())))
            while True:
                data = await asyncio.wait_for(inbox.get(), self.service.sessions.idle_seconds)
                if data is None:
                    return
                if isinstance(data, WebSocketError):
                    await self._send(ws.part(data.code, self._unreadable(data, request)))
                    if isinstance(request.protocol, Connection):
                        await request.protocol.hang_up()
                    return
                began = time.perf_counter()
                answer = await self._answer(data, ws)
                if isinstance(answer, dict):
                    timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
                    timing |= {} if previous is None else {"prev_total_ms": 1000 * previous}
                    await self._send(ws.send_bytes(pack(answer | {"server_timing": timing})))
                else:
                    await self._send(ws.send_str(answer))
                previous = time.perf_counter() - began
        except TimeoutError:
            why = f"no message for {self.service.sessions.idle_seconds:g} s"
            await self._send(ws.close(code=WSCloseCode.GOING_AWAY, message=why.encode()))
            raise
        finally:
            reader.cancel()

    def _unreadable(self, error: WebSocketError, request: web.Request) -> str:
        """What is said of a frame after which nothing can be read."""
        kind, why = "bad_message", "a frame is against the WebSocket protocol, RFC 6455: connect again"
        if error.code == WSCloseCode.MESSAGE_TOO_BIG:
            found = re.search(r"\d+", str(error))
            size = f"{found[0]} bytes" if found else "more"
            kind, why = "too_large", f"the message has {size}; at most {self.service.limits.message} bytes are taken"
        elif error.code == WSCloseCode.INVALID_TEXT:
            why = "a text is not UTF-8, and a message must be a binary frame of MessagePack"
        if kind == "bad_message":
            self._door.garbage("frame", request.remote or "")
        self.service.metrics.errors.labels(kind).inc()
        return f"{kind}: {why}"

    async def _answer(self, data: Any, ws: web.WebSocketResponse) -> dict[str, Any] | str:
        try:
            if not isinstance(data, bytes):
                raise RequestError("bad_message", "a message must be a binary frame of MessagePack")
            return await self.service.answer(unpack(data), ws)
        except WireError as error:
            self.service.metrics.errors.labels("bad_message").inc()
            return f"bad_message: {error}"
        except RequestError as error:
            return f"{error.kind}: {error}"
        except Exception:
            log.exception("a request failed")
            self.service.metrics.errors.labels("failed").inc()
            return "failed: the server failed to serve this request; its log says why. Begin with a reset"

    async def _send(self, sending: Awaitable[Any]) -> None:
        """Raises ConnectionError: the client does not read, so that not even a goodbye can be sent."""
        try:
            await asyncio.wait_for(sending, self.settings.send_seconds)
        except TimeoutError:
            raise ConnectionError("the client does not read") from None


async def _read(ws: web.WebSocketResponse, inbox: asyncio.Queue) -> None:
    """Messages, and at the end None, or the WebSocketError of a frame that cannot be read.

    A full inbox stops the reading, and so in time the client.
    """
    while True:
        message = await ws.receive()
        unreadable = message.type == WSMsgType.ERROR and isinstance(message.data, WebSocketError)
        last = message.type not in (WSMsgType.BINARY, WSMsgType.TEXT)
        await inbox.put(None if last and not unreadable else message.data)
        if last:
            return


def _watch_for_death(transport: asyncio.BaseTransport | None) -> None:
    """Lets the system find out, in about half a minute, that the other machine is gone without a word."""
    connection = transport.get_extra_info("socket") if transport else None
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _misshaken(request: web.Request) -> str:
    """What is wrong with a WebSocket's handshake, or nothing."""
    version, key = (request.headers.get(f"Sec-WebSocket-{name}", "") for name in ("Version", "Key"))
    if version != "13":
        return f"the handshake's Sec-WebSocket-Version must be 13, got {version[:20]!r}"
    if "upgrade" not in request.headers.get("Connection", "").lower():
        return "the handshake needs the header 'Connection: Upgrade'"
    try:
        right = len(base64.b64decode(key.encode("ascii", "replace"), validate=True)) == 16
    except ValueError:
        right = False
    return "" if right else "the handshake's Sec-WebSocket-Key must be 16 bytes in base64"


def _name_of(host: str) -> str:
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


async def run(service: Service, settings: Settings, started: Callable[[Server], None]) -> bool:
    """Serves until SIGTERM or SIGINT; `started` is called when it is healthy. Gives whether it ever was.

    Where it was not, threads may still compile: they cannot be cancelled, and hold up an ordinary end of the process.
    """
    server = Server(service, settings)
    starting, stopping = asyncio.create_task(server.start()), asyncio.create_task(told_to_stop())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        return False
    try:
        await starting
        started(server)
        await stopping
    finally:
        await server.stop()
    return True
