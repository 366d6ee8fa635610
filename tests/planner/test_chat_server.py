"""`mem0-jax plan serve` as a process, asked by the openai package; its bounds, asked by many at once."""

import asyncio
import base64
import dataclasses
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import openai
import pytest
import random_models
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from mem0_jax.backbones.qwen3_vl.decode import take_apart
from mem0_jax.backbones.qwen3_vl.generate import Generator, Prompt, Settings
from mem0_jax.config import to_dict
from mem0_jax.planner.chat_server import ChatServer, ServerLimits
from mem0_jax.planner.local import IMAGES, load_generator
from mem0_jax.planner.prompt import build
from mem0_jax.planner.render import chat_messages, chat_text, data_url
from mem0_jax.policies.bundle import new_folder, save_params, write_description

KEY, NAME, CONTEXT = "secret", "planner", 700
UNTIED = random_models.CONFIGS["untied"]
CONFIG = dataclasses.replace(UNTIED, text=dataclasses.replace(UNTIED.text, num_hidden_layers=2))
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
ASKED = build("count", PICTURE, [("press.", 255 - PICTURE)])


def parameters():
    """Random, but with a liking for the end of the answer, as a trained model has."""
    made = random_models.params(CONFIG, 5)
    made["lm_head"]["kernel"][:, random_models.TOKENS.im_end] *= 2.0
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / NAME
    with new_folder(folder) as unfinished:
        entries = {IMAGES: to_dict(random_models.BOUNDS["untied"])}
        write_description(unfinished, CONFIG, **entries)
        random_models.tokenizer().save(str(unfinished / "tokenizer.json"))
        save_params(unfinished, parameters())
    return folder


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def start(bundle: Path, log: Path, *flags: str) -> tuple[subprocess.Popen, str]:
    """The process and its address; it tells `log` of all that it compiles."""
    command = [sys.executable, "-m", "mem0_jax.cli", "plan", "serve", str(bundle), "--port", "0", *flags]
    environment = os.environ | {"MEM0_API_KEY": KEY, "JAX_LOG_COMPILES": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, env=environment, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "serving planner at http://127.0.0.1:" in line
    return process, line.split(" at ")[1].split(";")[0]


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def address(bundle, log):
    process, url = start(bundle, log, "--context", str(CONTEXT), "--max-images", "4", "--batch", "2")
    with log.open("a") as file:
        file.write("it listens\n")
    yield url
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def client(address) -> openai.OpenAI:
    return openai.OpenAI(api_key=KEY, base_url=address, timeout=300, max_retries=0)


@pytest.fixture(scope="module")
def expected(bundle):
    generator = load_generator(bundle, context=CONTEXT)
    return generator.generate([Prompt(chat_text(ASKED), tuple(ASKED.images))], Settings(max_tokens=300))[0]


def reference_messages() -> list:
    """As the reference's client writes them: the system prompt as a list of parts, text and images in turn."""
    system, user = chat_messages(ASKED)
    return [{"role": "system", "content": [{"type": "text", "text": system["content"]}]}, user]


def test_the_references_calls_are_answered(client, expected):
    answer = client.chat.completions.create(model=NAME, messages=reference_messages(), max_tokens=300)
    assert expected.finished
    assert len(expected.tokens) > 1
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)


def test_nothing_is_compiled_once_it_listens(client, log):
    """Questions of many lengths, with images of many sizes, alone and together, drawn and streamed."""
    rng = np.random.default_rng(1)

    def ask(number: int) -> None:
        sizes = [(40, 60), (240, 320), (9, 500)][: number % 4]
        pictures = [{"image_url": {"url": data_url(rng.integers(0, 256, (*size, 3), np.uint8))}} for size in sizes]
        content = [{"type": "text", "text": "w3 " * [1, 200, 300][number % 3]}]
        content += [{"type": "image_url"} | picture for picture in pictures]
        messages = [{"role": "user", "content": content}]
        stream = number == 5
        answer = client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=[3, 40][number % 2], temperature=float(number % 2), stream=stream
        )
        assert len(list(answer)) > 1 if stream else answer.choices[0].message.content is not None

    for number in range(4):
        ask(number)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(8)))
    before, after = log.read_text().split("it listens\n")
    assert before.count("Finished XLA compilation") > 10
    assert "Finished XLA compilation" not in after


def test_without_v1_in_the_address(client, address, expected):
    bare = openai.OpenAI(api_key=KEY, base_url=address.removesuffix("/v1"), timeout=300)
    answer = bare.chat.completions.create(model=NAME, messages=reference_messages(), max_tokens=300)
    assert answer.choices[0].message.content == expected.text
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="does not exist, only 'planner'"):
        client.models.retrieve("gpt")


