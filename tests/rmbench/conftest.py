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

import numpy as np
import pytest
from harness import ROOT, frame_number
from PIL import Image
from tiny import mem0_bundle

from mem0_jax.policies.bundle import save_bundle

SUBTASKS = ("A.", "B.", "C.", "D.")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """One layer of everything, untrained; horizon 3; every frame is judged the end of its subtask."""
    made = mem0_bundle(["put it back", *SUBTASKS], {"classifier.threshold": 1e-6})
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
