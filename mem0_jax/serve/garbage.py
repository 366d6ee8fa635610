"""What comes in over the network and is no request: counted, and told in few lines of the log."""

import asyncio
import logging
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

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
MOST_HEARD = 64  # peers and kinds that have lines of their own


@dataclass
class _Heard:
    count: int = 0
    told: int = 0
    pause: float = FIRST_PAUSE


class Garbage:
    """Call it with a kind of `KINDS` and the peer's address. To be used in an event loop."""

    def __init__(self, registry: CollectorRegistry):
        text = "What came in and was no request, by kind"
        self._counter = Counter("mem0_garbage", text, ["kind"], registry=registry)
        self._heard: dict[tuple[str, str], _Heard] = {}

    def __call__(self, kind: str, peer: str) -> None:
        self._counter.labels(kind).inc()
        key = (kind, peer) if (kind, peer) in self._heard or len(self._heard) < MOST_HEARD else (kind, "many others")
        new = key not in self._heard
        self._heard.setdefault(key, _Heard()).count += 1
        if new:
            self._tell(key)

    def _tell(self, key: tuple[str, str]) -> None:
        """One line of what is new, and again after a pause, as long as there is more."""
        heard = self._heard[key]
        if heard.told == heard.count:
            del self._heard[key]
            return
        self._say(*key, heard)
        asyncio.get_running_loop().call_later(heard.pause, self._tell, key)
        heard.pause = min(2 * heard.pause, LAST_PAUSE)

    def _say(self, kind: str, peer: str, heard: _Heard) -> None:
        log.warning("%s from %s, %d so far", KINDS[kind], peer, heard.count)
        heard.told = heard.count

    def close(self) -> None:
        """Tells what was not told yet."""
        for key, heard in self._heard.items():
            if heard.told < heard.count:
                self._say(*key, heard)
