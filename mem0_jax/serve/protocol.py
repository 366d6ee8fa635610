"""What clients say to the policy server, and what it answers. The transport is `server`, the wire format `client`.

A WebSocket connection speaks openpi's protocol: the server sends its metadata first; then every message of the client
is one MessagePack map, answered by one; arrays travel as openpi's `msgpack_numpy` has them. A request that cannot be
served is answered by a text frame "KIND: what is wrong", and the connection stays open. Any openpi client works as it
is: the connection is its session, the memory begins with it and ends with it.

An observation is a map in RMBench's layout, `{"observation": {CAMERA: {"rgb"}}, "joint_action": {"vector"}}`, or flat:
`image` (or `observation/image`, `observation/CAMERA/rgb`) uint8 [H, W, 3] and `state` (or `observation/state`,
`joint_action/vector`) of 14 or 16 numbers.

Beyond openpi, all of it optional. Entries of any message:

    type      "infer" (default): see the frames, then sample a new action chunk
              "observe": see the frames; staged tasks judge each of them
              "reset": begin an episode: task, seed, planner ("server", "client" or "none"), options (see
                  `inference.session.Options`); an "infer" with `reset: true` does it on the way, its prompt the task
              "plan": the next subtask, where the client names them and the last answer said `plan_needed`
              "batch": messages, a list of messages of different sessions, served side by side; the answer's `batch` has
                  an answer or `{"error": {"kind", "message"}}` for each
              "close": end the session
    session   an id: a session that outlasts the connection. It begins with a reset; a reset is also needed where it
              was dropped, so that no robot acts on an empty memory unknowingly
    env       label of the environment or robot
    prompt    the instruction, where it changes within an episode
    frames    observations before that of the message itself, oldest first (there need not be one of its own)
    after     time of the frame before these: frames that were seen already are skipped, so a message can be repeated

Entries of an answer: actions float32 [K, E] (of "infer"), session, time (frames seen, less one), stage (subtasks
finished), instruction, subtask_ended (by these frames), due (a new chunk is needed), plan_needed, classify (every frame
is judged: send them as they come), end_probability and attention [W] (of the last frame judged, once there is one),
server_timing {infer_ms, prev_total_ms}, policy_timing {infer_ms, steps}.

Kinds of errors: bad_message, bad_observation, bad_request, unknown_session, in_use, full, busy, planner, failed,
stopping. The HTTP road is in `http`.

Axis letters: H, W picture height and width; K actions to execute; E environment action width; W memory window.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mem0_jax.inference.session import Options
from mem0_jax.serve.client import other_cameras

TYPES = ("infer", "observe", "reset", "plan", "batch", "close")
PLANNERS = ("server", "client", "none")
_IMAGE, _STATE = ("image", "observation/image"), ("state", "observation/state", "joint_action/vector")


class RequestError(Exception):
    """A request that cannot be served.

    Attributes:
        kind: one word for programs; see the top of this file.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    """What one message may hold.

    Attributes:
        message: bytes.
        frames: observations.
        side: pixels of a picture's height or width.
        text: characters of a task, prompt or label.
        batch: messages of a batch.
    """

    message: int = 32 * 2**20
    frames: int = 64
    side: int = 2048
    text: int = 2000
    batch: int = 64


@dataclass(frozen=True)
class Reset:
    """A new episode: who names the subtasks (None: the server's planner, if it has one), and options of its own."""

    task: str
    seed: int = 0
    planner: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """One request, checked. `frames` are observations in RMBench's layout, the last one is now."""

    type: str
    session: str | None = None
    env: str = ""
    frames: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    after: int | None = None
    reset: Reset | None = None
    subtask: str = ""


def parse(value: Any, camera: str, limits: Limits) -> Message | list[Any]:
    """A message, or the unparsed messages of a batch. Raises RequestError."""
    if not isinstance(value, Mapping):
        raise RequestError("bad_message", f"a message must be a map, got {type(value).__name__}")
    kind = value.get("type", "infer")
    if kind not in TYPES:
        raise RequestError("bad_message", f"type must be one of {', '.join(TYPES)}, got {_brief(kind)}")
    if kind == "batch":
        messages = value.get("messages")
        if not isinstance(messages, list) or not 1 <= len(messages) <= limits.batch:
            raise RequestError("bad_message", f"messages must be a list of 1 to {limits.batch} messages")
        return messages
    session = _text(value, "session", limits)
    if session is not None and (not session.isprintable() or not 1 <= len(session) <= 128):
        raise RequestError("bad_message", "session must be an id of 1 to 128 printable characters")
    prompt = _text(value, "prompt", limits)
    return Message(
        type=kind,
        session=session,
        env=_text(value, "env", limits) or "",
        frames=_frames(value, camera, limits) if kind in ("infer", "observe") else (),
        prompt=prompt,
        after=_whole(value, "after", -1),
        reset=_reset(value, prompt, limits) if kind == "reset" or value.get("reset") is True else None,
        subtask=_required(_text(value, "subtask", limits), "subtask") if kind == "plan" else "",
    )


