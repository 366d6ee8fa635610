"""Where a run's time goes, over all the processes that worked on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# What is none of the others is work on steps. "lost" is work of a process that ended without saving it.
BUCKETS = ("start", "compile", "data", "checkpoint", "validation", "lost", "steps")


class Clock:
    """Seconds by bucket. Buckets exclude each other: time in an inner block does not count for the outer one."""

    def __init__(self, restored: Mapping[str, float], last_known: Mapping[str, float], began: float):
        """Continue from what `seconds` said at the checkpoint that was restored; this process began at `began`.

        `last_known` is the latest that is known of the run; what it has more than `restored` was lost.
        """
        self._seconds = {bucket: float(restored.get(bucket, 0.0)) for bucket in BUCKETS}
        self._seconds["lost"] += max(0.0, sum(last_known.values()) - sum(restored.values()))
        self._mark = began
        self._bucket = "start"

    @contextmanager
    def during(self, bucket: str) -> Iterator[None]:
        """Count the block's time for `bucket`."""
        before = self._bucket
        self.switch(bucket)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, bucket: str) -> None:
        """Count what follows for `bucket`."""
        now = time.perf_counter()
        self._seconds[self._bucket] += now - self._mark
        self._mark, self._bucket = now, bucket

    def seconds(self) -> dict[str, float]:
        """Seconds of every bucket so far."""
        self.switch(self._bucket)
        return dict(self._seconds)

    def row(self) -> dict[str, Any]:
        """Entries of a log row: `seconds/BUCKET` of the whole run, and `goodput`, the share of work on steps."""
        seconds = self.seconds()
        goodput = seconds["steps"] / max(sum(seconds.values()), 1e-9)
        return {"goodput": goodput} | {f"seconds/{bucket}": value for bucket, value in seconds.items()}
