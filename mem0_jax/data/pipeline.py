"""Batches of all lanes, prefetched by threads, with a position that fits in a line of JSON.

Axes: L lanes of this host. A batch is the elements of a `Source` with a leading L: row l is lane `first_lane + l`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import grain
import numpy as np

STATE_VERSION = 1


class Source(Protocol):
    """What batches are made of, such as a `LaneSource`: element k is lane k % `num_local_lanes` of batch
    k // `num_local_lanes`, a dict of arrays.
    """

    num_local_lanes: int

    @property
    def damaged(self) -> Collection[Any]:
        """The damaged episodes met so far."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What the elements depend on, in JSON values."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class LaneLoader(Iterator[dict[str, np.ndarray]]):
    """Endless iterator over batches; batch s holds window s of every local lane.

    `get_state()` names the next batch by its step number, so the stream resumes exactly with any number of threads and
    any split of the lanes over hosts. Call `close()`, or use it as a context manager, to stop the threads.
    """

    def __init__(self, source: Source, *, threads: int | None, prefetch: int, start_step: int):
        threads = (os.cpu_count() or 1) if threads is None else threads
        if threads < 0 or prefetch < 0 or start_step < 0:
            raise ValueError(f"threads ({threads}), prefetch ({prefetch}) and start_step ({start_step}) must be >= 0")
        lanes = source.num_local_lanes
        # More threads than lanes would only queue for the lanes' decoders.
        self._threads = min(threads, lanes) if prefetch else 0
        self._source, self._prefetch = source, prefetch
        self._open(start_step)

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def __enter__(self) -> LaneLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def damaged(self) -> int:
        """Damaged episodes met so far by this host, prefetched batches included; `source.damaged` says which."""
        return len(self._source.damaged)

    def get_state(self) -> dict[str, Any]:
        """Return the position as a small JSON-able dict: the next step, and what it depends on."""
        return {"version": STATE_VERSION, "step": self._step, "source": self._source.fingerprint()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue with the batch that followed when `state` was taken.

        Raises:
            ValueError: the state was taken from another stream (other lanes, seed, dataset, ...).
        """
        if state.get("version") != STATE_VERSION or not isinstance(state.get("step"), int) or state["step"] < 0:
            raise ValueError(f"not a state of this loader: {state}")
        saved, own = state.get("source", {}), self._source.fingerprint()
        differing = [f"{key} was {saved.get(key)!r}, now {own[key]!r}" for key in own if saved.get(key) != own[key]]
        if differing:
            raise ValueError("the saved stream is another one: " + "; ".join(differing))
        self.close()
        self._open(state["step"])

    def close(self) -> None:
        """Stop the prefetching threads."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _open(self, step: int) -> None:
        lanes = self._source.num_local_lanes
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch * lanes)
        elements = grain.MapDataset.source(self._source)[step * lanes :]
        self._iterator = iter(elements.to_iter_dataset(options).batch(lanes))
        self._step = step


def make_loader(source: Source, *, threads: int | None = None, prefetch: int = 2, start_step: int = 0) -> LaneLoader:
    """Return the batches of `source` from `start_step` on.

    Args:
        source: the lanes.
        threads: prefetching threads, default one a processor; 0 reads in the caller's thread.
        prefetch: batches held ready; 0 reads in the caller's thread.
        start_step: number of the first batch.
    """
    return LaneLoader(source, threads=threads, prefetch=prefetch, start_step=start_step)
