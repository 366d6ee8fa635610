"""What strangers, crowds and accidents do to a server, and what it shows of itself."""

import dataclasses
import gc
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from garbage import internal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import TASK, address, answer_of, assert_close, frame, serving
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mem0_jax.errors import UserError
from mem0_jax.inference.session import Session
from mem0_jax.policies.bundle import save_bundle
from mem0_jax.policies.inputs import Camera
from mem0_jax.serve.client import Client, ServerError, pack, unpack
from mem0_jax.serve.server import Settings
from mem0_jax.serve.service import Service


def flat(number: int = 0, /, **change) -> dict:
    seen = frame(number)
    plain = {"image": seen["observation"]["head_camera"]["rgb"], "state": seen["joint_action"]["vector"]}
    return plain | {"prompt": TASK} | change


def get(server, path: str, headers: dict | None = None, data: bytes | None = None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def holding(at: int, value: float) -> np.ndarray:
    state = np.zeros(14)
    state[at] = value
    return state


PICTURE = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
MISSPELT = (
    "bad_observation: the observation lacks observation.head_camera.rgb, or flat: 'observation/image'; the observation "
    "has imagee, prompt; 'imagee', did you mean 'image'?"
)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (flat(image=np.zeros((24, 32), np.uint8)), "bad_observation: image must be uint8"),
        (flat(image=np.zeros((24, 32, 3), np.float32)), "bad_observation: image must be uint8"),
        (flat(image=np.zeros((3, 24, 32), np.uint8)), "bad_observation: image must be uint8"),
        (flat(image=np.zeros((2049, 1, 3), np.uint8)), "bad_observation: image sides"),
        (flat(image=np.zeros((0, 5, 3), np.uint8)), "bad_observation: image sides"),
        (flat(image=np.zeros((24, 32, 3), bool)), "bad_observation: image must be uint8 [H, W, 3], RGB, got bool"),
        (flat(image=np.full((4, 5, 3), 256)), "bad_observation: image holds 256 at [0, 0, 0], beyond 0 to 255"),
        (flat(image=b"png"), "bad_observation: image must be uint8 [H, W, 3], RGB, got 3 bytes, no known file"),
        (flat(image=b"\x89PNG..."), "bad_observation: image must be uint8 [H, W, 3], RGB, got 7 bytes, a PNG file"),
        (flat(image=[[[1, 2, 3]], [[1, 2]]]), "bad_observation: image must be uint8 [H, W, 3], RGB, got a list of"),
        (flat(image=["a", "b"]), "bad_observation: image holds 'a' at [0], expected whole numbers from 0 to 255"),
        (flat(image=[{"a": 1}]), "bad_observation: image holds a map at [0], expected whole numbers from 0 to 255"),
        (flat(image=[[[None] * 3]]), "bad_observation: image holds nothing at [0, 0, 0], expected whole numbers"),
        (flat(image=[[[1, 2, 0.5]]]), "bad_observation: image holds 0.5 at [0, 0, 2], expected whole numbers"),
        (flat(image=[[[1, 2, np.nan]]]), "bad_observation: image holds NaN at [0, 0, 2], expected whole numbers"),
        (flat(image=[[[2**64 - 1, -1, 3]]]), f"bad_observation: image holds {2**64 - 1} at [0, 0, 0], expected"),
        (flat(image=[]), "bad_observation: image must be uint8 [H, W, 3], RGB, got an empty list"),
        (flat(image=[[[True, 2, 3]]]), "bad_observation: image holds true at [0, 0, 0], expected whole numbers"),
        (flat(image=[[[1, 2, 3]], [[4, np.bool_(0), 6]]]), "bad_observation: image holds false at [1, 0, 1], expected"),
        (
            flat(image=[np.ones((2, 3), int), np.ones((2, 3), bool)]),
            "bad_observation: image holds true at [1, 0, 0], e",
        ),
        (flat(image={}), "bad_observation: image must be uint8 [H, W, 3], RGB, got an empty map; pack arrays"),
        (flat(image=[[], []]), "bad_observation: image must be uint8 [H, W, 3], RGB, got an empty list"),
        (flat(image=np.full((1, 1, 3), np.inf)), "bad_observation: image holds infinity at [0, 0, 0], beyond 0 to 255"),
        (flat(image=np.array(3)), "bad_observation: image must be uint8 [H, W, 3], RGB, got 3"),
        (flat(state=np.array(1.5)), "bad_observation: state must be 14 or 16 numbers, got 1.5"),
        (
            flat(state={"nd": True, "kind": np.zeros(2), "type": "<f4", "shape": [14], "data": bytes(56)}),
            "bad_message: state: packed by msgpack-numpy, an array's kind must be bytes, got float64 [2]",
        ),
        (flat(image={"rgb": 1}), "bad_observation: image must be uint8 [H, W, 3], RGB, got a map of rgb; pack arrays"),
        (flat(state=np.zeros(15)), "bad_observation: state must be 14 or 16 numbers, got 15"),
        (flat(state=np.zeros((1, 14))), "bad_observation: state must be 14 or 16 numbers, got float64 [1, 14]"),
        (flat(state=holding(3, np.nan)), "bad_observation: state holds NaN at 3"),
        (flat(state=holding(13, np.nan).tolist()), "bad_observation: state holds NaN at 13"),
        (flat(state=holding(5, -np.inf)), "bad_observation: state holds -infinity at 5"),
        (flat(state=holding(0, 1e39)), "bad_observation: state holds 1e+39 at 0"),
        (flat(state=[0.0, None] * 7), "bad_observation: state holds nothing at 1"),
        (flat(state=["0"] * 14), "bad_observation: state holds text at 0"),
        (flat(state=[[0.0] * 14]), "bad_observation: state holds a list at 0"),
        (flat(state=[True] * 14), "bad_observation: state holds true or false at 0"),
        (flat(state="much"), "bad_observation: state must be 14 or 16 numbers, got text"),
        ({"frames": [flat(), flat(state=holding(1, np.nan))]}, "bad_observation: frames[1]: state holds NaN at 1"),
        (flat(prompt=7), "bad_message: prompt must be text"),
        (flat(prompt="x" * 2001), "bad_message: prompt must be text of at most 2000"),
        (flat(prompt=b"go"), "bad_message: prompt must be text of at most 2000 characters, got bytes"),
        (flat(prompt="go " * 99), "bad_request: the instruction 'go go"),
        (flat(prompt=""), "bad_message: the first message must tell"),
        (flat(type="dance"), "bad_message: type must be one of"),
        (flat(type=[]), "bad_message: type must be one of"),
        (flat(type=np.zeros(3)), "bad_message: type must be one of"),
        (
            flat(type="infr"),
            "bad_message: type must be one of infer, observe, reset, plan, batch, close, got 'infr', did",
        ),
        ({**flat(reset=True), "prompt": None}, "bad_message: prompt is missing"),
        (flat(reset=True, prompt=""), "bad_message: prompt is empty"),
        (flat(reset=True, task=""), "bad_message: task is empty"),
        ({"type": "reset"}, "bad_message: task is missing"),
        ({"type": "reset", "prompt": ""}, "bad_message: prompt is empty"),
        (flat(prompt=""), "bad_message: the first message must tell the policy what to do: prompt is empty"),
        (flat(reset=True, options={"threshold": np.nan}), "bad_message: option threshold must be a number, got NaN"),
        (
            {**flat(), "observation/state": np.ones(14)},
            "bad_observation: the observation has state and observation/stat",
        ),
        (
            {**flat(image={"a": PICTURE}), "observation/image": {"a": PICTURE}},
            "bad_observation: the observation la",
        ),
        (flat(session="\n"), "bad_message: session must be an id"),
        (flat(session=7), "bad_message: session must be an id of 1 to 128 printable characters, got 7"),
        (flat(reset=True, seed=np.array(2.5)), "bad_message: seed must be a whole number of at least 0 and at most 92"),
        (flat(session="x" * 129), "bad_message: session must be an id of 1 to 128 printable characters, got 129"),
        (flat(session_id="me"), "bad_message: unknown entry 'session_id', did you mean 'session'?"),
        (flat(frames=[flat()] * 64), "bad_message: frames must be a list, here of 0 to 63 observations, got 64"),
        (flat(frames="all"), "bad_message: frames must be a list"),
        (flat(after=1.5), "bad_message: after must be a whole number"),
        (flat(reset=True, seed=-1), "bad_message: seed must be a whole number"),
        (
            flat(reset=True, seed=2**63),
            f"bad_message: seed must be a whole number of at least 0 and at most {2**63 - 1}",
        ),
        (flat(reset=1), "bad_message: reset must be true or false, got 1"),
        (flat(reset=True, options={"patience": True}), "bad_message: option patience must be a whole number, got true"),
        (flat(reset=True, options={"pacience": 1}), "bad_message: options must be a map of n_action_steps, average, t"),
        (flat(reset=True, planner="me"), "bad_message: planner must be one of"),
        (flat(reset=True, planner=np.zeros(3)), "bad_message: planner must be one of"),
        ({"type": "batch", "messages": []}, "bad_message: messages must be a list, here of 1 to 64 messages, got 0"),
        (
            {"type": "batch", "messages": [1] * 65},
            "bad_message: messages must be a list, here of 1 to 64 messages, got 65",
        ),
        ({"type": "plan", "subtask": "go", "prompt": TASK}, "bad_request: no subtask is needed"),
        ([1, 2], "bad_message: a message must be a map"),
        ({"observation": {}, "prompt": TASK}, "bad_observation: the observation lacks"),
        ({"imagee": 1, "prompt": TASK}, MISSPELT),
    ],
)
def test_wrong_requests_are_told_what_is_wrong_and_the_connection_lives(server, message, answer):
    with connect(address(server), max_size=None) as ws:
        ws.recv()
        ws.send(pack(message))
        assert str(ws.recv()).startswith(answer)
        ws.send(pack(flat(reset=True)))
        assert answer_of(ws)["actions"].shape == (3, 14)


