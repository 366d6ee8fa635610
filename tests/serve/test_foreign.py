"""Wrong addresses, and servers that are none of ours: one sentence with the address, and nothing is tried again."""

import base64
import contextlib
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from garbage import internal
from live import frame

from mem0_jax.cli import main
from mem0_jax.serve.client import Client, ServerError, pack

ABOUT = {"camera": "head_camera", "limits": {"message": 2**20, "frames": 64, "side": 2048}, "horizon": 3}
OPTIONS = {"n_action_steps": 3, "average": False, "threshold": 0.5, "patience": 2, "classify": False, "rearm": False}
WHOLE = ABOUT | {"options": OPTIONS, "flow_steps": 2, "provenance": {}, "planner": "none", "sessions": 4}
STATUS = {"time": -1, "stage": 0, "instruction": "x", "due": True, "plan_needed": False, "classify": False}


@contextlib.contextmanager
def saying(*data: bytes, shake: bool = False) -> Iterator[tuple[str, list[int]]]:
    """A port that says this to everybody who asks (`shake`: after the handshake), one after each thing it is told."""
    listener, calls = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer = listener.accept()[0]
                calls.append(1)
                threading.Thread(target=talk, args=(peer,), daemon=True).start()

    def talk(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            asked = peer.recv(2**16)
            if shake:
                key = re.findall(rb"Sec-WebSocket-Key: (\S+)", asked)[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
                accept = base64.b64encode(hashlib.sha1(key).digest())
                peer.sendall(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            for number, part in enumerate(data):
                if number:
                    peer.recv(2**20)
                peer.sendall(part)
            while peer.recv(2**16):
                pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", calls
    finally:
        listener.close()


def sent(payload: bytes, code: int = 2) -> bytes:
    head = bytes([0x80 | code]) + (
        bytes([len(payload)]) if len(payload) < 126 else struct.pack(">BH", 126, len(payload))
    )
    return head + payload


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ws://h:99999", "a number from 1 to 65535"), ("ws://h:abc", "a number from 1 to 65535"),
        ("ws://h:0", "a number from 1 to 65535"), ("ws://h:-1", "a number from 1 to 65535"),
        ("ws://[::1", "in brackets"), ("ws://::1]:80", "in brackets"), ("ws://[zz]:80", "brackets|resolved|Name"),
        (f"ws://{'a' * 70}.com", "1 to 63 letters"), ("ws://a..b:80", "1 to 63 letters"), ("ws://.", "1 to 63"),
        ("ws://a b:80", "ws://host:port"), ("ws://a\0b", "ws://host:port"), ("ws://h/\udcff", "ws://host:port"),
        ("ws://h/a\r\nX: y", "ws://host:port"), ("127.0.0.1:8000", "ws://host:port"), ("", "ws://host:port"),
    ],
)  # fmt: skip
def test_an_address_that_is_none(address, words, capsys):
    with pytest.raises((ValueError, ConnectionError), match=words) as caught:
        Client(address, wait=0.1)
    assert repr(address) in str(caught.value) or address in str(caught.value)
    assert not internal(str(caught.value))
    assert type(caught.value) is not UnicodeError
    if "\0" not in address:
        assert main(["eval", "closed", "put_back_block", "--server", address, "--out", "never"]) in (1, 2)
        assert "Traceback" not in capsys.readouterr().err


HTTP = b"HTTP/1.1 404 Not Found\r\nContent-Length: "
SENTENCE = b'{"error": {"kind": "bad_request", "message": "there is no \'/foo\' here"}}'


@pytest.mark.parametrize(
    ("scheme", "data", "words"),
    [
        ("wss", b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks no TLS: use ws://127.0.0.1"),
        ("wss", b"SSH-2.0-OpenSSH_9\r\n" * 9, "speaks no TLS: use ws://127.0.0.1"),
        ("wss", b"\x15\x03\x03\x00\x02\x02\x28", "refuses TLS: .*handshake failure"),
        ("ws", b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS: use wss://"),
        ("ws", b"SSH-2.0-OpenSSH_9\r\n", "'SSH-2.0-OpenSSH_9.*none of mem0-jax"),
        ("ws", b"\xff" * 90, "none of mem0"),
        ("ws", b"HTTP/1.1 200 OK\r\n\r\n<html>", "answered '200 OK': it is no policy server of mem0-jax$"),
        ("ws", b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "answered '502 Bad Gateway'"),
        ("ws", HTTP + b"x\r\n\r\n", "'404 Not"),
        ("ws", HTTP + b"%d\r\n\r\n" % len(SENTENCE) + SENTENCE, r"here; the server's address is ws://127[^{]*$"),
        ("ws", HTTP + b"99999\r\n\r\n" + b"[" * 99999, "answered '404 Not Found': it is no policy server"),
        ("ws", b"HTTP/1.1 101 S\r\n\r\n", "sent no WebSocket handshake"),
    ],
)  # fmt: skip
def test_a_port_that_speaks_something_else(scheme, data, words):
    with saying(data) as (port, calls):
        with pytest.raises(ServerError, match=words) as caught:
            Client(f"{scheme}://{port}/foo", wait=30)
        assert port in str(caught.value)
        assert not internal(str(caught.value))
        assert len(calls) == 1


def test_what_was_heard_is_told_where_the_answer_does_not_end():
    with saying(b"HTTP/1.0 400 Bad\r\n") as (port, _), pytest.raises(TimeoutError, match=f"{port}.*'HTTP/1.0 400 Bad"):
        Client(f"ws://{port}", wait=0.5)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (sent(b"\xff\xfe", 1), "a text that is not UTF-8"), (sent(b"hello", 1), "'hello'"), (sent(b"\xc1"), "bytes"),
        (b"\xf2\x01a", "against the WebSocket protocol"), (b"\x80\x01a", "frames out of order"),
        (sent(pack([1])), "a list"), (sent(pack({"policy": "pi0"})), "no camera"),
        (sent(pack(ABOUT | {"camera": 3})), "3 as"),
        (sent(pack(ABOUT | {"cameras": "top"})), "'top' as cameras, which must be a list of texts"),
        (sent(pack(ABOUT | {"state": [7, "a"]})), "a list as state, which must be a list of whole numbers"),
        (sent(pack(ABOUT | {"actions": []})), "a list as actions, which must be a list of whole numbers"),
        (sent(pack(ABOUT | {"limits": {}})), "no limits.message"),
        (sent(pack(ABOUT | {"limits": []})), "no limits.mess"),
        (sent(pack(ABOUT | {"limits": {"message": "a"}})), "'a' as limits.message, which must be a whole number"),
        (sent(pack(ABOUT | {"limits": {"message": 9, "frames": True}})), "true as limits.frames"),
        (sent(pack(ABOUT | {"limits": {"message": 9, "frames": 1, "side": -1}})), "-1 as limits.side"),
    ],
)  # fmt: skip
def test_a_greeting_that_is_none_of_ours(data, words):
    with saying(data, shake=True) as (port, calls):
        with pytest.raises(
            ServerError, match=f"{port} sent .*{words}.*the server's answer is none of mem0-jax$"
        ) as caught:
            Client(f"ws://{port}", wait=30)
        assert caught.value.kind == "foreign"
        assert len(calls) == 1


def without(name: str) -> dict:
    return {key: value for key, value in STATUS.items() if key != name}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "no time"), ({"time": 0}, "no stage"), (STATUS | {"time": "a"}, "'a' as time"),
        (STATUS | {"time": -2}, "-2 as time, which must be a whole number from -1 on"),
        (5, "a whole number, no message"),
        (STATUS | {"stage": 1.0}, "1.0 as stage"), (STATUS | {"due": 1}, "1 as due, which must be true or false"),
        *((without(name), f"no {name}") for name in STATUS),
    ],
)  # fmt: skip
def test_an_answer_that_lacks_what_a_client_needs(answer, words):
    with saying(sent(pack(ABOUT)), sent(pack(answer)), shake=True) as (port, _), Client(f"ws://{port}") as policy:
        match = f"{port} sent {words}.*the server's answer is none of mem0-jax$"
        with pytest.raises(ServerError, match=match) as caught:
            policy.reset("x")
        assert caught.value.kind == "foreign"


