"""The policy server's HTTP road.

POST /process_frame, as users of Dexbotic know it: a form with the field `text` and the file `image`; the answer is
`{"response": [[...], ...]}`, one row an action. More fields, all optional:

    image                further files: frames, oldest first, the last one is now; of a policy with several cameras,
                         each frame's pictures follow one another in the order of its cameras
    image.CAMERA         instead of `image`: the files of a camera by its name, as many of each
    state, states        a JSON list of the state's numbers; by default the middle of what the policy was trained on
    session              an id; without it every request begins anew
    episode_first_frame  "True": begin an episode; also `reset`. Needed where the session is new
    seed                 of the sampling of actions, where an episode begins
    temperature          a number; it changes nothing

Errors are `{"error": {"kind", "message"}}` with a fitting status. GET / is a page of live sessions, GET /sessions what
it shows, as JSON; GET /metrics is for Prometheus, GET /healthz says 200 when the policy is warm.
"""

import asyncio
import base64
import io
import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from PIL import Image

from mem0_jax.data.picture_file import DAMAGE, FORMATS, PictureModeError, form_of, rgb, turned
from mem0_jax.errors import did_you_mean
from mem0_jax.serve.client import brief, same
from mem0_jax.serve.page import CONTENT_SECURITY_POLICY, PAGE
from mem0_jax.serve.protocol import RequestError, text_of
from mem0_jax.serve.service import Service
from mem0_jax.serve.sessions import Session

STATUS = {"unknown_session": 404, "in_use": 409, "full": 503, "busy": 503, "stopping": 503, "planner": 502}
STATUS |= {"failed": 500, "too_large": 413, "too_slow": 408}
FIELDS = ("text", "state", "states", "session", "episode_first_frame", "reset", "seed", "temperature")
FLAGS = {"true": True, "1": True, "false": False, "0": False, "": False}
FORM_SECONDS = 60.0  # for a form to arrive
_MADE_UP = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)  # ids that programs make
THUMBNAIL = 320  # pixels of the longer side
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def refuse(kind: str, message: str, status: int | None = None) -> web.Response:
    """An error as JSON."""
    code = status or STATUS.get(kind, 400)
    head = _SAFE | ({"Upgrade": "websocket", "Sec-WebSocket-Version": "13"} if code == 426 else {})
    return web.json_response({"error": {"kind": kind, "message": message}}, status=code, headers=head)


def page() -> web.Response:
    """The page of live sessions; it holds no data."""
    policy = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}
    return web.Response(text=PAGE, content_type="text/html", headers=_SAFE | policy)