def test_numbers_may_be_arrays_without_axes(server):
    with connect(address(server), max_size=None) as ws:
        ws.recv()
        options = {"n_action_steps": np.array(2), "threshold": np.array(0.5)}
        ws.send(pack(flat(reset=np.array(True), seed=np.array(5), options=options, after=np.array(-1))))
        found = answer_of(ws)["actions"]
        for name in ("n_action_steps", "action_horizon"):  # as older clients call it
            ws.send(pack(flat(reset=True, seed=5, options={name: 2, "threshold": 0.5})))
            again = answer_of(ws)["actions"]
            assert len(again) == 2
            assert_close(found, again)


def test_another_camera_is_refused_with_both_names(bundle):
    wrist = dataclasses.replace(
        bundle, inputs=dataclasses.replace(bundle.inputs, cameras=(Camera("observation.images.wrist", (32, 32)),))
    )
    seen = frame(0)
    image, state = seen["observation"]["head_camera"]["rgb"], seen["joint_action"]["vector"]
    own = {"observation": {"wrist": {"rgb": image}, "head_camera": {"rgb": image}}, "joint_action": {"vector": state}}
    named = ("observation/head_camera/rgb", "observation.images.head_camera", "observation.image.head_camera")
    refused = "the policy was trained on the camera 'wrist', the observation has 'head_camera'"
    with serving(lambda: Service(wrist, slots=64, rows=8)) as server, connect(address(server)) as ws:
        assert answer_of(ws)["camera"] == "wrist"
        for other in (seen, *({name: image, "state": state} for name in named)):
            ws.send(pack({"type": "infer", "reset": True, "prompt": TASK, **other}))
            assert ws.recv() == f"bad_observation: {refused}"
            ws.send(pack({"type": "infer", "reset": True, "prompt": TASK, "frames": [other, own]}))
            assert str(ws.recv()).endswith(refused)
        for right in (own, flat(), {"observation/wrist/rgb": image, "state": state}):
            ws.send(pack({"type": "infer", "reset": True, "prompt": TASK, **right}))
            assert answer_of(ws)["actions"].shape == (3, 14)
        with Client(address(server)) as policy:
            policy.reset(TASK)
            with pytest.raises(ValueError, match=refused):
                policy.observe(seen)
            assert policy.infer(own)["actions"].shape == (3, 14)
        kind, body = form({"text": TASK}, [png(image)])
        status, answer = get(server, "/process_frame", kind, body)
        assert (status, len(json.loads(answer)["response"])) == (200, 3)


