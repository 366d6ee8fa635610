"""What clients say to the policy server, and what it answers. The transport is `server`, the wire format `client`.

A WebSocket connection speaks openpi's protocol: the server sends its metadata first; then every message of the client
is one MessagePack map, answered by one; arrays travel as openpi's `msgpack_numpy` has them (those of the package
msgpack-numpy are read as well). A request that cannot be served is answered by a text frame "KIND: what is wrong", and
the connection stays open, but after frames that cannot be read (too_large: 1009). Any openpi client works as it is: the
connection is its session, the memory begins with it and ends with it.

An observation is a map in RMBench's layout, `{"observation": {CAMERA: {"rgb"}}, "joint_action": {"vector"}}`, or flat:
`image` (or `observation/image`) or, with the camera's name, `observation/CAMERA/rgb` (or `observation.images.CAMERA`)
uint8 [H, W, 3], and `state` (or `observation/state`, `observation.state`, `joint_action/vector`) of 14 or 16 numbers.
Other cameras may stand beside the named one only.

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

Axis letters: H, W picture height and width; K actions to execute; E environment action width; W memory window.
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
from mem0_jax.serve.client import brief, cameras, check_image, check_state, is_image, kind_of, trained_on

TYPES = ("infer", "observe", "reset", "plan", "batch", "close")
PLANNERS = ("server", "client", "none")
_ENTRIES = ("type", "session", "env", "prompt", "frames", "after", "reset", "task", "seed", "planner", "options")
_ENTRIES += ("subtask", "messages")
_LOOKED_AT = 32  # entries of a stranger's map
_IMAGE = ("image", "observation/image")
_STATE = ("state", "observation/state", "observation.state", "joint_action/vector")


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
        frames=_frames(value, camera, limits) if kind in ("infer", "observe") else (),
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
    for name, number in options.items():
        if name not in known:
            hint = did_you_mean(name[:40], known)
            what = f"unknown {brief(name)}{hint}"
            raise RequestError("bad_message", f"options must be a map of {', '.join(known)}; {what}")
        wanted = {"action_horizon": (int,), "patience": (int,), "threshold": (float, int)}.get(name, (bool,))
        if type(number) not in wanted or number != number:  # NaN
            must = kind_of(wanted[0]())
            raise RequestError("bad_message", f"option {name} must be {must}, got {brief(number)}")
    return Reset(
        task=_required(prompt, "prompt") if prompted else _required(task, "task"),
        seed=_whole(value, "seed", 0) or 0,
        planner=planner,
        options=options,
    )


def _frames(value: Mapping[str, Any], camera: str, limits: Limits) -> tuple[Mapping[str, Any], ...]:
    # Without `frames` the message itself must be an observation: misspelt keys must not act on an older frame.
    keys = (*_IMAGE, *_STATE, *_named(camera), "observation", "joint_action")
    own = any(key in value for key in keys) or "frames" not in value or bool(cameras(value))
    frames = []
    for number, frame in enumerate(_listed(value, "frames", "observations", 0, limits.frames - own)):
        try:
            frames.append(observation(frame, camera, limits))
        except RequestError as error:
            raise RequestError(error.kind, f"frames[{number}]: {error}") from None
    return (*frames, *([observation(value, camera, limits)] if own else []))


def observation(value: Any, camera: str, limits: Limits) -> dict[str, Any]:
    """An observation in RMBench's layout from one in any layout. Raises RequestError."""
    if not isinstance(value, Mapping):
        raise RequestError("bad_observation", f"an observation must be a map, got {kind_of(value)}")
    path = ("joint_action", "vector")
    image, states = _image(value, camera), _given(value, _STATE, path)
    state = _one(states) if states else _lacking(value, _STATE, path)
    try:
        image, state = check_image(image), check_state(state)
    except ValueError as error:
        raise RequestError("bad_observation", str(error)) from None
    height, width = image.shape[:2]
    if not 1 <= min(height, width) <= max(height, width) <= limits.side:
        raise RequestError("bad_observation", f"image sides must be 1 to {limits.side} pixels, got {height} x {width}")
    return {"observation": {camera: {"rgb": image}}, "joint_action": {"vector": state}}


def _image(value: Mapping[str, Any], camera: str) -> Any:
    """The picture of the policy's camera, or the one that names none, where no camera is named beside it."""
    path = ("observation", camera, "rgb")
    named, unnamed = _given(value, _named(camera), path), _given(value, _IMAGE)
    names = [] if named else cameras(value)
    why = trained_on(camera, names)
    beside = [repr(key) for key, picture in unnamed.items() if not isinstance(picture, Mapping)]
    if names and beside:
        right = f"name the right picture {_named(camera)[0]!r}, or leave the others out"
        raise RequestError("bad_observation", f"{why}; {beside[0]} names none of them: {right}")
    if names and not any(name.split("/")[0] == camera for name in names):
        if not any(_given(value, _named(name), ("observation", name, "rgb")) for name in names):
            why = f"the observation lacks {'.'.join(path)}, or flat: {_named(camera)[0]!r}; {why}"
        raise RequestError("bad_observation", why)
    return _one(named | unnamed) if named or unnamed else _lacking(value, (*_named(camera), *_IMAGE), path)


def _named(camera: str) -> tuple[str, ...]:
    """Flat keys of a picture that name its camera: RMBench's, and LeRobot's own."""
    return f"observation/{camera}/rgb", f"observation.images.{camera}", f"observation.image.{camera}", camera


def _given(value: Mapping[str, Any], flat: tuple[str, ...], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """What stands under flat keys and at the end of a path of nested ones."""
    given, found = {key: value[key] for key in flat if key in value}, value
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return given
        found = found[key]
    return given | ({".".join(path): found} if path else {})


def _one(given: Mapping[str, Any]) -> Any:
    """What stands there, the same under every name."""
    (first, value), *others = given.items()
    for name, other in others:
        if not same(value, other):
            raise RequestError("bad_observation", f"the observation has {first} and {name}, and they differ: give one")
    return value


def same(one: Any, other: Any) -> bool:
    """Two values of a stranger's that mean one."""
    try:
        return bool(np.array_equal(one, other))
    except (TypeError, ValueError):  # maps of arrays, and what NumPy does not compare
        return False


def _lacking(value: Mapping[str, Any], flat: tuple[str, ...], path: tuple[str, ...]) -> Any:
    """Raises RequestError: what there is instead, and what of it may be misspelt."""
    found: Any = value
    depth = 0
    while isinstance(found, Mapping) and path[depth] in found:
        found, depth = found[path[depth]], depth + 1
    where = ".".join(path[:depth]) or "the observation"
    names = list(islice(found, _LOOKED_AT)) if isinstance(found, Mapping) else []
    has = f"has {', '.join(names)[:100] or 'nothing'}" if isinstance(found, Mapping) else f"is {kind_of(found)}"
    meant = (path[depth],) if depth else (*flat, path[0])
    hints = (f"; {name[:40]!r}{hint}" for name in names if (hint := _meant(name[:40], meant)))
    lacks = f"the observation lacks {'.'.join(path)}, or flat: {flat[-1]!r}"
    raise RequestError("bad_observation", f"{lacks}; {where} {has}{next(hints, '')}")


def _meant(name: str, known: tuple[str, ...]) -> str:
    hint = did_you_mean(name, known)
    other = any(hint.endswith(f"{image!r}?") for image in _IMAGE) and not is_image(name)  # another camera's, perhaps
    return "" if other else hint


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
