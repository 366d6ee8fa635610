"""Bytes that are no request: a sentence for who sent them, one counted line for who serves, nothing for all others."""

import asyncio
import json
import logging
import re
import selectors
import socket
import urllib.request
from contextlib import ExitStack

import pytest
from garbage import BYTES, FRAMES, HANDSHAKES, KEY, SHAKE, body, get, internal, say
from live import TASK, address, frame, serving
from prometheus_client import CollectorRegistry
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from mem0_jax.serve.client import Client, ServerError, pack
from mem0_jax.serve.garbage import Garbage
from mem0_jax.serve.protocol import Limits
from mem0_jax.serve.service import Service


def counted(server, kind: str) -> float:
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60).read().decode()
    found = re.search(rf'^mem0_garbage_total{{kind="{kind}"}} (\S+)$', page, re.M)
    return float(found[1]) if found else 0.0


def told(answer: bytes, status: int) -> str:
    """The sentence of an HTTP answer, which is none of a parser."""
    head, _, data = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == str(status).encode()
    error = json.loads(data)["error"]
    assert not internal(error["message"]), error
    return error["message"]


def quiet(caplog) -> list[str]:
    """The lines of the log, none of which is a traceback."""
    assert not [record for record in caplog.records if record.exc_info or record.stack_info]
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_that_are_no_request(server, kind, caplog):
    before = counted(server, kind)
    with Client(address(server)) as policy:
        policy.reset(TASK)
        for data in BYTES[kind]:
            for number in range(8):
                answer = say(server.port, data, hang_up=kind in ("silent", "half"), reset=number % 2 == 1)
                if answer:
                    assert "HTTP" in told(answer, 400) or "8190 bytes" in told(answer, 400)
        assert policy.infer(frame(0))["actions"].shape == (3, 14)
    sent = 8 * len(BYTES[kind])
    assert sent / 2 <= counted(server, kind) - before <= sent  # what is reset at once may never be read
    assert len(quiet(caplog)) < 8


@pytest.mark.parametrize("data", HANDSHAKES)
def test_handshakes_that_are_wrong(server, data, caplog):
    before = counted(server, "handshake")
    assert "handshake" in told(say(server.port, data), 426 if b"\nSec-WebSocket-Version: 13" not in data else 400)
    assert counted(server, "handshake") == before + 1
    quiet(caplog)


def test_frames_that_cannot_be_read(server, caplog):
    before = counted(server, "frame")
    for data in FRAMES:
        answer = say(server.port, SHAKE + KEY + data)
        text = answer[answer.rindex(b"\x88") + 4 :].decode()  # the reason of the close, which was a message before
        assert text.startswith(("bad_message: a frame is against", "bad_message: a text is not UTF-8"))
        assert answer.count(text.encode()) == 2
        say(server.port, SHAKE + KEY + data, reset=True)
    assert counted(server, "frame") >= before + len(FRAMES)
    assert len(quiet(caplog)) < 8


FORM = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n'
REQUESTS = [
    (get(b"Host: ["), 403, "no name of this machine"),
    (get(b"Host: \xe2\x84\x80"), 403, "no name of this machine"),
    (get(b"Host: localhost", b"Origin: http://["), 403, "other sites"),
    (get(b"Host: localhost").replace(b"/ HTTP", b"/nothing HTTP"), 404, "there is no '/nothing' here"),
    (get(b"Host: localhost").replace(b"GET", b"PUT"), 405, "'/' takes GET, HEAD, not PUT"),
    (body(b"/process_frame", b"x" * 9, more=b"Content-Encoding: gzip\r\n"), 415, "Content-Encoding"),
    (body(b"/process_frame", FORM + b"\xff\r\n--x--\r\n"), 400, "text must be text in UTF-8"),
    (body(b"/process_frame", FORM + b"cut off"), 400, "the form is damaged"),
    (body(b"/process_frame", b"--y\r\n"), 400, "the form is damaged"),
    (body(b"/process_frame", b"--x\r\n" + b"A" * 70000 + b"\r\n\r\n"), 400, "the form is damaged"),
    (body(b"/process_frame", b"--x\r\nno colon\r\n\r\nabc\r\n--x--\r\n"), 400, "the form is damaged"),
    (body(b"/process_frame", FORM.replace(b"text", b"texts") + b"a\r\n--x--\r\n"), 400, "did you mean 'text'?"),
    (body(b"/process_frame", FORM + b"a\r\n" + FORM + b"b\r\n--x--\r\n"), 400, "the form has text twice"),
    (body(b"/process_frame", FORM.replace(b"text", b"_charset_") + b"x" * 99 + b"\r\n--x--\r\n"), 400, "is damaged"),
    (get(b"Host: localhost", b"Expect: tea"), 417, "the header 'Expect' may only say 100-continue"),
    (body(b"/nothing", b"", more=b"Expect: \xff\r\n"), 417, "the header 'Expect' may only say 100-continue"),
    (body(b"/process_frame", b"zz\r\n", more=b"Transfer-Encoding: chunked\r\n"), 400, "no HTTP/1.1 request"),
]


