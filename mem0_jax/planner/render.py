"""Prompts in the forms that others read: OpenAI chat messages, sharegpt rows, Qwen's chat text."""

import base64
import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mem0_jax.planner.prompt import Prompt

# `chat_text` as a template of Hugging Face's, for folders that bring none of their own.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- part.text if part.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
IMAGE_TOKENS = "<|vision_start|><|image_pad|><|vision_end|>"  # one image; its processor repeats the middle one


def chat_messages(prompt: Prompt[np.ndarray]) -> list[dict[str, Any]]:
    """Messages of the OpenAI chat API; images as PNG data URLs."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
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


def data_url(image: np.ndarray) -> str:
    """A PNG data URL of uint8 [height, width, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