def add_routes(app: web.Application, service: Service) -> None:
    """The routes beside "/"."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="OK\n") if service.healthy else web.Response(text="not ready\n", status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=service.metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def sessions(_: web.Request) -> web.Response:
        return web.json_response(await _overview(service), headers=_SAFE)

    async def process_frame(request: web.Request) -> web.Response:
        try:
            if not service.ready.is_set():
                raise RequestError("busy", "the policy is still warming up: try again")
            return web.json_response(await _process_frame(request, service), headers=_SAFE)
        except RequestError as error:
            return refuse(error.kind, str(error))

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/sessions", sessions)
    app.router.add_post("/process_frame", process_frame)


async def _process_frame(request: web.Request, service: Service) -> dict[str, Any]:
    try:
        arriving = _form(request, service.limits.message, service.limits.frames, service.senses.cameras)
        fields, files = await asyncio.wait_for(arriving, FORM_SECONDS)
    except TimeoutError:
        raise RequestError("too_slow", f"the form did not arrive within {FORM_SECONDS:g} s") from None
    views = _views(files, service.senses.cameras)
    side = service.limits.side
    decoded = await asyncio.to_thread(lambda: [[_decode(data, side) for data in frame.values()] for frame in views])
    state = _once(fields, ("states", "state"), _json)
    state = _middle(service) if state is None else state
    frames = [{"images": dict(zip(service.senses.cameras, images)), "state": state} for images in decoded]
    begin = _once(fields, ("episode_first_frame", "reset"), _flag)
    temperature = _json(fields, "temperature")  # of samplers this policy has not
    if type(temperature) not in (int, float, type(None)):
        raise RequestError("bad_message", f"temperature must be a number, got {brief(temperature)}")
    text = text_of(fields, "text", service.limits.text)
    message = {"frames": frames, "prompt": text, "session": fields.get("session") or None}
    if begin or not message["session"]:
        if not message["prompt"]:
            what = "missing" if text is None else "empty"
            raise RequestError("bad_message", f"the form's field 'text' is {what}: what the policy is to do")
        message |= {"reset": True, "seed": _json(fields, "seed")}
    caller = object()
    try:
        answer = await service.answer(message, caller)
    finally:
        service.sessions.leave(caller)
    shown = ("session", "time", "stage", "instruction", "subtask_ended", "plan_needed", "end_probability")
    found = {name: answer[name] for name in shown if name in answer}
    return {"response": np.asarray(answer.get("actions", [])).tolist(), **found}


def _views(files: list[tuple[str, bytes]], cameras: tuple[str, ...]) -> list[dict[str, bytes]]:
    """The picture files of each frame by camera, from files by field."""
    if not files:
        raise RequestError("bad_message", "the form has no file 'image'")
    if all(name == "image" for name, _ in files):
        if len(files) % len(cameras):
            whose = f"the policy's {len(cameras)} cameras, {', '.join(cameras)}"
            raise RequestError("bad_message", f"{len(files)} files 'image' cannot be shared out to {whose}")
        starts = range(0, len(files), len(cameras))
        return [{name: data for name, (_, data) in zip(cameras, files[start:])} for start in starts]
    named = {camera: [data for name, data in files if name == f"image.{camera}"] for camera in cameras}
    counts = {camera: len(found) for camera, found in named.items()}
    if len(set(counts.values())) > 1 or sum(counts.values()) < len(files):
        found = ", ".join(f"{count} of {camera}" for camera, count in counts.items())
        raise RequestError("bad_message", f"name all files image.CAMERA, as many of each camera; got {found}")
    return [dict(zip(cameras, frame)) for frame in zip(*named.values())]


async def _form(
    request: web.Request, most: int, frames: int, cameras: tuple[str, ...]
) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """Text fields and image files of a multipart form, of at most so many bytes and frames together."""
    kinds, files = ("image", *(f"image.{camera}" for camera in cameras)), frames * len(cameras)
    if request.content_type != "multipart/form-data":
        raise RequestError("bad_message", "expected a form: curl -F text=... -F image=@frame.png")
    fields: dict[str, str] = {}
    images: list[tuple[str, bytes]] = []
    left, part = most, None
    try:
        reader = await request.multipart()
    except ValueError:
        why = "its Content-Type must name a boundary of at most 70 characters, as HTTP libraries do by themselves"
        raise RequestError("bad_message", f"the form is damaged: {why}") from None
    try:
        async for part in reader:
            name = part.name if isinstance(part, BodyPartReader) else None
            if not name and request.content.at_eof():
                raise ValueError("in the head of a part")
            if not isinstance(part, BodyPartReader) or name not in (*kinds, *FIELDS):
                hint = did_you_mean((name or "")[:40], (*kinds, *FIELDS))
                may = ", ".join((*(kinds if len(cameras) > 1 else kinds[:1]), *FIELDS))
                raise RequestError("bad_message", f"the form may have {may}; unknown field{hint}")
            if name in fields:
                raise RequestError("bad_message", f"the form has {name} twice")
            data = bytearray()
            while chunk := await part.read_chunk(2**16):
                data += chunk
                left -= len(chunk)
                if left < 0:
                    size = request.content_length or f"more than {most}"
                    raise RequestError("too_large", f"the form has {size} bytes; at most {most} are taken")
            if name not in kinds:
                fields[name] = _text(name, data, part.get_charset("utf-8"))
            elif len(images) == files:
                raise RequestError("bad_message", f"the form has more than {files} files 'image', the most it may")
            else:
                images.append((name, bytes(data)))
    except (ValueError, RuntimeError, HttpProcessingError):
        why = "its parts are none of multipart/form-data"
        if request.content.at_eof():
            why = "it ends before the line that ends it, its boundary between two pairs of hyphens"
        elif part is None:  # aiohttp cannot read it
            why += ", or begin with a field _charset_, which is not taken"
        raise RequestError("bad_message", f"the form is damaged: {why}") from None
    return fields, images


def _text(name: str, data: bytearray, charset: str) -> str:
    try:
        if charset.lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
            raise RequestError("bad_message", f"{name} must be text in UTF-8, the form says {charset[:40]!r}")
        return data.decode()
    except UnicodeDecodeError:
        raise RequestError("bad_message", f"{name} must be text in UTF-8") from None


def _flag(fields: dict[str, str], name: str) -> bool:
    flag = FLAGS.get(fields.get(name, "").lower())
    if flag is None:
        raise RequestError("bad_message", f"{name} must be True or False, got {fields[name][:40]!r}")
    return flag


def _decode(data: bytes, side: int) -> np.ndarray:
    """A picture file as uint8 [H, W, 3]; its size is checked before anything is unpacked."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if max(image.size) > side:
                found = f"{image.height} x {image.width}"
                raise RequestError("bad_observation", f"image sides must be 1 to {side} pixels, got {found}")
            return rgb(turned(image))  # as datasets are read
    except PictureModeError as error:
        raise RequestError("bad_observation", f"the file 'image' {error}") from None
    except Image.DecompressionBombError:
        raise RequestError("bad_observation", f"image sides must be 1 to {side} pixels, got far more") from None
    except DAMAGE:
        form = form_of(data)
        what = f"a {form} picture that is damaged or cut off" if form else "no PNG, JPEG, WebP or BMP picture"
        raise RequestError("bad_observation", f"the file 'image' is {what}") from None


