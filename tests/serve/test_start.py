"""Start-up: what waits for the warm-up, the command with a planner, what its next start need not compile."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from live import TASK, TEXTS, address, assert_close, frame, serving
from websockets.sync.client import connect

from mem0_jax.inference.engine import Engine
from mem0_jax.inference.planning import Plan
from mem0_jax.inference.session import Options, Session
from mem0_jax.policies.bundle import load_bundle, save_bundle
from mem0_jax.serve.client import Client
from mem0_jax.serve.service import Service


def status(port: int, path: str) -> int:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


class Turns:
    """The planner's words, in this process."""

    def next_subtask(self, situation) -> Plan:
        return Plan(TEXTS[1 + len(situation.finished) % 2])


def test_until_it_is_warm_it_is_not_healthy_and_connections_wait(bundle, monkeypatch):
    gate, warm_up = threading.Event(), Engine.warm_up

    def warm_up_when_told(self):
        assert gate.wait(60)
        warm_up(self)

    class CompilingPlanner(Turns):
        def warm_up(self) -> None:
            seen.append(status(cold.port, "/healthz"))

    seen: list[int] = []
    monkeypatch.setattr(Engine, "warm_up", warm_up_when_told)
    with (
        serving(lambda: Service(bundle, None, CompilingPlanner(), slots=1, rows=1), wait=False) as cold,
        connect(address(cold)) as ws,
        ThreadPoolExecutor(1) as pool,
    ):
        assert [status(cold.port, path) for path in ("/healthz", "/metrics", "/")] == [503, 200, 200]
        form = urllib.request.Request(f"http://127.0.0.1:{cold.port}/process_frame", b"", method="POST")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(form, timeout=30)
        assert caught.value.code == 503
        assert json.load(caught.value)["error"]["message"] == "the policy is still warming up: try again"
        client = pool.submit(Client, address(cold))
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0.5)
        assert not client.done()
        gate.set()
        assert isinstance(ws.recv(timeout=100), bytes)
        assert seen == [503]
        assert status(cold.port, "/healthz") == 200
        with client.result(30) as policy:
            policy.reset(TASK, planner="none")
            assert policy.infer(frame(0))["actions"].shape == (3, 14)


COMPILES_FOR_EVER = """
import sys, threading
from mem0_jax.cli import main
from mem0_jax.inference.engine import Engine
Engine.warm_up = lambda self: print("compiling", flush=True) or threading.Event().wait()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_stopped_while_it_warms_up(bundle, tmp_path, number):
    words = [sys.executable, "-c", COMPILES_FOR_EVER, "serve", save_bundle(bundle, tmp_path / "bundle"), "--port", "0"]
    with subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)][1] == "compiling\n"
            process.send_signal(number)
            assert process.wait(60) == 0
            assert process.stdout.read() == "stopped\n"
        finally:
            process.kill()


def test_nothing_is_compiled_once_it_is_healthy(bundle, tmp_path, compiled):
    """One or more robots, with actions or without, with frames kept for later, pictures of any size, other options."""
    loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle"), dtype="serving")

    def robot(where: str, number: int, together: threading.Barrier) -> None:
        with Client(where) as policy:
            options = [{}, {"average": True, "n_action_steps": 1}, {"classify": True, "threshold": 0.3}][number]
            policy.reset(TEXTS[number], seed=number, **options)
            for count in (1, 1, 3, 12, 2):
                together.wait(60)
                for i in range(count):
                    policy.observe(frame(i, 14 + 2 * (number % 2), [(24, 32), (32, 32), (120, 50)][i % 3]))
                policy.act()
            policy.reset("whole task", planner="client")
            policy.plan(TEXTS[2])
            policy.infer(frame(7))

    with serving(lambda: Service(loaded, slots=3)) as server:
        compiled.clear()
        robot(address(server), 0, threading.Barrier(1))
        together = threading.Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda number: robot(address(server), number, together), range(3)))
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/sessions", timeout=30) as page:
            assert page.status == 200
    assert compiled == []


class PlannerServer(ThreadingHTTPServer):
    """A chat API that names `TEXTS[1:]` in turn, and counts in its summary; keeps what it was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str | None, str, str]] = []  # key, model, text

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: PlannerServer

    def log_message(self, *_) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][1]["content"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        number = len(self.server.asked)
        self.server.asked.append((self.headers["Authorization"], body["model"], text))
        said = f"next_subtask: {TEXTS[1 + number % 2]}\nsummary: summary {number}"
        answer = {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def planner() -> Iterator[PlannerServer]:
    running = PlannerServer()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@contextmanager
def command(folder: Path, *flags: object) -> Iterator[str]:
    """The address of `mem0-jax serve` in a process of its own, with the cache and the key beside the bundle."""
    words = [sys.executable, "-m", "mem0_jax.cli", "serve", folder, "--port", 0, "--rows", 1, "--sessions", 1, *flags]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") or k == "JAX_PLATFORMS"}
    environment |= {"XDG_CACHE_HOME": str(folder.parent / "cache"), "OPENAI_API_KEY": "k3y"}
    with subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            yield re.findall(r"ready: (ws://127.0.0.1:\d+)", lines[1])[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_staged_session_by_the_command_and_its_second_start(bundle, planner, tmp_path):
    folder, cache = save_bundle(bundle, tmp_path / "bundle"), tmp_path / "cache" / "mem0_jax" / "compiled"
    key = tmp_path / "key"
    key.write_text("secret\n")
    acting = ["--threshold", 0.05, "--patience", 2, "--planner", planner.url, "--planner-model", "large"]
    with command(folder, *acting, "--planner-key-file", key, "--planner-summary") as where, Client(where) as policy:
        policy.reset("whole task", seed=2)
        local = Session(bundle, Options(threshold=0.05, patience=2), Turns())
        local.reset("whole task", seed=2)
        for number in range(4):
            answer, pilot = policy.observe(frame(number)), local.observe(frame(number))
            assert answer is not None
            assert (answer["stage"], answer["instruction"]) == (pilot.stage, pilot.instruction)
            if policy.due:
                assert_close(policy.act(), local.act())
        assert pilot.stage >= 2
    assert len(planner.asked) == pilot.stage + 1
    assert {(who, model) for who, model, _ in planner.asked} == {("Bearer secret", "large")}
    assert "<summary>: null." in planner.asked[0][2]
    assert "<summary>: summary 0" in planner.asked[1][2]
    assert TEXTS[1] in planner.asked[1][2]
    kept = {file.name for file in cache.glob("*-cache")}
    assert len(kept) >= 3, "look, remember and decide take longer to compile than is thought worth keeping"
    planner.asked.clear()
    with command(folder, *acting) as where, Client(where) as policy:
        policy.reset("whole task", seed=2)
        assert policy.infer(frame(0))["instruction"] == TEXTS[1]
    assert [(who, "<summary>" in text) for who, _, text in planner.asked] == [("Bearer k3y", False)]
    assert {file.name for file in cache.glob("*-cache")} == kept
