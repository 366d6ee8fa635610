"""A tiny policy, and a server of it."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")
pytest.importorskip("websockets")

from live import TEXTS, serving

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import token_ids, word_tokenizer
from mem0_jax.data.normalize import NormStats
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.bundle import Bundle, Inputs
from mem0_jax.policies.mem0 import Mem0, Mem0Config
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


@pytest.fixture(scope="session")
def server(bundle) -> Iterator[Server]:
    """64 sessions, no planner."""
    with serving(lambda: Service(bundle, slots=64, rows=8)) as started:
        yield started