OTHERS = {  # the layouts of RMBench, LeRobot, and openpi's policies for ALOHA, DROID and LIBERO
    "observation/head_camera": PICTURE,
    "observation/exterior_image_1_left": PICTURE,
    "observation/wrist_image_left": PICTURE.astype(np.float32) / 255,
    "observation.images.top": PICTURE,
    "observation/images/top": PICTURE,
    "observation": {"head_camera": {"rgb": PICTURE}},
    "observation ": {"images": {"top": PICTURE}},
    "images": {"cam_high": PICTURE.transpose(2, 0, 1), "cam_left": PICTURE.transpose(2, 0, 1)},
    "image": {"base_0_rgb": PICTURE},
    "base_0_rgb": PICTURE[None],
    "wrist_image": PICTURE.tolist(),
    "front": PICTURE,
    "image_left": PICTURE,
    "camera/front": b"\x89PNG...",
}


@pytest.fixture(scope="module")
def wrist(bundle):
    """A server of a policy trained on another camera."""
    inputs = dataclasses.replace(bundle.inputs, cameras=(Camera("observation.images.wrist_left", (32, 32)),))
    with serving(lambda: Service(dataclasses.replace(bundle, inputs=inputs), slots=8, rows=8)) as server:
        yield server


def asked(server, **message) -> str | dict:
    with connect(address(server), max_size=None) as ws:
        ws.recv()
        ws.send(pack({"reset": True, "prompt": TASK, "state": np.zeros(14)} | message))
        answer = ws.recv()
        return answer if isinstance(answer, str) else unpack(answer)


