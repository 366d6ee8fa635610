"""A tiny policy, and real servers of it in a thread of their own."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")
pytest.importorskip("websockets")

from websockets.sync.client import ClientConnection

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import token_ids, word_tokenizer
from mem0_jax.data.normalize import NormStats
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.bundle import Bundle, Inputs
from mem0_jax.policies.mem0 import Mem0, Mem0Config
from mem0_jax.serve.client import unpack
from mem0_jax.serve.server import Server, Settings
from mem0_jax.serve.service import Service

TASK = "put the block back"
TEXTS = [TASK, "press the button", "press the confirm button"]


@pytest.fixture(autouse=True, scope="package")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """One layer of everything, untrained; horizon 3."""
    tokenizer = word_tokenizer(TEXTS)
    config = Mem0Config(
        Qwen3VLConfig(
            TextConfig(16, 1, 2, 1, 8, 16, tokenizer.get_vocab_size(), 1e4, (2, 1, 1)),
            VisionConfig(1, 16, 16, 2, 16, (0,), 16, 1, 2, 16),
            token_ids(tokenizer),
        ),
        MemoryConfig(4, 2),
        FlowConfig(solver_steps=2),
        DiTConfig(16, 2, 2, 16, 16, 16, horizon=3),
        ClassifierConfig((48, 8)),
        image_size=(32, 32),
        dtype="float32",
    )
    span = {"min": np.full(16, -1.5), "max": np.full(16, 1.5)}
    params = Mem0(config).init(jax.random.key(0))
    return Bundle(config, params, NormStats(span, span), tokenizer, Inputs((32, 32), "bilinear", 24))


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


@pytest.fixture(scope="session")
def server(bundle) -> Iterator[Server]:
    """64 sessions, no planner."""
    with serving(lambda: Service(bundle, slots=64, rows=8)) as started:
        yield started