@pytest.mark.parametrize(("data", "status", "sentence"), REQUESTS)
def test_requests_that_are_wrong(server, data, status, sentence, caplog):
    assert sentence in told(say(server.port, data), status)
    for _ in range(3):
        say(server.port, data, reset=True)
    quiet(caplog)


def test_what_was_answered_is_not_counted_as_half(server):
    before = counted(server, "half")
    for _ in range(20):
        say(server.port, get(b"Host: localhost", b"Connection: close", b"Expect: tea"))
    assert counted(server, "half") - before < 10  # others' halves may be counted late


def test_bodies_that_never_end_cost_no_traceback(server, caplog):
    for data in (FORM, b"", FORM + b"abc\r\n--x"):
        whole = body(b"/process_frame", data)
        say(server.port, whole.replace(b"Content-Length: ", b"Content-Length: 9"), hang_up=True)
        say(server.port, whole.replace(b"Content-Length: ", b"Content-Length: 9"), reset=True)
    chunked = body(b"/process_frame", b"", more=b"Transfer-Encoding: chunked\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        peer.sendall(chunked + b"5\r\nabcde\r\n")
        peer.sendall(b"zz\r\n")
        assert "body is damaged" in (said := told(peer.recv(2**16), 400)) or "no HTTP/1.1 request" in said
    quiet(caplog)


def test_a_crowd_that_asks_nothing_keeps_nobody_out(server):
    with ExitStack() as crowd:
        for _ in range(300):
            crowd.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(b"GET / HT")
        with Client(address(server)) as policy:
            policy.reset(TASK)
            assert policy.infer(frame(0))["time"] == 0
        assert counted(server, "crowd") > 100


def test_a_message_that_is_too_large_is_told_so_before_the_end(bundle):
    limits = Limits(message=2**17)
    with serving(lambda: Service(bundle, slots=2, rows=1, limits=limits)) as small:
        for size in (2**17 + 1, 2**24):
            with connect(address(small)) as ws:
                ws.recv()
                ws.send(bytes(size))
                sentence = f"too_large: the message has {size} bytes; at most {2**17} bytes are taken"
                assert ws.recv() == sentence
                with pytest.raises(ConnectionClosed) as caught:
                    ws.recv()
                assert caught.value.rcvd is not None
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1009, sentence)
        with connect(address(small)) as ws:
            ws.recv()
            ws.send(pack("x" * (2**17 - 5)))  # not a byte too many
            assert ws.recv() == "bad_message: a message must be a map, got text"
        with Client(address(small)) as policy:
            policy.reset(TASK, seed=1)
            with pytest.raises(ServerError, match=rf"has \d{{8}} bytes; at most {2**17} bytes are taken") as caught:
                policy.plan("x" * 2**24)
            assert caught.value.kind == "too_large"
            assert policy.infer(frame(0))["time"] == 0  # in the same session
        form = body(b"/process_frame", bytes(2**18))
        assert f"has {2**18} bytes; at most {2**17} are taken" in told(say(small.port, form), 413)
        parts = [FORM.replace(b"text", b"image"), *[bytes(2**15)] * 9]
        chunks = b"".join(b"%x\r\n" % len(part) + part + b"\r\n" for part in parts)
        form = body(b"/process_frame", chunks, more=b"Transfer-Encoding: chunked\r\n")
        assert f"has more than {2**17} bytes; at most {2**17} are taken" in told(say(small.port, form), 413)


class Jumps(selectors.DefaultSelector):
    """Where a loop would wait, the time has passed."""

    now = 0.0

    def select(self, timeout=None):
        self.now += timeout or 0.0
        return super().select(0)


class QuickLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumps = Jumps()
        super().__init__(self.jumps)

    def time(self) -> float:
        return self.jumps.now


async def drip(garbage: Garbage, peers: list[str], seconds: float) -> None:
    for peer in peers:
        garbage("http", peer)
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("seconds", [0.5, 11, 61, 700, 3500])
def test_a_slow_drip_is_told_as_seldom_as_a_flood(seconds, caplog):
    garbage, loop = Garbage(CollectorRegistry()), QuickLoop()
    loop.run_until_complete(drip(garbage, ["robot"] * 1000, seconds))
    garbage.close()
    loop.close()
    counts = [int(count) for line in quiet(caplog) for count in re.findall(r"robot, (\d+) so far", line)]
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (1, 1000)
    assert len(counts) < 12 + 1000 * seconds / 3600


def test_a_name_is_kept_for_whoever_comes_after_a_crowd_of_peers(caplog):
    garbage, loop = Garbage(CollectorRegistry()), QuickLoop()
    loop.run_until_complete(drip(garbage, [f"peer {number}" for number in range(5000)], 1))
    told = [line for line in quiet(caplog) if " from " in line]
    assert len(told) < 64 + 64 + 20  # an hour later as many others
    assert "from many others, 1 so far" in told[64]
    loop.run_until_complete(drip(garbage, ["one of many"], 9999))
    loop.run_until_complete(drip(garbage, ["late", "late"], 11))
    late = [line.partition(" from ")[2] for line in quiet(caplog) if " late" in line]
    assert late == ["late, 1 so far", "late, 2 so far"]
    garbage.close()
    loop.close()