@pytest.mark.parametrize("key", OTHERS)
def test_no_hint_leads_to_another_camera(wrist, key):
    """Alone, and beside a picture that names no camera; beside the right one it does no harm."""
    other = {key.strip(): OTHERS[key]}
    trained = "the policy was trained on the camera 'wrist_left', the observation has '"
    for more in ({}, {"frames": [{"image": PICTURE, "state": np.zeros(14)}]}):
        alone = str(asked(wrist, **other, **more))
        assert trained in alone
        assert "did you mean" not in alone
        assert "'observation/image'" not in alone
    for unnamed in ("image", "observation/image"):
        if unnamed not in other:
            beside = str(asked(wrist, **other, **{unnamed: PICTURE}))
            assert trained in beside
            assert f"{unnamed!r} names none of them: name the right picture 'observation/wrist_left/rgb'" in beside
            assert trained in str(asked(wrist, frames=[{**other, unnamed: PICTURE, "state": np.zeros(14)}]))
    right = asked(wrist, **other, **{"observation/wrist_left/rgb": PICTURE})
    assert isinstance(right, dict) or "and they differ" in right


@pytest.mark.parametrize(
    "observation",
    [
        {"observation.images.wrist_left": PICTURE, "observation.state": np.zeros(14)},
        {"observation.image.wrist_left": PICTURE}, {"wrist_left": PICTURE}, {"observation/wrist_left/rgb": PICTURE},
        {"observation": {"wrist_left": {"rgb": PICTURE, "depth": PICTURE[..., 0]}, "head": {"rgb": PICTURE}}},
        {"observation": {**{f"c{i}": {"rgb": PICTURE} for i in range(40)}, "wrist_left": {"rgb": PICTURE}}},
        {"image": PICTURE, "depth": np.zeros((24, 32, 1), np.float32), "history": np.zeros((5, 14, 3))},
        {"image": PICTURE, "observation/wrist_left/rgb": PICTURE},
    ],
)  # fmt: skip
def test_the_policys_camera_under_the_names_of_others(wrist, observation):
    answer = asked(wrist, **observation)
    assert isinstance(answer, dict), answer
    assert answer["actions"].shape == (3, 14)


def test_two_pictures_for_one_are_refused(wrist):
    for unnamed in ("image", "observation/image"):
        for name in ("observation/wrist_left/rgb", "observation.images.wrist_left"):
            answer = asked(wrist, **{name: PICTURE, unnamed: 255 - PICTURE})
            assert answer == f"bad_observation: the observation has {name} and {unnamed}, and they differ: give one"
    assert isinstance(asked(wrist, images={"wrist_left": PICTURE}, image=PICTURE), dict)
    answer = str(asked(wrist, images={"wrist_left": PICTURE}, image=255 - PICTURE))
    assert answer == "bad_observation: the observation has images.wrist_left and image, and they differ: give one"


