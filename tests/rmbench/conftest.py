"""A tiny policy in a bundle, a planner behind HTTP, a policy server, and a policy folder as RMBench holds it."""

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
from harness import ROOT, frame_number
from PIL import Image

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import token_ids, word_tokenizer
from mem0_jax.data.normalize import NormStats
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.bundle import Bundle, Inputs, save_bundle
from mem0_jax.policies.mem0 import Mem0, Mem0Config

SUBTASKS = ("A.", "B.", "C.", "D.")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """One layer of everything, untrained; horizon 3; every frame is judged the end of its subtask."""
    tokenizer = word_tokenizer(["put it back", *SUBTASKS])
    config = Mem0Config(
        Qwen3VLConfig(
            TextConfig(16, 1, 2, 1, 8, 16, tokenizer.get_vocab_size(), 1e4, (2, 1, 1)),
            VisionConfig(1, 16, 16, 2, 16, (0,), 16, 1, 2, 16),
            token_ids(tokenizer),
        ),
        MemoryConfig(4, 2),
        FlowConfig(solver_steps=2),
        DiTConfig(16, 2, 2, 16, 16, 16, horizon=3),
        ClassifierConfig((48, 8), threshold=1e-6),
        image_size=(32, 32),
        dtype="float32",
    )
    span = {"min": np.full(16, -1.5), "max": np.full(16, 1.5)}
    made = Bundle(
        config,
        Mem0(config).init(jax.random.key(0)),
        NormStats(span, span),
        tokenizer,
        Inputs((32, 32), "bilinear", 24),
    )
    return save_bundle(made, tmp_path_factory.mktemp("bundle") / "bundle")


class Planner(ThreadingHTTPServer):
    """Names `SUBTASKS` one after the other; writes every question into `trace`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.trace: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Planner

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "planner"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][1]["content"]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]
        assert all(image.shape == (240, 320, 3) for image in images)  # as the camera took them
        first, *ends = map(frame_number, images)
        named = [text.removesuffix(" The corresponding image is: ").split(": ")[-1] for text in texts[1:-1]]
        finished = ", ".join(f"{subtask} {end}" for subtask, end in zip(named, ends, strict=True))
        self.server.trace.append(f"ask {first} ({finished})")
        answer = f"next_subtask: {SUBTASKS[len(ends)]}"
        self._answer({"choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]})

    def _answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="session")
def planner() -> Iterator[Planner]:
    running = Planner()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="session")
def server(bundle, planner) -> Iterator[str]:
    """The address of `mem0-jax serve` in a process of its own, which asks the planner."""
    pytest.importorskip("aiohttp")
    command = ["-m", "mem0_jax.cli", "serve", bundle, "--port", "0", "--sessions", "1", "--planner", planner.url]
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready: "):
            break
    else:
        pytest.fail("the server did not start")
    yield line.split()[1].rstrip(",")
    process.terminate()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.fixture(scope="session")
def policies(tmp_path_factory) -> Path:
    """RMBench's policy/ with a link to the policy folder, as the instructions say."""
    root = tmp_path_factory.mktemp("RMBench") / "policy"
    root.mkdir()
    (root / "Mem0_JAX").symlink_to(ROOT / "scripts/rmbench", target_is_directory=True)
    return root
