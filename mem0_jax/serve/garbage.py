"""What comes in over the network and is no request: counted, and told in few lines of the log."""

import asyncio
import logging
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from mem0_jax.serve.metrics import NAMESPACE

log = logging.getLogger(__name__)
KINDS = {
    "silent": "a connection that asked nothing",
    "half": "a connection that ended before its request did",
    "tls": "a TLS hello on a port that speaks plain HTTP",
    "http": "bytes that are no HTTP request",
    "body": "a request whose body is damaged",
    "handshake": "a WebSocket handshake that is wrong",
    "frame": "a WebSocket frame that cannot be read",
    "crowd": "one connection too many that asks nothing",
    "system": "a connection that the system could not take",
}
FIRST_PAUSE, LAST_PAUSE = 10.0, 3600.0  # seconds between two lines of the same: doubled each time
MOST_HEARD = 64  # peers and kinds that have lines of their own; one still for the last pause makes room


@dataclass
class _Heard:
    count: int = 0
    told: int = 0
    pause: float = FIRST_PAUSE
    pausing: bool = False
    last: float = 0.0


class Garbage:
    """Call it with a kind of `KINDS` and the peer's address. To be used in an event loop."""

    def __init__(self, registry: CollectorRegistry):
        text = "What came in and was no request, by kind"
        self._counter = Counter("garbage", text, ["kind"], namespace=NAMESPACE, registry=registry)
        self._heard: dict[tuple[str, str], _Heard] = {}

    def __call__(self, kind: str, peer: str) -> None:
        self._counter.labels(kind).inc()
        now, key = asyncio.get_running_loop().time(), (kind, peer)
        if key not in self._heard and len(self._heard) >= MOST_HEARD and not self._made_room(now):
            key = (kind, "many others")
        heard = self._heard.setdefault(key, _Heard())
        heard.count, heard.last = heard.count + 1, now
        if not heard.pausing:
            self._tell(key, heard)

    def _made_room(self, now: float) -> bool:
        """Forgets who was still the longest, if that was long."""
        key, heard = min(self._heard.items(), key=lambda entry: entry[1].last)
        if still := not heard.pausing and now - heard.last > LAST_PAUSE:
            del self._heard[key]
        return still

    def _tell(self, key: tuple[str, str], heard: _Heard) -> None:
        """A line, and none during a pause that grows with each: a slow drip is told as seldom as a flood."""
        self._say(*key, heard)
        heard.pausing = True
        asyncio.get_running_loop().call_later(heard.pause, self._go_on, key, heard)
        heard.pause = min(2 * heard.pause, LAST_PAUSE)

    def _go_on(self, key: tuple[str, str], heard: _Heard) -> None:
        heard.pausing = False
        if heard.told < heard.count:
            self._tell(key, heard)

    def _say(self, kind: str, peer: str, heard: _Heard) -> None:
        log.warning("%s from %s, %d so far", KINDS[kind], peer, heard.count)
        heard.told = heard.count

    def close(self) -> None:
        """Tells what was not told yet."""
        for key, heard in self._heard.items():
            if heard.told < heard.count:
                self._say(*key, heard)
