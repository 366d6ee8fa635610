"""Prompts in the forms that others read: OpenAI chat messages, sharegpt rows, Qwen's chat text.

Axes: h, w image height and width.
"""

import base64
import io
import math
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from mem0_jax.planner.prompt import Prompt

MAX_PIXELS = 262_144  # of an image that a planner sees; what released planners were fine-tuned with
IMAGE_TOKENS = "<|vision_start|><|image_pad|><|vision_end|>"  # one image; its processor repeats the middle one


def chat_messages(prompt: Prompt[np.ndarray]) -> list[dict[str, Any]]:
    """Messages of the OpenAI chat API; images as PNG data URLs, at most `MAX_PIXELS` each."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(shrink(part))}}
        for part in prompt.parts
    ]
    return [{"role": "system", "content": prompt.system}, {"role": "user", "content": content}]


def sharegpt_row(prompt: Prompt[PurePosixPath], answer: str) -> dict[str, Any]:
    """A row of LLaMA-Factory's sharegpt layout; the images are paths."""
    user = "".join(part if isinstance(part, str) else "<image>" for part in prompt.parts)
    messages = [("system", prompt.system), ("user", user), ("assistant", answer)]
    return {
        "messages": [{"role": role, "content": content} for role, content in messages],
        "images": [str(image) for image in prompt.images],
    }


def chat_text(prompt: Prompt[Any]) -> str:
    """The text of Qwen's chat template, one `IMAGE_TOKENS` for each of `prompt.images`; the answer comes next.

    An answer to train on is followed by `<|im_end|>`.
    """
    user = "".join(part if isinstance(part, str) else IMAGE_TOKENS for part in prompt.parts)
    return f"<|im_start|>system\n{prompt.system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def shrink(image: np.ndarray, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Shrinks uint8 [h, w, 3] to at most `max_pixels`, keeping the aspect, as LLaMA-Factory does in training."""
    height, width = image.shape[:2]
    if height * width <= max_pixels:
        return image
    from PIL import Image

    factor = math.sqrt(max_pixels / (height * width))
    return np.asarray(Image.fromarray(image).resize((max(1, int(width * factor)), max(1, int(height * factor)))))


def data_url(image: np.ndarray) -> str:
    """A PNG data URL of uint8 [h, w, 3]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
