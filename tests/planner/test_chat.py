"""What comes from outside becomes a prompt, or is refused by the name of the field."""

import base64
import contextlib
import io
import struct
import zlib
from pathlib import PurePosixPath

import numpy as np
import pytest
import random_models
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mem0_jax.backbones.qwen3_vl.images import PixelBounds, image_patches
from mem0_jax.inference.planning import Plan, Situation
from mem0_jax.planner.chat import ChatError, ChatLimits, ChatRequest, read_request
from mem0_jax.planner.prompt import ask, build
from mem0_jax.planner.questions import Question
from mem0_jax.planner.render import chat_messages, chat_text
from mem0_jax.planner.rows import Encoder, RowSource

CONTROLS = ("<|im_start|>", "<|im_end|>", "<|image_pad|>")


def read(body, **limits) -> ChatRequest:
    return read_request(body, "planner", CONTROLS, ChatLimits(**limits))


def request(content, **fields):
    return {"model": "planner", "messages": [{"role": "user", "content": content}]} | fields


def picture(height: int = 4, width: int = 6, form: str = "PNG", mode: str = "RGB") -> tuple[np.ndarray, str]:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format=form)
    return pixels, f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_part(url: str) -> list[dict]:
    return [{"type": "image_url", "image_url": {"url": url}}]


def test_the_chat_form_of_a_planner_prompt_reads_as_its_text():
    pixels, _ = picture(20, 30)
    prompt = build("count to two", pixels, [("press the button.", 255 - pixels)])
    asked = read({"model": "planner", "messages": chat_messages(prompt), "max_tokens": 2048})
    assert asked.prompt.text == chat_text(prompt)
    for image, original in zip(asked.prompt.images, prompt.images, strict=True):
        np.testing.assert_array_equal(image, original)
    assert (asked.settings.max_tokens, asked.settings.temperature, asked.stream) == (2048, 0.0, False)


def test_settings_are_read():
    fields = {"temperature": 1, "top_p": 0.5, "top_k": -1, "seed": -3, "stop": "x", "max_completion_tokens": 4}
    asked = read(request("hi", **fields, n=1, user="me", stream=True, stream_options={"include_usage": True}))
    settings = asked.settings
    assert (settings.temperature, settings.top_p, settings.top_k, settings.seed) == (1, 0.5, 0, -3)
    assert (settings.stop, settings.max_tokens, asked.stream, asked.stream_usage) == (("x",), 4, True, True)


def test_other_kinds_of_pictures_become_rgb():
    _, grey = picture(mode="L")
    _, jpeg = picture(8, 8, "JPEG")
    images = read(request(image_part(grey) + image_part(jpeg))).prompt.images
    assert [image.shape for image in images] == [(4, 6, 3), (8, 8, 3)]


def test_pictures_of_more_than_8_bits_are_refused_not_clipped():
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    with pytest.raises(ChatError, match=r"image_url.url: the picture has the mode I;16, as depth maps have"):
        read(request(image_part(url)))


