"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("mem0_requests", "Requests by type", ["type"], registry=registry)
        self.errors = Counter("mem0_errors", "Requests not served, by kind", ["kind"], registry=registry)
        self.seconds = Histogram(
            "mem0_request_seconds", "From a request to its answer", ["type"], registry=registry, buckets=_SECONDS
        )
        self.step_seconds = Histogram("mem0_step_seconds", "Steps of the policy", registry=registry, buckets=_SECONDS)
        self.plan_seconds = Histogram("mem0_plan_seconds", "Planner calls", registry=registry, buckets=_SECONDS)
        self.batch = Histogram(
            "mem0_batch_size", "Sessions in a step", registry=registry, buckets=[2**i for i in range(10)]
        )
        self.queue = Gauge("mem0_queue", "Requests that wait for a step", registry=registry)
        self.dropped = Counter("mem0_sessions_dropped", "Sessions dropped for being idle", registry=registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number asked for when it is read."""
        Gauge(f"mem0_{name}", text, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