@pytest.mark.parametrize(
    "actions", [None, 7, "x", [], np.zeros(14, "f4"), np.zeros((3, 7), "f4"), np.zeros((0, 14), "f4")]
)
def test_actions_that_are_none(actions):
    found = STATUS | {"time": 0} | ({} if actions is None else {"actions": actions})
    with (
        saying(*map(sent, map(pack, (ABOUT, STATUS, found))), shake=True) as (port, _),
        Client(f"ws://{port}") as policy,
    ):
        policy.reset("x")
        with pytest.raises(
            ServerError, match=r"as actions, which must be float32 \[K, 14 or 16\]: the server's answer"
        ):
            policy.infer(frame(0))


@pytest.mark.parametrize(
    ("about", "answer", "words"),
    [
        (WHOLE, {}, "no time: the server's answer is none of mem0-jax"),
        (ABOUT, {}, "no flow_steps|no options|no planner|no provenance"),
        (WHOLE | {"options": {}}, {}, "no options.threshold"), (WHOLE | {"horizon": "a"}, {}, "'a' as horizon"),
        (WHOLE | {"provenance": {"a": b"b"}}, {}, "more than JSON can hold"), (WHOLE | {"limits": {}}, {}, "no limits"),
    ],
)  # fmt: skip
def test_an_evaluation_ends_in_one_sentence(about, answer, words, tmp_path, capsys):
    with saying(sent(pack(about)), sent(pack(answer)), shake=True) as (port, _):
        command = ["eval", "closed", "put_back_block", "--server", f"ws://{port}", "--episodes", "1"]
        assert main([*command, "--out", str(tmp_path)]) == 1
        told = capsys.readouterr().err
        assert re.search(words, told)
        assert "Traceback" not in told