def test_large_pictures_are_seen_as_training_sees_them(tmp_path):
    """Through this process, over the wire, and in the rows of a dataset: the same patches. 640x480 is large."""
    pixels, url = picture(480, 640)
    config = random_models.CONFIGS["tied"]
    prompt = ask(Situation("count", pixels, pixels))
    local, _ = image_patches(prompt.images[0], config.vision, PixelBounds())
    wire = read({"model": "planner", "messages": chat_messages(prompt)}).prompt.images
    other_client = read(request(image_part(url))).prompt.images
    Image.fromarray(pixels).save(tmp_path / "first.png")
    question = Question(0, 0, "count", PurePosixPath("first.png"), (), None, Plan("press."))
    rows = Encoder(random_models.tokenizer(), config, PixelBounds(), 2048).rows(tmp_path, [question])
    (trained,) = RowSource(rows, config, PixelBounds(), lanes=1)[0]["patches"][0]
    assert rows[0].grids == ((1, 448 // 16, 576 // 16),)  # as LLaMA-Factory and then Qwen3-VL's processor have it
    for images in (wire, other_client):
        np.testing.assert_array_equal(image_patches(images[0], config.vision, PixelBounds())[0], local)
    np.testing.assert_array_equal(trained, local)


PNG = picture()[1]
REFUSED = {
    "no object": ([], "JSON object"),
    "no model": ({"messages": []}, "model is missing"),
    "another model": (request("hi", model="gpt"), "'gpt' does not exist, only 'planner'"),
    "no messages": ({"model": "planner", "messages": []}, "expected 1 to 256, got 0"),
    "a message that is none": ({"model": "planner", "messages": [3]}, r"messages\[0\]: expected an object"),
    "a role": ({"model": "planner", "messages": [{"role": "tool", "content": "x"}]}, "role: expected one of"),
    "no content": ({"model": "planner", "messages": [{"role": "user"}]}, r"messages\[0\].content is missing"),
    "a part": (request([{"type": "video_url"}]), r"content\[0\]: expected an object of type text or image_url"),
    "half a letter": (request("a \ud800"), "half a letter"),
    "a control": (request("a <|im_end|> b"), r"holds '<\|im_end\|>'"),
    "a web address": (request(image_part("http://10.0.0.1/a.png")), "not followed"),
    "a file": (request(image_part("file:///etc/passwd")), "not followed"),
    "another format": (request(image_part("data:image/gif;base64,R0lGOD")), "expected data:image/png"),
    "no base64": (request(image_part("data:image/png;base64,%%%")), "no readable PNG"),
    "no picture": (request(image_part("data:image/png;base64,AAAA")), "no readable PNG"),
    "half a picture": (request(image_part(PNG[: len(PNG) // 2 // 4 * 4 + 2])), "no readable PNG"),
    "half a JPEG": (request(image_part(picture(form="JPEG")[1][:103])), "no readable JPEG, the file is damaged or cut"),
    "damaged, not another format": (request(image_part(PNG[:46])), "no readable PNG, the file is damaged or cut off"),
    "content of a number": (request(3), r"content: expected a string or an array, got a whole number"),
    "content of nothing": (request(None), r"content: expected a string or an array, got null"),
    "content of an object": (request({}), r"content: expected a string or an array, got an object"),
    "a part without a type": (request([{}]), r"content\[0\].type is missing"),
    "a part whose type is none": (request([{"type": 3}]), r"content\[0\].type: expected a string, got a whole number"),
    "a part that is none": (request([3]), r"content\[0\]: expected an object of type text .* got a whole number"),
    "a stop that is none": (request("hi", stop=3), "stop: expected a string or an array, got a whole number"),
    "a great temperature": (request("hi", temperature=10**400), "bits, got a number of 333 hexadecimal digits$"),
    "a great seed": (request("hi", seed=-(10**400)), "whole number of at most 64 bits, got a number of 333"),
    "many pictures": (request(image_part(PNG) * 33), r"content\[32\]: more than 32 images"),
    "an unknown field": (request("hi", tools=[]), "tools is not supported"),
    "many answers": (request("hi", n=2), "n: only 1 is supported"),
    "a text for a number": (request("hi", temperature="1"), "temperature: expected a number, got a string"),
    "a truth for a number": (request("hi", max_tokens=True), "max_tokens: expected a whole number, got true or f"),
    "nothing to say": (request("hi", max_tokens=0), "max_tokens must be at least 1"),
    "not a number": (request("hi", top_p=float("nan")), "top_p must be more than 0"),
    "stops": (request("hi", stop=["a"] * 5), "stop: expected up to 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case):
    body, message = REFUSED[case]
    with pytest.raises(ChatError, match=message) as caught:
        read(body)
    error = caught.value.body["error"]
    assert error["type"] == "invalid_request_error"
    assert caught.value.status == (404 if case == "another model" else 400)


def test_a_small_file_of_a_huge_picture_is_not_decoded():
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert len(url) < 1e5
    with pytest.raises(ChatError, match="5000x5000 pixels"):
        read(request(image_part(url)))
    size = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    with pytest.raises(ChatError, match="the picture has more pixels than"):
        read(request(image_part("data:image/png;base64," + base64.b64encode(huge + bytes(4) + b"IDAT").decode())))
    with pytest.raises(ChatError, match="6x4 pixels, more than 23"):
        read(request(image_part(PNG)), image_pixels=23)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "role", "url"]), inner),
    max_leaves=8,
)
FIELDS = [
    "model",
    "messages",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "max_tokens",
    "stream",
    "stream_options",
    "n",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.lists(JSON, max_size=2), st.binary(max_size=60))
def test_nothing_else_escapes(fields, content, junk):
    damaged = base64.b64decode(PNG.partition(",")[2])[:-12] + junk
    url = "data:image/png;base64," + base64.b64encode(damaged).decode()
    for body in (fields, request(content) | fields, request(image_part(url))):
        with contextlib.suppress(ChatError):
            assert isinstance(read(body), ChatRequest)
