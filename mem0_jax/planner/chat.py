"""Requests of OpenAI's chat API, from outside, to prompts: everything that is not understood is refused by name.

Source: OpenAI's API reference (chat completions); the ChatML template (behaviour).
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mem0_jax.backbones.chat import GenerationError, Prompt, Settings
from mem0_jax.data.picture_file import DAMAGE, PictureModeError, form_of, rgb
from mem0_jax.errors import UserError, did_you_mean
from mem0_jax.planner.prompt import shrink
from mem0_jax.planner.render import IMAGE_TOKENS
from mem0_jax.serve.client import brief

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Fields that change nothing if they have these values, which is what clients that always send them mean.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True, False),
    "store": (False,),
}
SETTINGS = ("temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "max_completion_tokens")
KNOWN = {"model", "messages", "stream", "stream_options", "user", *SETTINGS, *HARMLESS}
JSON_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "an array"}
JSON_NAMES |= {dict: "an object", type(None): "null"}
DATA_URL = re.compile(r"data:image/(?:png|jpe?g);base64,", re.IGNORECASE)


class ChatError(UserError):
    """A request that is refused.

    Attributes:
        status: of HTTP; code, param, kind: of the API's error object.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.kind = status, param, code, kind

    @property
    def body(self) -> dict[str, Any]:
        """The answer that tells of it."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class ChatLimits:
    """Of one request.

    Attributes:
        messages, images: at most so many.
        image_pixels: of an image before it is resized; what a file says is believed only up to here.
    """

    messages: int = 256
    images: int = 32
    image_pixels: int = 2**24


@dataclass(frozen=True)
class ChatRequest:
    """What is asked: the prompt, how to answer it, in pieces (`stream`) and with a last piece that counts tokens."""

    prompt: Prompt
    settings: Settings
    stream: bool
    stream_usage: bool


def read_request(body: Any, model: str, controls: Iterable[str], limits: ChatLimits) -> ChatRequest:
    """A request's JSON to a prompt.

    Args:
        body: parsed JSON, of any form.
        model: the name that is served.
        controls: control tokens, which no text may hold.
        limits: see there.

    Raises:
        ChatError: naming the field.
    """
    if not isinstance(body, dict):
        raise ChatError("the request must be a JSON object")
    body = {name: value for name, value in body.items() if value is not None}
    for name in body:
        if name not in KNOWN:
            shown, hint = name[:100], did_you_mean(name[:40], KNOWN)
            raise ChatError(f"{shown} is not supported{hint or '; leave it out'}", shown, "unsupported_parameter")
        if name in HARMLESS and body[name] not in HARMLESS[name]:
            only = json.dumps(HARMLESS[name][0])
            raise ChatError(f"{name}: only {only} is supported", name, "unsupported_value")
    if _of(body, "model", str) != model:
        raise no_model(body["model"], model)
    messages = _of(body, "messages", list)
    if not 1 <= len(messages) <= limits.messages:
        raise ChatError(f"messages: expected 1 to {limits.messages}, got {len(messages)}", "messages")
    controls, images, text = tuple(controls), [], ""
    for i, message in enumerate(messages):
        text += _turn(message, f"messages[{i}]", controls, images, limits)
    options = _of(body, "stream_options", dict) if "stream_options" in body else {}
    return ChatRequest(
        Prompt(text + "<|im_start|>assistant\n", tuple(images)),
        _settings(body),
        bool(body.get("stream") and _of(body, "stream", bool)),
        options.get("include_usage") is True,
    )


def no_model(name: str, served: str) -> ChatError:
    """The error of a model that is not served."""
    return ChatError(f"the model {name!r:.200} does not exist, only {served!r}", "model", "model_not_found", 404)


def _of(body: Mapping[str, Any], name: str, kind: type, where: str = "", *, or_text: bool = False) -> Any:
    full = f"{where}.{name}" if where else name
    if name not in body:
        raise ChatError(f"{full} is missing", full)
    value = body[name]
    right = (
        isinstance(value, kind) or (kind is float and isinstance(value, int)) or (or_text and isinstance(value, str))
    )
    must = f"{'a string or ' * or_text}{JSON_NAMES[kind]}"
    if not right or (isinstance(value, bool) and kind is not bool):
        raise ChatError(f"{full}: expected {must}, got {JSON_NAMES[type(value)]}", full)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ChatError(f"{full}: expected {must} of at most 64 bits, got {brief(value)}", full)
    return value


def _settings(body: Mapping[str, Any]) -> Settings:
    given: dict[str, Any] = {name: _of(body, name, float) for name in ("temperature", "top_p") if name in body}
    given |= {name: _of(body, name, int) for name in ("top_k", "seed") if name in body}
    given["top_k"] = max(given.get("top_k", 0), 0)  # -1 is "off" too where this field comes from
    for name in ("max_completion_tokens", "max_tokens"):
        if name in body:
            given.setdefault("max_tokens", _of(body, name, int))
    if "stop" in body:
        stop = _of(body, "stop", list, or_text=True)
        stop = [stop] if isinstance(stop, str) else stop
        sizes = [len(text) if isinstance(text, str) else JSON_NAMES[type(text)] for text in stop]
        if len(stop) > 4 or not all(isinstance(size, int) and 0 < size <= 100 for size in sizes):
            got = f"{len(stop)} of {', '.join(map(str, sizes[:5]))}"
            raise ChatError(f"stop: expected up to 4 texts of 1 to 100 letters, got {got}", "stop")
        given["stop"] = tuple(stop)
    try:
        return Settings(**given)
    except GenerationError as error:
        raise ChatError(str(error), str(error).split()[0]) from None


def _turn(message: Any, where: str, controls: tuple[str, ...], images: list[np.ndarray], limits: ChatLimits) -> str:
    """The text of a message; its images are added to `images`."""
    if not isinstance(message, dict):
        raise ChatError(f"{where}: expected an object, got {JSON_NAMES[type(message)]}", where)
    role = _of(message, "role", str, where)
    if role not in ROLES:
        raise ChatError(f"{where}.role: expected one of {', '.join(ROLES)}, got {role[:100]!r}", f"{where}.role")
    content = _of(message, "content", list, where, or_text=True)
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = ""
    for i, part in enumerate(parts):
        at = f"{where}.content[{i}]"
        kind = _of(part, "type", str, at) if isinstance(part, dict) else None
        if kind == "text":
            said = _of(part, "text", str, at)
            if re.search(r"[\ud800-\udfff]", said):  # JSON can name half a letter, which no tokenizer reads
                raise ChatError(f"{at}.text holds half a letter, a UTF-16 surrogate without its other", f"{at}.text")
            if held := next((mark for mark in controls if mark in said), None):
                raise ChatError(f"{at}.text holds {held!r}, which the model takes for a control", f"{at}.text")
            text += said
        elif kind == "image_url":
            if len(images) >= limits.images:
                raise ChatError(f"{at}: more than {limits.images} images, this is number {len(images) + 1}", at)
            url = _of(_of(part, "image_url", dict, at), "url", str, f"{at}.image_url")
            images.append(_image(url, f"{at}.image_url.url", limits.image_pixels))
            text += IMAGE_TOKENS
        else:
            got = JSON_NAMES[type(part)] if kind is None else repr(kind[:100])
            raise ChatError(f"{at}: expected an object of type text or image_url, got {got}", at)
    return f"<|im_start|>{ROLES[role]}\n{text}<|im_end|>\n"


def _image(url: str, where: str, most: int) -> np.ndarray:
    found = DATA_URL.match(url)
    if not found:
        raise ChatError(
            f"{where}: expected data:image/png;base64,... or data:image/jpeg;base64,..., got {url[:40]!r}; other "
            "addresses are not followed",
            where,
        )
    data = b""
    try:
        data = base64.b64decode(url[found.end() :], validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > most:
                raise ChatError(f"{where}: {image.width}x{image.height} pixels, more than {most} in all", where)
            return shrink(rgb(image))  # as clients of ours did already, and training
    except ChatError:
        raise
    except binascii.Error:
        raise ChatError(f"{where}: no readable PNG or JPEG, what follows {found[0]} is no base64", where) from None
    except PictureModeError as error:
        raise ChatError(f"{where}: the picture {error}", where) from None
    except Image.DecompressionBombError:
        raise ChatError(f"{where}: the picture has more pixels than {most}, the most in all", where) from None
    except DAMAGE:
        form = form_of(data)
        why = f"no readable {form}, the file is damaged or cut off" if form else "no readable PNG or JPEG"
        raise ChatError(f"{where}: {why}", where) from None