def test_bytes_that_are_no_message(server):
    with connect(address(server)) as ws:
        ws.recv()
        for data in (b"", b"\xc1", b"\x91" * 1000, os.urandom(100), "text"):
            ws.send(data)
            assert str(ws.recv()).startswith("bad_message: ")
        most = server.service.limits.message
        ws.send(bytes(most + 1))
        assert str(ws.recv()).startswith(f"too_large: the message has {most + 1} bytes; at most")
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["type", "session", "env", "prompt", "frames", "after", "reset", "task", "seed", "planner", "options", "messages",
     "image", "state", "subtask", "observation", "joint_action"]
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, JUNK, max_size=4), st.booleans())
def test_any_values_get_an_answer_and_spoil_nothing(server, junk, whole):
    with connect(address(server)) as ws:
        ws.recv()
        ws.send(pack((flat() if whole else {}) | junk))
        answer = ws.recv()
        assert isinstance(answer, bytes) or not answer.startswith("failed")
        assert isinstance(answer, bytes) or not internal(answer)
        ws.send(pack({"type": "close", "session": junk.get("session")}))
        ws.recv()


def test_clients_that_die_mid_message_or_never_read_harm_nobody(server, bundle):
    local = Session(bundle)
    local.reset(TASK)
    with connect(address(server)) as living:
        living.recv()
        for number in range(4):
            with connect(address(server)) as dying:
                dying.recv()
                dying.send(pack(flat(number)))
                if number % 2:
                    dying.recv()
                    dying.socket.sendall(b"\x82\xfe\xff\xff" + bytes(100))  # the beginning of a long frame
                dying.socket.shutdown(socket.SHUT_RDWR)
            living.send(pack(flat(number)))
            local.observe(frame(number))
            assert_close(answer_of(living)["actions"], local.act())
    for _ in range(50):
        if not len(server.service.sessions):
            break
        time.sleep(0.1)
    assert len(server.service.sessions) == 0


def test_a_client_that_never_reads_is_cut_off_and_holds_up_nobody(bundle):
    """A bare socket with little room: answers of 64 errors each soon find no place."""
    questions = pack({"type": "batch", "messages": [{"type": "dance"}] * 64})
    message = b"\x82\xfe" + struct.pack(">H", len(questions)) + bytes(4) + questions  # masked with zeros
    greeting = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    greeting += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    brief = Settings(port=0, send_seconds=0.5)
    with serving(lambda: Service(bundle, slots=1, rows=1), brief) as server, socket.socket() as mute:
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.settimeout(60)
        mute.connect(("127.0.0.1", server.port))
        mute.sendall(greeting.encode())
        assert mute.recv(12) == b"HTTP/1.1 101"

        def flood() -> None:
            while True:
                mute.sendall(message)

        with ThreadPoolExecutor(1) as pool, Client(address(server)) as policy:
            flooding = pool.submit(flood)
            policy.reset(TASK)
            assert policy.infer(frame(0))["actions"].shape == (3, 14)
            assert isinstance(flooding.exception(90), ConnectionError)
            assert policy.infer(frame(1))["time"] == 1
            assert len(server._connections) == 1  # the mute one is forgotten


def test_other_sites_pages_and_other_names_are_turned_away(server):
    host = f"127.0.0.1:{server.port}"
    for path in ("/", "/sessions", "/metrics"):
        assert get(server, path, {"Origin": "http://evil.example"})[0] == 403
        assert get(server, path, {"Host": "evil.example"})[0] == 403
        assert get(server, path, {"Origin": f"http://{host}"})[0] == 200
    with pytest.raises(InvalidStatus):
        connect(address(server), origin="http://evil.example")  # pyright: ignore[reportArgumentType]


def test_the_token(bundle):
    with serving(lambda: Service(bundle, slots=2, rows=2), Settings(port=0, token="s3cret")) as closed:
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "Basic s3cret"}):
            assert get(closed, "/sessions", headers)[0] == 401
            assert get(closed, "/metrics", headers)[0] == 401
        for kind in ("Api-Key", "Bearer", "bearer"):
            assert get(closed, "/sessions", {"Authorization": f"{kind} s3cret"})[0] == 200
        assert [get(closed, path)[0] for path in ("/", "/healthz")] == [200, 200]
        with pytest.raises(ServerError) as caught:
            Client(address(closed), token="wrong")
        assert caught.value.kind == "unauthorized"
        with Client(address(closed), token="s3cret") as policy:
            policy.reset(TASK)
            assert policy.infer(frame(0))["actions"].shape == (3, 14)