def test_streaming_gives_the_same_in_pieces(client, expected):
    stream = client.chat.completions.create(
        model=NAME,
        messages=reference_messages(),
        max_tokens=300,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == expected.text
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens == len(expected.tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_many_at_once_and_one_that_goes_away(client, expected):
    def ask(number: int) -> str | None:
        if number == 3:
            hot = {"temperature": 50.0, "max_tokens": 300, "seed": 1}
            stream = client.chat.completions.create(model=NAME, messages=reference_messages(), stream=True, **hot)
            next(iter(stream))
            stream.close()
            return expected.text
        answer = client.chat.completions.create(model=NAME, messages=reference_messages(), max_tokens=300)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(6))) == {expected.text}


def test_errors_are_those_that_the_package_knows(client, address):
    def ask(text: str = "hi", model: str = NAME, **fields):
        return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **fields)

    with pytest.raises(openai.NotFoundError, match="does not exist, only 'planner'"):
        ask(model="gpt")
    with pytest.raises(openai.BadRequestError, match="context of 700 tokens") as caught:
        ask("hi " * 5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="context of 700"):
        ask(max_tokens=700)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(temperature=-1)
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    with pytest.raises(openai.BadRequestError, match="not followed"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": [part]}])
    with pytest.raises(openai.AuthenticationError, match="API key"):
        openai.OpenAI(api_key="wrong", base_url=address).models.list()


def post(url: str, body: bytes, kind: str = "application/json", key: str = KEY) -> tuple[int, dict]:
    headers = {"Content-Type": kind, "Authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=100) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_malformed_requests_leave_it_running(address):
    url = f"{address}/chat/completions"
    assert post(url, b"{")[0] == 400
    assert post(url, b"[" * 200_000)[0] == 400
    assert post(url, b"\xff\xfe")[0] == 400
    half = {"model": NAME, "messages": [{"role": "user", "content": "\ud800"}]}
    assert post(url, json.dumps(half).encode())[0] == 400
    assert post(url, b"{}", key="\u00ff")[0] == 401
    status, body = post(url, b"{}", "text/plain")
    assert (status, body["error"]["type"]) == (415, "invalid_request_error")
    assert post(f"{address}/nothing", b"{}")[0] == 404
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as half:  # goes away in the middle of its request
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n{")
    with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=100) as health:
        assert health.read() == b"OK\n"


BAD_BODIES = [
    (b"{", "the request is not JSON: line 1, column 2"),
    (b"\xff\xfe{", "the request is not JSON: it is not UTF-8"),
    (b"[" * 200_000, "the request is not JSON: it is nested too deeply"),
    (b'{"max_token": 3}', "max_token is not supported, did you mean 'max_tokens'?"),
    (b'{"n": 2}', "n: only 1 is supported"),
    (b'{"store": true}', "store: only false is supported"),
    (b'{"model": 3}', "model: expected a string, got a whole number"),
    (b'{"model": "planner", "messages": {}}', "messages: expected an array, got an object"),
    (b'{"model": "planner", "messages": []}', "messages: expected 1 to 256, got 0"),
    (b'{"model": "planner", "messages": [null]}', "messages[0]: expected an object, got null"),
    (
        b'{"stop": ["a", ""], "model": "planner", "messages": [{"role": "user", "content": "a"}]}',
        "letters, got 2 of 1, 0",
    ),
    (b'{"model": "planner", "messages": [{"role": "user", "content": [3]}]}', "text or image_url, got a whole number"),
]


@pytest.mark.parametrize(("body", "sentence"), BAD_BODIES)
def test_sentences_are_json_s_not_pythons(address, body, sentence):
    status, answer = post(f"{address}/chat/completions", body)
    assert status == 400
    assert sentence in answer["error"]["message"]


def test_pictures_that_are_none_are_told_in_words(address, log):
    def told(url: str, times: int = 1) -> str:
        parts = [{"type": "image_url", "image_url": {"url": url}}] * times
        body = {"model": NAME, "messages": [{"role": "user", "content": parts}]}
        return post(f"{address}/chat/completions", json.dumps(body).encode())[1]["error"]["message"]

    at = "messages[0].content[0].image_url.url: "
    assert told("data:image/png;base64,AAAA") == at + "no readable PNG or JPEG"
    assert (
        told("data:image/png;base64,A")
        == at + "no readable PNG or JPEG, what follows data:image/png;base64, is no base64"
    )
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    before = log.read_text()
    for number in range(3):  # Pillow warns of each
        size = b"IHDR" + struct.pack(">IIBBBBB", 10000, 10000 + number, 8, 2, 0, 0, 0)
        claims = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
        claims += bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        assert "pixels, more than" in told("data:image/png;base64," + base64.b64encode(claims).decode())
    assert log.read_text() == before
    assert told(url, 5) == "messages[0].content[4]: more than 4 images, this is number 5"


GARBAGE = {
    "tls": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(150),
    "http": bytes(range(128, 256)),
    "half": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Le",
    "silent": b"",
}


def test_garbage_is_told_in_few_lines(address, log):
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
    head += b"Content-Type: application/json\r\n"
    broken = [head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", head + b"Content-Length: 99\r\n\r\n{"]
    broken.append(head.replace(b"\r\n", b"\r\nExpect: tea\r\n", 1) + b"Content-Length: 0\r\n\r\n")
    broken.append(head + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")
    for data in [*GARBAGE.values(), *broken]:
        for number in range(10):
            with socket.create_connection((host, int(port)), timeout=100) as peer:
                peer.sendall(data)
                if number % 2:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    continue
                peer.shutdown(socket.SHUT_WR)
                answer = b""
                while part := peer.recv(2**16):
                    answer += part
                if answer:
                    said = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
                    assert said.replace("'Expect'", "").count("'") == said.count("ws://") == 0
    asked = urllib.request.Request(f"http://{host}:{port}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked, timeout=100) as answer:
        page = answer.read().decode()
    for kind in GARBAGE:
        found = re.search(rf'^mem0_garbage_total{{kind="{kind}"}} (\S+)$', page, re.M)
        assert found is not None
        assert float(found[1]) >= 5
    lines = log.read_text()
    assert "Traceback" not in lines
    assert 4 <= lines.count(" so far") < 30


def test_a_signal_lets_it_finish_what_runs(bundle, tmp_path):
    process, url = start(bundle, tmp_path / "stderr", "--context", "500", "--batch", "1")
    client = openai.OpenAI(api_key=KEY, base_url=url, timeout=300, max_retries=0)
    stream = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "hi"}],
        temperature=50.0,
        seed=3,
        max_tokens=400,
        stream=True,
    )
    chunks = iter(stream)
    next(chunks)
    process.send_signal(signal.SIGTERM)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("stop", "length")
    assert process.wait(60) == 0
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def ask_in_process(limits: ServerLimits, requests: int, stream: bool = False, kind=Generator) -> list[tuple[int, str]]:
    generator = kind(CONFIG, take_apart(parameters()), random_models.tokenizer())
    body = {"model": NAME, "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 30, "stream": stream}

    async def run():
        application = ChatServer(generator, NAME, limits=limits).application()
        async with TestClient(TestServer(application)) as client:

            async def one():
                async with client.post("/v1/chat/completions", json=body) as answer:
                    return answer.status, await answer.text()

            return await asyncio.gather(*(one() for _ in range(requests)))

    return asyncio.run(run())


def test_a_full_queue_says_so():
    answers = ask_in_process(ServerLimits(batch=1, queue=2), 12)
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 3
    refused = next(body for status, body in answers if status == 429)
    assert json.loads(refused)["error"]["type"] == "rate_limit_error"


class Cramped(Generator):
    """Breaks down in the middle of every batch of several answers, as for want of memory."""

    def generate(self, prompts, settings, on_text=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        answers = super().generate(prompts, settings, on_text)
        if len(prompts) > 1:
            raise MemoryError
        return answers


def test_a_batch_that_breaks_down_is_answered_one_by_one_and_nothing_is_said_twice():
    whole = ask_in_process(ServerLimits(), 1)[0]
    said = json.loads(whole[1])["choices"][0]["message"]["content"]
    for status, body in ask_in_process(ServerLimits(), 3, kind=Cramped):
        assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, said)
    broken = 0
    for _, body in ask_in_process(ServerLimits(), 3, stream=True, kind=Cramped):
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
        pieces = [event["choices"][0]["delta"].get("content", "") for event in events if "choices" in event]
        assert "".join(pieces) == said
        broken += "error" in events[-1]
    assert broken >= 2  # a first one may have been alone


def test_late_answers_and_large_requests_say_so():
    (late,) = ask_in_process(ServerLimits(seconds=0.2), 1)
    assert late[0] == 504
    assert "not answered within 0.2 s" in json.loads(late[1])["error"]["message"]
    (large,) = ask_in_process(ServerLimits(body_bytes=50), 1)
    assert large[0] == 413
    assert "bytes; at most 50 are taken" in json.loads(large[1])["error"]["message"]
