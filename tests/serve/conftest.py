"""A tiny policy, and a server of it."""

from collections.abc import Iterator

import jax
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")
pytest.importorskip("websockets")

from live import TEXTS, serving
from tiny import mem0_bundle

from mem0_jax.policies.bundle import Bundle
from mem0_jax.serve.server import Server
from mem0_jax.serve.service import Service


@pytest.fixture(autouse=True, scope="package")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """One layer of everything, untrained; horizon 3."""
    return mem0_bundle(TEXTS)


@pytest.fixture(scope="session")
def server(bundle) -> Iterator[Server]:
    """64 sessions, no planner."""
    with serving(lambda: Service(bundle, slots=64, rows=8)) as started:
        yield started
