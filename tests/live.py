"""Real servers in a thread of their own, and what their tests say and see."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from websockets.sync.client import ClientConnection

from mem0_jax.serve.client import unpack
from mem0_jax.serve.server import Server, Settings
from mem0_jax.serve.service import Service

TASK = "put the block back"
TEXTS = [TASK, "press the button", "press the confirm button"]


def frame(seed: int, dim: int = 14, size: tuple[int, int] = (24, 32)) -> dict:
    """An observation in RMBench's layout."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    vector = rng.uniform(-1, 1, dim).astype(np.float32)
    return {"observation": {"head_camera": {"rgb": rgb}}, "joint_action": {"vector": vector}}


@contextmanager
def serving(make: Callable[[], Service], settings: Settings | None = None, *, wait: bool = True) -> Iterator[Server]:
    """A server on a free port, warm unless told not to `wait`, in a thread with an event loop of its own."""
    loop, box, up = asyncio.new_event_loop(), [], threading.Event()

    async def start() -> None:
        server = Server(make(), settings or Settings(port=0))
        box.append(server)
        starting = asyncio.create_task(server.start())
        while not (starting.done() if wait else server.port):
            await asyncio.sleep(0.01)
        up.set()
        await starting

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(120), "the server did not start"
    try:
        yield box[0]
    finally:
        asyncio.run_coroutine_threadsafe(box[0].stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def assert_close(found, expected) -> None:
    """Equal, but for sums in another order where sessions share a step."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def answer_of(ws: ClientConnection) -> dict:
    """The next message, which is no error."""
    data = ws.recv()
    assert isinstance(data, bytes), data
    return unpack(data)


def address(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}"
