"""From images and an instruction to the arrays of the backbone, on the host, with neither torch nor transformers.

Axis letters: V views, P patches of an image, C numbers of a patch, S tokens of a prompt. Every prompt has the same
number of views of one image size, so that shapes are static.
Source: Qwen3-VL's chat template and image processor (transformers 4.57.1 behaviour).
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TokenIds, VisionConfig
from mem0_jax.backbones.qwen3_vl.positions import image_slots, token_positions
from mem0_jax.errors import UserError
from mem0_jax.tokenizer import UNKNOWN

SPECIAL_TOKENS = {
    "pad": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}
MAX_PROMPTS = 4096  # kept tokenized


def word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer with one token a word of `texts`, for models trained from scratch on a few instructions."""
    words = sorted({word for text in texts for word in text.split()} | {"user"})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS.values(), UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return tokenizer


def token_ids(tokenizer: Tokenizer) -> TokenIds:
    """The ids of the special tokens; an error lists those the tokenizer lacks."""
    ids, missing = {}, []
    for name, token in SPECIAL_TOKENS.items():
        number = tokenizer.token_to_id(token)
        if number is None:
            missing.append(token)
        else:
            ids[name] = number
    if missing:
        raise UserError(f"the tokenizer has no {', '.join(missing)}: it is not one of Qwen3-VL's")
    return TokenIds(**ids)


def check_tokenizer(tokenizer: Tokenizer, config: Qwen3VLConfig) -> None:
    """Raises UserError where the special tokens of a tokenizer are not those of the model."""
    if (found := token_ids(tokenizer)) != config.tokens:
        raise UserError(f"the tokenizer has the special tokens {found}, the model expects {config.tokens}")


def patchify(images: Any, config: VisionConfig) -> Any:
    """Cuts uint8 images [..., height, width, 3], NumPy's or JAX's, into patches [..., P, C] in merge order.

    A patch holds channels, then frames (a still image is repeated), then rows and columns.
    """
    patch, merge = config.patch_size, config.spatial_merge_size
    *lead, height, width, channels = images.shape
    if height % (patch * merge) or width % (patch * merge) or channels != 3:
        raise ValueError(f"image {images.shape[-3:]}: height and width must be multiples of {patch * merge}, RGB")
    n = len(lead)
    blocks = images.reshape(
        *lead, height // (patch * merge), merge, patch, width // (patch * merge), merge, patch, channels
    )
    order = [n, n + 3, n + 1, n + 4, n + 6, n + 2, n + 5]
    still = blocks.transpose(*range(n), *order).reshape(*lead, -1, channels, 1, patch * patch)
    return still.repeat(config.temporal_patch_size, axis=-2).reshape(*lead, still.shape[-4], -1)


class Processor:
    """Prepares observations for one backbone.

    Args:
        tokenizer: with Qwen's special tokens.
        config: the backbone's sizes; its token ids must be the tokenizer's.
        image_size: (height, width) of the images the tower sees; others are resized to it (bicubic).
        max_length: tokens of a prompt; shorter ones are padded on the right, longer ones refused.
        views: images of a prompt.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: Qwen3VLConfig, image_size: tuple[int, int], max_length: int, views: int = 1
    ):
        check_tokenizer(tokenizer, config)
        self.tokenizer, self.config, self.image_size = tokenizer, config, image_size
        self.max_length, self.views = max_length, views
        self._prompts: dict[str, dict[str, np.ndarray]] = {}

    @cached_property
    def image_tokens(self) -> int:
        """Tokens of one image."""
        side = self.config.vision.patch_size * self.config.vision.spatial_merge_size
        return self.image_size[0] // side * (self.image_size[1] // side)

    def prompt(self, text: str) -> dict[str, np.ndarray]:
        """Arrays of an instruction after the images: input_ids, attention_mask, image_slot [S], position [3, S]."""
        prompt = self._prompts.get(text)
        if prompt is None:
            prompt = self._tokenize(text)
            if len(self._prompts) >= MAX_PROMPTS:  # a server hears whatever clients say
                self._prompts.clear()
            self._prompts[text] = prompt
        return prompt

    def _tokenize(self, text: str) -> dict[str, np.ndarray]:
        marks, config = SPECIAL_TOKENS, self.config
        if any(mark in text for mark in marks.values()):
            raise UserError(f"the instruction {text!r} holds a special token; write plain words")
        image = marks["vision_start"] + marks["image"] * self.image_tokens + marks["vision_end"]
        full = f"{marks['im_start']}user\n{image * self.views}{text}{marks['im_end']}\n"
        ids = self.tokenizer.encode(full, add_special_tokens=False).ids
        if len(ids) > self.max_length:
            raise UserError(f"the instruction {text!r} gives {len(ids)} tokens, more than max_length {self.max_length}")
        padded = np.full((1, self.max_length), config.tokens.pad, np.int32)
        padded[0, : len(ids)] = ids
        mask = np.arange(self.max_length)[None] < len(ids)
        patch = config.vision.patch_size
        grids = [(1, self.image_size[0] // patch, self.image_size[1] // patch)] * self.views
        slots = image_slots(padded, [[self.image_tokens] * self.views], self.image_tokens, config.tokens.image)
        return {
            "input_ids": padded[0],
            "attention_mask": mask[0],
            "position": token_positions(padded, mask, grids, config)[0],
            "image_slot": slots[0],
        }

    @cached_property
    def image_prefix(self) -> dict[str, np.ndarray]:
        """`prompt` up to the end of the last image: the same for every text."""
        prompt = self.prompt("")
        ends = np.flatnonzero(prompt["input_ids"] == self.config.tokens.vision_end)
        return {name: value[..., : ends[-1] + 1] for name, value in prompt.items()}

    def prepare(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Backbone arrays of a batch.

        Args:
            images: uint8 [B, height, width, 3] of each of the V views, whose sizes may differ.
            texts: B instructions.

        Returns:
            patches uint8 [B, V, P, C], input_ids, attention_mask, image_slot [B, S], position [B, 3, S].
        """
        for view in images:
            if view.dtype != np.uint8 or view.ndim != 4 or len(view) != len(texts) or len(images) != self.views:
                what = f"{len(images)} views, {view.dtype} {list(view.shape)}"
                raise ValueError(f"{what}: expected {self.views}, uint8 [{len(texts)}, height, width, 3]")
        prompts = [self.prompt(text) for text in texts]
        arrays = {key: np.stack([prompt[key] for prompt in prompts]) for key in prompts[0]}
        return arrays | {"patches": patchify(self.resized(images), self.config.vision)}

    def resized(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Views, each uint8 [B, height, width, 3], as the tower sees them: bicubic, of `image_size`, [B, V, ...]."""
        size = (self.image_size[1], self.image_size[0])

        def resized(view: np.ndarray) -> Any:
            same = view.shape[1:3] == self.image_size
            return view if same else [np.asarray(Image.fromarray(picture).resize(size)) for picture in view]

        return np.stack([resized(view) for view in images], 1)
