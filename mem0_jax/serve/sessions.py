"""The sessions of a server: who they are, which memory is theirs, when they end."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mem0_jax.inference.session import Pilot
from mem0_jax.serve.protocol import RequestError


@dataclass(eq=False)
class Session:
    """One robot's session.

    Attributes:
        id: its own, or the connection's.
        pilot: its state; its memory begins fresh, whoever had the slot before.
        connection: who may use it now; None between two connections.
        named: it outlasts its connection.
        planner: who names its subtasks: "server", "client" or "none".
        env: label of the environment.
        used: `time.monotonic()` of its last message.
        lock: held while a message is served.
        image, actions: what was seen and decided last; [H, W, 3] and [K, E].
        seconds: how long its last messages took.
    """

    id: str
    pilot: Pilot
    connection: object | None
    named: bool
    planner: str
    env: str = ""
    used: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    image: np.ndarray | None = None
    actions: np.ndarray | None = None
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=60))


class Sessions:
    """All sessions, each with a slot of the engine of its own.

    Args:
        slots: how many there may be.
        idle_seconds: after so long without a message one may be dropped.
    """

    def __init__(self, slots: int, idle_seconds: float):
        self.slots, self.idle_seconds = slots, idle_seconds
        self._free = list(range(slots))[::-1]
        self._table: dict[str, Session] = {}
        self._own: dict[object, str] = {}  # connection -> id of the session that lives and ends with it

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._table.values()))

    def find(self, name: str | None, connection: object) -> Session | None:
        """The session of that id, or the connection's own; it belongs to the connection from now on.

        Raises:
            RequestError: "in_use" by another connection.
        """
        found = self._table.get(self._own.get(connection, "") if name is None else name)
        if found is None or (found.connection is not connection and not found.named):
            return None
        if found.connection not in (None, connection):
            raise RequestError("in_use", f"session {found.id!r} is in use by another connection")
        found.connection = connection
        return found

    def knows(self, connection: object) -> bool:
        """The connection had a session of its own, which may be gone by now."""
        return connection in self._own

    def add(self, name: str | None, connection: object, pilot: Pilot, planner: str) -> Session:
        """Begins a session and gives its pilot a slot. Raises RequestError "full"."""
        if not self._free:
            raise RequestError("full", f"all {self.slots} sessions are taken: close one, or raise --sessions")
        pilot.slot = self._free.pop()
        own = uuid.uuid4().hex if name is None else name
        session = self._table[own] = Session(own, pilot, connection, name is not None, planner)
        if name is None:
            self._own[connection] = own
        return session

    def drop(self, session: Session) -> None:
        """Ends a session; its slot is free for another."""
        if self._table.get(session.id) is session:
            del self._table[session.id]
            self._free.append(session.pilot.slot)

    def leave(self, connection: object) -> None:
        """The connection is gone: its own session ends, named ones wait for their next."""
        for session in self:
            if session.connection is connection:
                session.connection = None
                if not session.named and not session.lock.locked():
                    self.drop(session)
        self._own.pop(connection, None)

    def expire(self) -> int:
        """Drops the sessions that were idle too long; how many."""
        limit = time.monotonic() - self.idle_seconds
        idle = [session for session in self if session.used < limit and not session.lock.locked()]
        for session in idle:
            self.drop(session)
        return len(idle)