def form(fields: dict[str, str], images: list[bytes]) -> tuple[dict[str, str], bytes]:
    parts = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="f.png"\r\n\r\n'
    parts += [head + image + b"\r\n" for image in images]
    return {"Content-Type": "multipart/form-data; boundary=x"}, b"".join([*parts, b"--x--\r\n"])


def png(image: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG that ends after its size."""
    size = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    return data + bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


WHOLE = form({"text": TASK}, [b"a"])[1]


def told(server, fields: dict[str, str], image: bytes) -> str:
    headers, data = form(fields, [image])
    return json.loads(get(server, "/process_frame", headers, data)[1])["error"]["message"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (png(np.full((30, 40), 40000, np.uint16)), "the file 'image' has the mode I;16, as depth maps have"),
        (claims(2049, 5), "image sides must be 1 to 2048 pixels, got 5 x 2049"),
        (claims(10000, 10001), "image sides must be 1 to 2048 pixels, got 10001 x 10000"),
        (claims(30000, 30000), "image sides must be 1 to 2048 pixels, got far more"),
        (claims(8, 8), "the file 'image' is a PNG picture that is damaged or cut off"),
        (b"\x89PNG\r\n\x1a\n", "the file 'image' is a PNG picture that is damaged or cut off"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "the file 'image' is a JPEG picture that is damaged or cut off"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "the file 'image' is a WebP picture that is damaged or cut off"),
        (b"GIF89a" + bytes(50), "the file 'image' is no PNG, JPEG, WebP or BMP picture"),
        (b"", "the file 'image' is no PNG, JPEG, WebP or BMP picture"),
    ],
)
def test_pictures_that_are_not_taken(server, image, words):
    assert words in told(server, {"text": TASK}, image)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "x" * 2001}, "text must be text of at most 2000 characters, got 2001"),
        ({"text": TASK, "temperature": "nonsense"}, "temperature must be JSON, got 'nonsense'"),
        ({"text": TASK, "temperature": "[]"}, "temperature must be a number, got a list"),
        (
            {"text": TASK, "state": json.dumps([0] * 14), "states": json.dumps([1] * 14)},
            "has states and state, and they",
        ),
        (
            {"text": TASK, "reset": "1", "episode_first_frame": "False"},
            "has episode_first_frame and reset, and they di",
        ),
        ({"text": ""}, "the form's field 'text' is empty"),
        ({}, "the form's field 'text' is missing"),
        ({"_charset_": "x" * 32, "text": TASK}, "or begin with a field _charset_, which is not taken"),
        ({"_charset_": "utf-16", "text": TASK}, "or begin with a field _charset_, which is not taken"),
        ({'text"\r\nContent-Type: text/plain; charset="utf-16': TASK}, "text in UTF-8, the form says 'utf-16'"),
    ],
)
def test_fields_that_are_wrong(server, fields, words):
    assert words in told(server, fields, png(np.zeros((4, 4, 3), np.uint8)))


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("", b"--x--\r\n", "name a boundary"), ("; boundary=" + "x" * 71, b"--x--\r\n", "at most 70 characters"),
        ("; boundary=y", WHOLE, "it ends before"), ("; boundary=x", b"", "it ends before"),
        *(("; boundary=x", WHOLE[:size], "it ends before") for size in (3, 20, 60, len(WHOLE) - 6)),
        ("; boundary=x", b"--x\r\nno colon\r\n\r\nabc\r\n--x--\r\n", "none of multipart/form-data, or begin with a f"),
    ],
)  # fmt: skip
def test_a_form_that_is_damaged_is_told_where(server, kind, data, words):
    answer = get(server, "/process_frame", {"Content-Type": f"multipart/form-data{kind}"}, data)[1]
    message = json.loads(answer)["error"]["message"]
    assert message.startswith("the form is damaged: ")
    assert words in message
    assert ("_charset_" in message) == ("or begin" in words)


def test_a_picture_is_turned_as_it_says(server):
    """As in datasets: a telephone's camera held upright; what else its EXIF holds may be damaged."""
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112], exif[0x010F] = 6, "maker" * 5
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    whole = file.getvalue()
    damaged = whole.replace(b"\x01\x0f\x00\x02", b"\x02\x05\x00\x02")
    assert damaged != whole
    headers, data = form({"text": TASK, "session": "upright", "reset": "1"}, [whole, damaged])
    assert get(server, "/process_frame", headers, data)[0] == 200
    (session,) = (one for one in server.service.sessions if one.id == "upright")
    assert session.image.shape == (40, 20, 3)
    server.service.sessions.drop(session)


