"""What Prometheus reads at /metrics, and what the page of live sessions says of the whole server."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

NAMESPACE = "mem0"  # the names of all figures begin so, as those of variables do with MEM0_
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
WINDOW = 60.0  # seconds that the page tells of
MOST = 2**14  # values kept of one kind: the window of a very busy server is shorter


class Recent:
    """The values of the last `WINDOW` seconds."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=MOST)

    def add(self, value: float) -> None:
        """One more, now."""
        self._values.append((time.monotonic(), value))

    def summary(self) -> dict[str, float | None]:
        """How many there were, the last, the greatest, and percentiles: values that were measured, by nearest rank."""
        begin = time.monotonic() - WINDOW
        while self._values and self._values[0][0] < begin:
            self._values.popleft()
        found = sorted(value for _, value in self._values)
        ranks = {f"p{share}": math.ceil(share / 100 * len(found)) - 1 for share in (50, 90, 99)}
        shown = {name: found[rank] if found else None for name, rank in ranks.items()}
        now, most = (self._values[-1][1], found[-1]) if found else (None, None)
        return {"now": now, **shown, "most": most, "count": len(found)}


class Metrics:
    """Counts of one server.

    Attributes:
        turn_ms, step_ms, plan_ms: from a session's message to its answer where the policy stepped; a step of the
            policy; a planner's call.
        together, waiting: sessions in a step; requests waiting for a step, each time one more begins to.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ours: Any = {"namespace": NAMESPACE, "registry": self.registry}
        self.requests = Counter("requests", "Requests by type", ["type"], **ours)
        self.errors = Counter("errors", "Requests not served, by kind", ["kind"], **ours)
        self.seconds = Histogram("request_seconds", "From a request to its answer", ["type"], **ours, buckets=_SECONDS)
        self.step_seconds = Histogram("step_seconds", "Steps of the policy", **ours, buckets=_SECONDS)
        self.plan_seconds = Histogram("plan_seconds", "Planner calls", **ours, buckets=_SECONDS)
        self.batch = Histogram("batch_size", "Sessions in a step", **ours, buckets=[2**i for i in range(10)])
        self.queue = Gauge("queue", "Requests that wait for a step", **ours)
        self.dropped = Counter("sessions_dropped", "Sessions dropped for being idle", **ours)
        self.turn_ms, self.step_ms, self.plan_ms, self.together, self.waiting = (Recent() for _ in range(5))

    def stepped(self, seconds: float, sessions: int) -> None:
        """The policy made a step."""
        self.step_seconds.observe(seconds)
        self.batch.observe(sessions)
        self.step_ms.add(1000 * seconds)
        self.together.add(sessions)

    def planned(self, seconds: float) -> None:
        """A planner named a subtask."""
        self.plan_seconds.observe(seconds)
        self.plan_ms.add(1000 * seconds)

    def queued(self, requests: int) -> None:
        """So many requests wait, now that one more does."""
        self.queue.set(requests)
        self.waiting.add(requests)

    def recent(self) -> dict[str, Any]:
        """The last minute of the whole server."""
        rows = (
            ("Latency", "ms", self.turn_ms),
            ("Policy step", "ms", self.step_ms),
            ("Planner call", "ms", self.plan_ms),
            ("Batch", "sessions", self.together),
            ("Queue", "requests", self.waiting),
        )
        found = [{"name": name, "unit": unit, **values.summary()} for name, unit, values in rows]
        return {"seconds": WINDOW, "most": MOST, "rows": found}

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number asked for when it is read."""
        Gauge(name, text, namespace=NAMESPACE, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
