"""What clients say to the policy server, and what it answers. The transport is `server`, the wire format `client`.

A WebSocket connection speaks openpi's protocol: the server sends its metadata first; then every message of the client
is one MessagePack map, answered by one; arrays travel as openpi's `msgpack_numpy` has them (those of the package
msgpack-numpy are read as well). A request that cannot be served is answered by a text frame "KIND: what is wrong", and
the connection stays open, but after frames that cannot be read (too_large: 1009). Any openpi client works as it is: the
connection is its session, the memory begins with it and ends with it.

An observation is a map in any of three spellings: `{"images": {CAMERA: picture}, "state": numbers}`; nested as RMBench
has it, `{"observation": {CAMERA: {"rgb"}}, "joint_action": {"vector"}}`; or flat: `observation/CAMERA`,
`observation/CAMERA/rgb`, `observation.images.CAMERA` (of a policy with one camera also `image` or `observation/image`)
and `state`, `observation/state`, `observation.state` or `joint_action/vector`. Pictures are uint8 [H, W, 3]; the
metadata say which `cameras` the policy has, and how many numbers its `state` and its `actions` may have. Other cameras
may stand beside named ones only; what is there under two names must be the same.

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

Kinds of errors: bad_message, bad_observation, bad_request, too_large, unknown_session, in_use, full, busy, planner,
failed, stopping. The HTTP road is in `http`.

Axis letters: H, W picture height and width; K actions to execute; E action width of the environment; W memory window.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from mem0_jax.errors import did_you_mean
from mem0_jax.inference.session import Options
from mem0_jax.serve.client import brief, check_image, check_state, has_observation, kind_of, spelled

TYPES = ("infer", "observe", "reset", "plan", "batch", "close")
PLANNERS = ("server", "client", "none")
_ENTRIES = ("type", "session", "env", "prompt", "frames", "after", "reset", "task", "seed", "planner", "options")
_ENTRIES += ("subtask", "messages")
_LOOKED_AT = 32  # entries of a stranger's map


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
class Senses:
    """What an observation must have: pictures of all `cameras`, and a state of one of these `counts` of numbers."""

    cameras: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Reset:
    """A new episode: who names the subtasks (None: the server's planner, if it has one), and options of its own."""

    task: str
    seed: int = 0
    planner: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """One request, checked. `frames` are observations in the general spelling, the last one is now."""

    type: str
    session: str | None = None
    env: str = ""
    frames: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    after: int | None = None
    reset: Reset | None = None
    subtask: str = ""


def parse(value: Any, senses: Senses, limits: Limits) -> Message | list[Any]:
    """A message, or the unparsed messages of a batch. Raises RequestError."""
    if not isinstance(value, Mapping):
        raise RequestError("bad_message", f"a message must be a map, got {kind_of(value)}")
    _spelt(value)
    value = _plain(value)
    kind = _one_of(value, "type", TYPES) or "infer"
    if kind == "batch":
        return _listed(value, "messages", "messages", 1, limits.batch)
    session = value.get("session")
    if session is not None and not (isinstance(session, str) and session.isprintable() and 1 <= len(session) <= 128):
        got = f"{len(session)}: {brief(session)}" if isinstance(session, str) else brief(session)
        raise RequestError("bad_message", f"session must be an id of 1 to 128 printable characters, got {got}")
    prompt = text_of(value, "prompt", limits.text)
    begins = value.get("reset")
    if begins is not None and type(begins) is not bool:
        raise RequestError("bad_message", f"reset must be true or false, got {brief(begins)}")
    return Message(
        type=kind,
        session=session,
        env=text_of(value, "env", limits.text) or "",
        frames=_frames(value, senses, limits) if kind in ("infer", "observe") else (),
        prompt=prompt,
        after=_whole(value, "after", -1),
        reset=_reset(value, kind, prompt, limits) if kind == "reset" or begins else None,
        subtask=_required(text_of(value, "subtask", limits.text), "subtask") if kind == "plan" else "",
    )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays without axes are their number: what NumPy makes of one, as in `np.array(5)`."""
    return {k: v.item() if isinstance(v, np.ndarray) and not v.ndim else v for k, v in value.items()}


def _spelt(value: Mapping[str, Any]) -> None:
    """Others' entries are none of ours, but what is meant for one of ours must not pass unheard."""
    lacking = [name for name in _ENTRIES if name not in value]
    for name in islice(value, _LOOKED_AT):
        if name not in _ENTRIES and (near := difflib.get_close_matches(name[:40], lacking, 1, 0.8)):
            raise RequestError("bad_message", f"unknown entry {brief(name)}, did you mean {near[0]!r}?")


def _reset(value: Mapping[str, Any], kind: str, prompt: str | None, limits: Limits) -> Reset:
    task, planner = text_of(value, "task", limits.text), _one_of(value, "planner", PLANNERS)
    prompted = task is None and (prompt is not None or kind != "reset")
    options = value.get("options")
    known = [field.name for field in dataclasses.fields(Options)]
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise RequestError("bad_message", f"options must be a map of {', '.join(known)}, got {kind_of(options)}")
    options = _plain(options)
    if "action_horizon" in options:  # as clients before 0.2 call it
        options = {"n_action_steps": options.pop("action_horizon")} | options
    for name, number in options.items():
        if name not in known:
            hint = did_you_mean(name[:40], known)
            what = f"unknown {brief(name)}{hint}"
            raise RequestError("bad_message", f"options must be a map of {', '.join(known)}; {what}")
        wanted = {"n_action_steps": (int,), "patience": (int,), "threshold": (float, int)}.get(name, (bool,))
        if type(number) not in wanted or number != number:  # NaN
            must = kind_of(wanted[0]())
            raise RequestError("bad_message", f"option {name} must be {must}, got {brief(number)}")
    return Reset(
        task=_required(prompt, "prompt") if prompted else _required(task, "task"),
        seed=_whole(value, "seed", 0) or 0,
        planner=planner,
        options=options,
    )


def _frames(value: Mapping[str, Any], senses: Senses, limits: Limits) -> tuple[Mapping[str, Any], ...]:
    # Without `frames` the message itself must be an observation: misspelt keys must not act on an older frame.
    own = has_observation(value, senses.cameras) or "frames" not in value
    frames = []
    for number, frame in enumerate(_listed(value, "frames", "observations", 0, limits.frames - own)):
        try:
            frames.append(observation(frame, senses, limits))
        except RequestError as error:
            raise RequestError(error.kind, f"frames[{number}]: {error}") from None
    return (*frames, *([observation(value, senses, limits)] if own else []))


def observation(value: Any, senses: Senses, limits: Limits) -> dict[str, Any]:
    """An observation in the general spelling from one in any. Raises RequestError."""
    if not isinstance(value, Mapping):
        raise RequestError("bad_observation", f"an observation must be a map, got {kind_of(value)}")
    try:
        images, state = spelled(value, senses.cameras)
        called = {camera: f"image of {camera}" if len(images) > 1 else "image" for camera in images}
        images = {camera: check_image(image, called[camera]) for camera, image in images.items()}
        state = check_state(state, senses.counts)
    except ValueError as error:
        raise RequestError("bad_observation", str(error)) from None
    for camera, image in images.items():
        height, width = image.shape[:2]
        if not 1 <= min(height, width) <= max(height, width) <= limits.side:
            sides = f"{called[camera]} sides must be 1 to {limits.side} pixels, got {height} x {width}"
            raise RequestError("bad_observation", sides)
    return {"images": images, "state": state}


def _one_of(value: Mapping[str, Any], key: str, known: tuple[str, ...]) -> str | None:
    word = value.get(key)
    if word is not None and not (isinstance(word, str) and word in known):
        hint = did_you_mean(word[:40], known) if isinstance(word, str) else ""
        raise RequestError("bad_message", f"{key} must be one of {', '.join(known)}, got {brief(word)}{hint}")
    return word


def _listed(value: Mapping[str, Any], key: str, what: str, least: int, most: int) -> list[Any]:
    found = value.get(key, None if least else [])
    if not isinstance(found, list) or not least <= len(found) <= most:
        got = len(found) if isinstance(found, list) else kind_of(found)
        raise RequestError("bad_message", f"{key} must be a list, here of {least} to {most} {what}, got {got}")
    return found


def text_of(value: Mapping[str, Any], key: str, most: int) -> str | None:
    """The text of an entry, of at most so many characters; None where there is none. Raises RequestError."""
    text = value.get(key)
    if text is not None and (not isinstance(text, str) or len(text) > most):
        got = f"{len(text)} characters" if isinstance(text, str) else kind_of(text)
        raise RequestError("bad_message", f"{key} must be text of at most {most} characters, got {got}")
    return text


def _required(text: str | None, key: str) -> str:
    if not text:
        raise RequestError("bad_message", f"{key} is missing" if text is None else f"{key} is empty")
    return text


def _whole(value: Mapping[str, Any], key: str, least: int) -> int | None:
    number = value.get(key)
    if number is not None and (type(number) is not int or not least <= number < 2**63):
        must = f"{key} must be a whole number of at least {least} and at most {2**63 - 1}"
        raise RequestError("bad_message", f"{must}, got {brief(number)}")
    return number
