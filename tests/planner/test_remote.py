"""The remote planner against a server that speaks the OpenAI chat API, well and badly."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from mem0_jax.errors import UserError
from mem0_jax.inference.planning import Finished, Plan, PlannerError, Situation
from mem0_jax.planner import remote
from mem0_jax.planner.remote import RemotePlanner
from mem0_jax.planner.system_prompt import KEY_FRAMES, SUMMARY

pytest.importorskip("openai")
SITUATION = Situation(
    "sort",
    np.zeros((240, 320, 3), np.uint8),
    np.zeros((240, 320, 3), np.uint8),
    (Finished("open the lid.", np.zeros((1080, 1920, 3), np.uint8)),),
    "nothing yet.",
)


def chat(text: Any, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


GOOD = chat("next_subtask: press the button.")


class Server(ThreadingHTTPServer):
    """Answers with `script`, the last entry again and again: (status, JSON or bytes), or a function of the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Any] = [(200, GOOD)]
        self.models: Any = {"object": "list", "data": [{"id": "planner", "object": "model"}, {"id": "other"}]}
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients that time out hang up
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/v1/models" else 404, self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers.append(self.headers)
        script = self.server.script
        step: Any = script.pop(0) if len(script) > 1 else script[0]
        if self.path != "/v1/chat/completions":
            step = 404, error("no such address")
        step(self) if callable(step) else self.answer(*step)

    def answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "MAX_PAUSE", 0.01)
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_asks_in_the_trained_form(server):
    planner = RemotePlanner(server.url, api_key="secret")
    assert planner.next_subtask(SITUATION) == Plan("press the button.")
    (asked,) = server.asked
    assert (asked["model"], asked["temperature"]) == ("planner", 0)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    system, user = asked["messages"]
    assert system == {"role": "system", "content": KEY_FRAMES}
    texts = [part["text"] if part["type"] == "text" else "<image>" for part in user["content"]]
    assert "".join(texts) == (
        "<global_task>: sort\n<initial_observation>: <image>.\n<finished_subtasks>: 0: open the lid. The corresponding "
        "image is: <image>.\n"
    )


def test_carries_a_summary(server):
    server.script = [(200, chat("next_subtask: press.\nsummary: lid open."))]
    planner = RemotePlanner(server.url + "/v1/", "other", summary=True)
    assert planner.next_subtask(SITUATION) == Plan("press.", "lid open.")
    assert server.asked[0]["model"] == "other"
    assert server.asked[0]["messages"][0]["content"] == SUMMARY
    texts = [part.get("text", "<image>") for part in server.asked[0]["messages"][1]["content"]]
    assert "<summary>: nothing yet.\n" in "".join(texts)


def slow(handler: _Handler) -> None:
    time.sleep(1)
    handler.answer(200, GOOD)


def dripping(handler: _Handler) -> None:
    """Never silent for long, and never done."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with suppress(OSError):  # the planner has hung up
        for _ in range(20):
            time.sleep(0.1)
            handler.wfile.write(b" ")


def breaking_off(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


def dropping(handler: _Handler) -> None:
    handler.close_connection = True


def huge(handler: _Handler) -> None:
    handler.answer(200, b" " * (2 * remote.MAX_BYTES))


@pytest.mark.parametrize(
    "trouble",
    [
        (500, error("out of memory")),
        (503, b"<html>starting</html>"),
        (429, error("busy")),
        (200, b"{garbage"),
        (200, [1, 2]),
        (200, {"choices": []}),
        (200, chat(None)),
        (200, chat("I see a table.")),
        (200, chat("next_subtask: press the", finish="length")),
        slow,
        dripping,
        dropping,
        breaking_off,
        huge,
    ],
)
def test_passing_trouble_is_tried_again(server, trouble):
    server.script = [trouble, (200, GOOD)]
    planner = RemotePlanner(server.url, "planner", timeout=0.5, retries=1)
    assert planner.next_subtask(SITUATION) == Plan("press the button.")
    assert [asked["temperature"] for asked in server.asked] == [0, remote.WARMTH]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ((500, error("out of memory")), "answered 500: 'out of memory'"),
        ((200, b"{garbage"), "answered no JSON but '{garbage'"),
        ((200, chat("I see a table.")), "the planner answered 'I see a table.'; expected 'next_subtask: '"),
        ((200, chat("next_subtask: a", finish="length")), "cut off after"),
        ((200, chat(7)), "gave no text"),
        (slow, "did not answer within 0.3 s"),
        (huge, "answers more than"),
    ],
)
def test_lasting_trouble_ends(server, trouble, message):
    server.script = [trouble]
    planner = RemotePlanner(server.url, "planner", timeout=0.3, retries=2)
    with pytest.raises(PlannerError, match="asked 3 times") as told:
        planner.next_subtask(SITUATION)
    assert message in str(told.value)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (401, "bad key", "refuses the key: 'bad key'"),
        (
            404,
            "no planner2",
            "does not know the model 'planner2' or the address: 'no planner2'; its models are planner",
        ),
        (400, "This model's maximum context length is 2048 tokens", "the question is too long"),
        (413, "large", "the question is too long"),
        (400, "images are not supported", "refused the question with 400: 'images are not supported'"),
    ],
)
def test_refusals_are_told_at_once(server, status, said, message):
    server.script = [(status, error(said))]
    with pytest.raises(PlannerError) as told:
        RemotePlanner(server.url, "planner2").next_subtask(SITUATION)
    assert message in str(told.value)
    assert len(server.asked) == 1


def test_nobody_there(server):
    planner = RemotePlanner("http://127.0.0.1:9", "planner", retries=1)
    with pytest.raises(PlannerError, match=r"http://127.0.0.1:9/v1 cannot be reached .*is it running\?"):
        planner.next_subtask(SITUATION)


@pytest.mark.parametrize(("models", "message"), [({"data": []}, "has no models"), ({"x": 1}, "lists no models")])
def test_servers_without_models(server, models, message):
    server.models = models
    with pytest.raises(PlannerError, match=message):
        RemotePlanner(server.url, retries=0).next_subtask(SITUATION)


def test_models(server):
    assert RemotePlanner(server.url).models() == ["planner", "other"]


def test_several_threads_at_once(server):
    planner = RemotePlanner(server.url)
    found: list[Plan] = []
    threads = [threading.Thread(target=lambda: found.append(planner.next_subtask(SITUATION))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Plan("press the button.")] * 8


@pytest.mark.parametrize(
    ("url", "options"),
    [("localhost:8000", {}), ("ftp://a", {}), ("http://a", {"timeout": 0}), ("http://a", {"retries": -1})],
)
def test_settings_that_cannot_be(url, options):
    with pytest.raises(UserError, match="the planner's"):
        RemotePlanner(url, **options)