def test_process_frame(server, bundle):
    seen = [frame(number) for number in range(3)]
    files = [png(one["observation"]["head_camera"]["rgb"]) for one in seen]
    state = seen[2]["joint_action"]["vector"].astype(float).tolist()
    local = Session(bundle)
    local.reset(TASK, seed=5)
    for one in seen:
        local.observe(one | {"joint_action": {"vector": np.array(state)}})
    expected = local.act()

    def post(fields, images):
        headers, data = form(fields, images)
        code, text = get(server, "/process_frame", headers, data)
        return code, json.loads(text)

    code, answer = post({"text": TASK, "state": json.dumps(state), "seed": "5"}, files)
    assert code == 200
    assert_close(answer["response"], expected)
    begin = {"text": TASK, "session": "curl", "state": json.dumps(state)}
    assert post(begin, files[:1])[0] == 404
    assert post(begin | {"episode_first_frame": "True", "seed": "5"}, files[:2])[1]["time"] == 1
    code, answer = post(begin, files[2:])  # the memory of the session goes on
    assert_close(answer["response"], expected)
    assert np.shape(post({"text": TASK}, files[:1])[1]["response"]) == (3, 14)  # no state given
    for fields, images, kind in (
        ({"text": TASK}, [], "bad_message"),
        ({"text": TASK}, [b"GIF89a"], "bad_observation"),
        ({"text": TASK}, [files[0][:60]], "bad_observation"),
        ({"text": TASK, "state": "[1, 2"}, files, "bad_message"),
        ({"text": TASK, "state": "[1, 2]"}, files, "bad_observation"),
        ({"text": TASK, "color": "red"}, files, "bad_message"),
        ({"text": TASK}, [bytes(server.service.limits.message)], "too_large"),
        ({}, files, "bad_message"),
    ):
        assert post(fields, images)[1]["error"]["kind"] == kind
    assert get(server, "/process_frame", {"Content-Type": "multipart/form-data"}, b"x")[0] == 400
    assert get(server, "/process_frame", {"Content-Type": "text/plain"}, b"x")[0] == 400
    next(iter(server.service.sessions)).used = -1e9
    server.service.sessions.expire()


