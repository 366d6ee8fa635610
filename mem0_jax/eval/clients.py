"""Episodes whose policy is a server: one client session and one thread each, side by side."""

import json
import queue
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from mem0_jax.envs import make
from mem0_jax.errors import UserError
from mem0_jax.eval.episode import Episode, Oracle, Outcome
from mem0_jax.eval.lockstep import Films
from mem0_jax.serve.client import Client, ServerError, lacks

# What results record of a server, besides what a client needs of it.
_COUNT = range(1, 2**63)
_ABOUT = {"horizon": _COUNT, "flow_steps": _COUNT, "provenance": dict, "planner": str, "options.threshold": float}
_ABOUT |= {f"options.{name}": _COUNT for name in ("n_action_steps", "patience")}
_ABOUT |= {f"options.{name}": bool for name in ("average", "classify", "rearm")}


class LostServerError(UserError):
    """A policy server that cannot be reached, went away, or has no room."""


def server_metadata(address: str, token: str | None, wait: float = 10.0) -> dict[str, Any]:
    """What a server says of itself.

    Raises:
        LostServerError: it cannot be reached within `wait` seconds, refuses, or is of another version.
    """
    try:
        with Client(address, token=token, wait=wait) as client:
            about = client.metadata
    except (OSError, ServerError, ValueError) as error:
        start = isinstance(error, OSError) or getattr(error, "kind", "") == "foreign"
        raise _lost(address, error, "; start one with 'mem0-jax serve BUNDLE'" if start else "") from error
    what = lacks(about, _ABOUT)
    try:
        json.dumps(about)
    except TypeError:
        what = what or "more than JSON can hold"
    if what:
        raise LostServerError(f"{address} sent {what}: it is no 'mem0-jax serve' of this version")
    return about


def _lost(address: str, error: Exception, hint: str = "") -> LostServerError:
    return LostServerError(f"{'' if address in str(error) else f'{address}: '}{error}{hint}")


def play_on_server(
    address: str,
    task: str,
    seeds: Sequence[int],
    options: Mapping[str, Any],
    *,
    token: str | None = None,
    planner: str = "client",
    parallel: int = 16,
    films: Films = lambda number: None,
) -> Generator[Outcome]:
    """Plays one episode a seed and gives the outcomes as they come; see `lockstep.play`.

    The server computes together what comes in together, so results repeat up to the rounding of its sums.

    Args:
        address: such as "ws://127.0.0.1:8000".
        task: of `mem0_jax.envs`.
        seeds: of environments and sampled chunks.
        options: of every episode instead of the server's, as in `Client.reset`.
        token: the server's.
        planner: of staged tasks: "server"; "client": the environments name their subtasks faultlessly; "none": the
            policy is told the whole task there too.
        parallel: client sessions at most; those that the server has no room for leave their episodes to the others.
        films: number of an episode -> mp4 file to write, or None.

    Raises:
        LostServerError: the server went away for longer than a client waits, or has no session free.
    """
    count = min(parallel, len(seeds))
    waiting = _Waiting(seeds, count)
    done: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
    stop = threading.Event()
    named = planner if make(task, render=False).staged else "none"

    def work(number: int) -> None:
        entry = waiting.next()
        try:
            with Client(address, token=token, env=f"{task} {number}") as client:
                while entry and not stop.is_set():
                    index, seed = entry
                    done.put(_play_one(client, Episode(task, index, seed, films(index)), named, options, stop))
                    entry = waiting.next()
        except Exception as error:
            full = isinstance(error, ServerError) and error.kind == "full"
            if not (full and entry and waiting.leave_to_others(entry)):
                done.put(error)

    threads = [threading.Thread(target=work, args=(i,), name=f"client {i}", daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in seeds:
            answer = done.get()
            if isinstance(answer, OSError | ServerError):
                raise _lost(address, answer) from answer
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=10)


class _Waiting:
    """Episodes that nobody plays yet, as (number, seed), and how many clients will come for the next one."""

    def __init__(self, seeds: Sequence[int], clients: int):
        self._entries, self._clients, self._lock = deque(enumerate(seeds)), clients, threading.Lock()

    def next(self) -> tuple[int, int] | None:
        """A client's next episode; None: it may go."""
        with self._lock:
            if self._entries:
                return self._entries.popleft()
            self._clients -= 1
            return None

    def leave_to_others(self, entry: tuple[int, int]) -> bool:
        """A client goes and puts its episode back; False where nobody is left to play it."""
        with self._lock:
            self._clients -= 1
            self._entries.appendleft(entry)
            return self._clients > 0


def _play_one(
    client: Client, episode: Episode, planner: str, options: Mapping[str, Any], stop: threading.Event
) -> Outcome:
    """Plays an episode to its end; what only this session suffers from becomes its error."""
    try:
        if not episode.over:
            client.reset(episode.instruction, episode.outcome.seed, planner, **options)
            client.observe(episode.observation)
        actions = []
        while not episode.over and not stop.is_set():
            if client.status.get("plan_needed") and planner == "client":
                client.plan(Oracle(episode.env).after(client.status["stage"]))
                continue
            if client.due:
                actions = list(client.act())
            episode.step(actions.pop(0))
            if not episode.over:
                client.observe(episode.observation)
            episode.outcome.stages = int(client.status.get("stage", 0))
    except (ServerError, ValueError) as error:
        if getattr(error, "kind", "") in ("full", "foreign"):  # it is none of the episode's fault
            raise
        episode.fail(f"policy server: {error}")
    finally:
        episode.abandon()
    return episode.outcome