def _once(fields: dict[str, str], names: tuple[str, str], read: Callable[[dict[str, str], str], Any]) -> Any:
    """The value of a field that has two names; under both it must be the same."""
    found = [read(fields, name) for name in names if name in fields]
    if len(found) == 2 and not same(*found):
        raise RequestError("bad_message", f"the form has {names[0]} and {names[1]}, and they differ: give one")
    return found[0] if found else None


def _json(fields: dict[str, str], name: str) -> Any:
    try:
        return json.loads(fields[name]) if fields.get(name) else None
    except (ValueError, RecursionError):
        raise RequestError("bad_message", f"{name} must be JSON, got {fields[name][:40]!r}") from None


def _middle(service: Service) -> list[float]:
    """The state in the middle of what the policy was trained on, for those who give none."""
    normalizer = service.bundle.transform.normalizer
    state = normalizer.robot.state
    middle = normalizer.state.denormalize(np.zeros(len(state.names), np.float32))
    return state.give(middle, state.counts[0]).tolist()


async def _overview(service: Service) -> dict[str, Any]:
    """All sessions, as the page shows them."""
    sessions = list(service.sessions)
    pictures = await asyncio.to_thread(lambda: [_thumbnail(session.image) for session in sessions])
    shown = [_view(session, picture) for session, picture in zip(sessions, pictures)]
    about = {"policy": service.metadata()["server"], "state": service.state, "slots": service.sessions.slots}
    return about | {"statistics": service.metrics.recent(), "sessions": shown}


def _view(session: Session, picture: str | None) -> dict[str, Any]:
    pilot, seconds, client = session.pilot, list(session.seconds), _client(session.connection)
    actions = [] if session.actions is None else session.actions.tolist()
    return {
        "id": session.id,
        "name": _name(session, client),
        "client": client,
        "env": session.env,
        "connected": session.connection is not None,
        "task": pilot.task,
        "instruction": pilot.instruction,
        "staged": pilot.staged,
        "stage": pilot.stage,
        "time": pilot.time,
        "end_probability": pilot.reply and _finite(pilot.reply.end_probability),
        "milliseconds": [round(1000 * value, 1) for value in seconds],
        "actions": [[_finite(number) for number in row] for row in actions],
        "image": picture,
    }


def _name(session: Session, client: str) -> str:
    """What people call it: by label and id where they chose these, else by where it comes from."""
    chosen = "" if _MADE_UP.fullmatch(session.id) else session.id
    return " · ".join(filter(None, (session.env, chosen))) or f"client {client}".strip()


def _client(connection: object) -> str:
    """Where a WebSocket comes from; "" for forms and between connections."""
    peer = connection.get_extra_info("peername") if isinstance(connection, web.WebSocketResponse) else None
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""


def _finite(number: float) -> float | None:
    return round(number, 4) if math.isfinite(number) else None


def _thumbnail(image: np.ndarray | None) -> str | None:
    """A small JPEG as a data URL."""
    if image is None:
        return None
    small, file = Image.fromarray(image), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