def _reset(value: Mapping[str, Any], prompt: str | None, limits: Limits) -> Reset:
    task = _text(value, "task", limits)
    planner, options = value.get("planner"), value.get("options", {})
    known = [field.name for field in dataclasses.fields(Options)]
    if planner is not None and planner not in PLANNERS:
        raise RequestError("bad_message", f"planner must be one of {', '.join(PLANNERS)}, got {_brief(planner)}")
    if not isinstance(options, Mapping) or (unknown := [name for name in options if name not in known]):
        what = f"unknown {_brief(unknown[0])}" if isinstance(options, Mapping) else f"got {type(options).__name__}"
        raise RequestError("bad_message", f"options must be a map of {', '.join(known)}; {what}")
    for name, number in options.items():
        wanted = {"action_horizon": (int,), "patience": (int,), "threshold": (int, float)}.get(name, (bool,))
        if type(number) not in wanted:
            raise RequestError("bad_message", f"option {name} must be {wanted[-1].__name__}, got {_brief(number)}")
    return Reset(
        task=_required(prompt if task is None else task, "task"),
        seed=_whole(value, "seed", 0) or 0,
        planner=planner,
        options=options,
    )


def _frames(value: Mapping[str, Any], camera: str, limits: Limits) -> tuple[Mapping[str, Any], ...]:
    found = value.get("frames", [])
    # Without `frames` the message itself must be an observation: misspelt keys must not act on an older frame.
    keys = ("frames", *_IMAGE, *_STATE, f"observation/{camera}/rgb", "observation", "joint_action")
    own = any(key in value for key in keys[1:]) or "frames" not in value
    if not isinstance(found, list) or len(found) + own > limits.frames:
        raise RequestError("bad_message", f"frames must be a list, with at most {limits.frames} observations a message")
    return tuple(observation(frame, camera, limits) for frame in [*found, *([value] if own else [])])


def observation(value: Any, camera: str, limits: Limits) -> dict[str, Any]:
    """An observation in RMBench's layout from one in any layout. Raises RequestError."""
    if not isinstance(value, Mapping):
        raise RequestError("bad_observation", f"an observation must be a map, got {type(value).__name__}")
    if others := other_cameras(value, camera):
        raise RequestError("bad_observation", others)
    image = _entry(value, (f"observation/{camera}/rgb", *_IMAGE), ("observation", camera, "rgb"))
    state = _entry(value, _STATE, ("joint_action", "vector"))
    image = check_image(image, limits)
    try:
        state = np.asarray(state, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise RequestError("bad_observation", f"state must be 14 or 16 numbers, got {_brief(state)}") from None
    if state.shape not in ((14,), (16,)) or not np.isfinite(state).all():
        raise RequestError("bad_observation", f"state must be 14 or 16 finite numbers, got shape {list(state.shape)}")
    return {"observation": {camera: {"rgb": image}}, "joint_action": {"vector": state}}


def check_image(image: Any, limits: Limits) -> np.ndarray:
    """The picture, if it is one. Raises RequestError."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise RequestError("bad_observation", f"image must be uint8 [H, W, 3], RGB, got {found}")
    if not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= limits.side:
        raise RequestError("bad_observation", f"image sides must be 1 to {limits.side} pixels, got {list(image.shape)}")
    return image


def _entry(value: Mapping[str, Any], flat: tuple[str, ...], path: tuple[str, ...]) -> Any:
    for key in flat:
        if key in value:
            return value[key]
    found: Any = value
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            raise RequestError("bad_observation", f"the observation lacks {'.'.join(path)}, or flat: {flat[-1]!r}")
        found = found[key]
    return found


def _text(value: Mapping[str, Any], key: str, limits: Limits) -> str | None:
    text = value.get(key)
    if text is not None and (not isinstance(text, str) or len(text) > limits.text):
        got = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise RequestError("bad_message", f"{key} must be text of at most {limits.text} characters, got {got}")
    return text


def _required(text: str | None, key: str) -> str:
    if not text:
        raise RequestError("bad_message", f"{key} is missing")
    return text


def _whole(value: Mapping[str, Any], key: str, least: int) -> int | None:
    number = value.get(key)
    if number is not None and (type(number) is not int or not least <= number < 2**63):
        raise RequestError("bad_message", f"{key} must be a whole number of at least {least}, got {_brief(number)}")
    return number


def _brief(value: Any) -> str:
    """A stranger's value in an error message: short, and never a container's content."""
    return (
        repr(value[:40])
        if isinstance(value, str)
        else repr(value)
        if type(value) in (bool, int, float)
        else (type(value).__name__)
    )