def test_metrics_count(server):
    def read(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", get(server, "/metrics")[1], re.M)
        return float(found[1]) if found else 0.0

    names = ('mem0_requests_total{type="infer"}', 'mem0_errors_total{kind="bad_message"}', "mem0_batch_size_count")
    before = [read(name) for name in names]
    with Client(address(server)) as policy:
        policy.reset(TASK)
        policy.infer(frame(0))
        assert read("mem0_sessions") == 1
        with pytest.raises(ServerError):
            policy._call({"type": "nonsense"})
    assert [read(name) - old for name, old in zip(names, before)] == [1, 1, 1]
    assert (read("mem0_sessions"), read("mem0_queue")) == (0, 0)


HOSTILE = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"


def test_the_page_shows_sessions_and_runs_nobodys_script(server):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium")
    with Client(address(server), env="<b>robot</b>", session="</script>'\"") as policy:
        policy.reset(TASK)
        policy.infer(frame(0))
        policy.reset(HOSTILE[:100])
        policy._frames = []
        run = subprocess.run(
            [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom",
             f"http://127.0.0.1:{server.port}/"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    shown = run.stdout
    assert "<title>Policy server</title>" in shown
    assert "&lt;img src=x onerror=" in shown
    assert "&lt;b&gt;robot&lt;/b&gt; \u00b7 &lt;/script&gt;'\"" in shown
    assert "1 of 64 sessions" in shown
    assert "no frame yet" in shown
    policy_of_page = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy_of_page
    assert "unsafe" not in policy_of_page


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_thousands_of_messages_leave_nothing_behind(server):
    def soak(rounds: int) -> None:
        for number in range(rounds):
            with connect(address(server), max_size=None) as ws:
                ws.recv()
                for step in range(20):
                    ws.send(pack(flat(step, session=f"s{number % 7}", reset=step == 0)))
                    ws.recv()
                ws.send(b"\xc1")
                ws.recv()
                ws.send(pack({"type": "close", "session": f"s{number % 7}"}))
                ws.recv()

    soak(20)
    before = resident()
    soak(100)
    assert resident() - before < 24 * 2**20  # 2,000 pictures alone would be 4.6 MB, their messages more
    assert len(server.service.sessions) == 0


def test_what_a_service_cannot_be(bundle):
    with pytest.raises(UserError, match="must be positive"):
        Service(bundle, slots=0)
    with pytest.raises(UserError, match="must be positive"):
        Service(bundle, idle_seconds=0.0)


def test_the_command_serves_until_it_is_told_to_stop(bundle, tmp_path):
    """The real process: health, a session, SIGTERM while a connection is open."""
    folder = save_bundle(bundle, tmp_path / "bundle")
    command = [sys.executable, "-m", "mem0_jax.cli", "serve", str(folder), "--port", "0", "--rows", "2"]
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with subprocess.Popen(
        [*command, "--sessions", "2", "--token-file", str(token), "--n-action-steps", "2"],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            port = int(re.findall(r"ready: ws://127.0.0.1:(\d+)", lines[1])[0])
            assert "curl -H 'Authorization: Api-Key TOKEN' -F text=" in lines[2]
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").read() == b"OK\n"
            policy = Client(f"ws://127.0.0.1:{port}", token="s3cret")
            policy.reset(TASK)
            assert policy.infer(frame(0))["actions"].shape == (2, 14)
            before = (tmp_path / "log").read_text()
            for number in range(3):  # of which Pillow and aiohttp warn, of each in other words
                headers, data = form({"text": TASK}, [claims(10000, 10000 + number)])
                data += b"--x\r\nContent-Disposition: form-data; %d; name\r\n\r\n\r\n--x--\r\n" % number
                for part in (data, data[data.rindex(b"--x\r\n") :]):
                    url, head = f"http://127.0.0.1:{port}/process_frame", headers | {"Authorization": "Api-Key s3cret"}
                    with pytest.raises(urllib.error.HTTPError, match="400"):
                        urllib.request.urlopen(urllib.request.Request(url, part, head), timeout=60)
            assert (tmp_path / "log").read_text() == before
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert process.stdout.read() == "stopped\n"
            policy.observe(frame(1))
            policy.timeout = 0.5
            with pytest.raises((ConnectionError, TimeoutError, ServerError)):
                policy.act()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "1"], "cannot listen on|Permission"),
        (["--n-action-steps", "9"], "n_action_steps must lie between 1 and"),
        (
            ["--action-horizon=9"],
            r"(?s)is now called --n-action-steps.*n_action_steps must lie",
        ),
        (["--flow-steps", "0"], "flow steps must be at least 1"),
        (["--token-file", "missing"], "--token-file missing"),
        (["--sessions", "0"], "must be positive"),
        (["--planner-summary"], "need --planner"),
        (["--planner", "localhost"], "--planner is 'localhost'; expected a planner's folder, or an address"),
        (["--planner", "http://localhost", "--planner-timeout", "0"], "the planner's timeout is 0.0 s"),
        (["--planner", "http://localhost", "--planner-key-file", "missing"], "--planner-key-file missing"),
    ],
)
def test_wrong_flags_are_named(bundle, tmp_path, flags, message, capsys, monkeypatch):
    from mem0_jax.cli import main

    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")  # nothing is kept of this process
    if flags[0] == "--port":
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            flags = ["--port", str(taken.getsockname()[1])]
            assert main(["serve", str(save_bundle(bundle, tmp_path / "bundle")), *flags]) == 1
    else:
        assert main(["serve", str(save_bundle(bundle, tmp_path / "bundle")), *flags]) == 1
    assert re.search(message, capsys.readouterr().err)
