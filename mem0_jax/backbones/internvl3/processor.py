"""From images and an instruction to the arrays of the backbone, on the host.

Axis letters: B samples, V images given, N pixels along their side, S tokens of a prompt. A prompt has a place for each
of `views` images, given or not. Source: LeRobot 0.6 and MINT-SJTU/Evo-1 (behaviour).
"""

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from mem0_jax.backbones.internvl3.config import InternVL3Config, TokenIds
from mem0_jax.errors import UserError
from mem0_jax.resize import resize
from mem0_jax.tokenizer import UNKNOWN

SPECIAL_TOKENS = {
    "pad": "<|endoftext|>",
    "image_start": "<img>",
    "image_end": "</img>",
    "image": "<IMG_CONTEXT>",
}
MAX_PROMPTS = 4096  # kept tokenized


def word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer with one token a word of `texts`, for models trained from scratch on a few instructions."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS.values(), UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return tokenizer


def token_ids(tokenizer: Tokenizer) -> TokenIds:
    """The ids of the special tokens. Raises UserError, listing those the tokenizer lacks."""
    found = {name: tokenizer.token_to_id(token) for name, token in SPECIAL_TOKENS.items()}
    if missing := [SPECIAL_TOKENS[name] for name, number in found.items() if number is None]:
        raise UserError(f"the tokenizer has no {', '.join(missing)}: it is not one of InternVL3's")
    return TokenIds(**{name: number for name, number in found.items() if number is not None})


def check_tokenizer(tokenizer: Tokenizer, config: InternVL3Config) -> None:
    """Raises UserError where the special tokens of a tokenizer are not those of the model."""
    if (found := token_ids(tokenizer)) != config.tokens:
        raise UserError(f"the tokenizer has the special tokens {found}, the model expects {config.tokens}")


class Processor:
    """Prepares observations for one backbone.

    Args:
        tokenizer: with InternVL3's special tokens.
        config: the backbone's sizes; its token ids must be the tokenizer's.
        views: images that a prompt has places for.
        given: those that there are; the places of the others stay, and are seen by nobody.
        max_length: tokens of a prompt; shorter ones are padded on the right, of longer ones the end is left out.
        whole: the tokens of images that are not given stay in the prompt: some models attend to them. Else they are
            left out, while those behind keep their positions.

    Raises:
        UserError: more images are given than there are places, or they do not fit into `max_length`.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: InternVL3Config, views: int, given: int, max_length: int, whole: bool
    ):
        check_tokenizer(tokenizer, config)
        if given > views:
            raise UserError(f"the model takes {views} images, there are {given} cameras")
        self.tokenizer, self.config, self.views, self.given = tokenizer, config, views, given
        self.max_length, self.whole = max_length, whole
        self._prompts: dict[str, dict[str, np.ndarray]] = {}
        self.prompt("")

    def prompt(self, text: str) -> dict[str, np.ndarray]:
        """Arrays of an instruction after the images, [S]: input_ids, position, image_slot int32, visible and
        attention_mask bool. See `InternVL3.encode`; `attention_mask` is the part that is not mere padding."""
        prompt = self._prompts.get(text)
        if prompt is None:
            prompt = self._tokenize(text)
            if len(self._prompts) >= MAX_PROMPTS:  # a server hears whatever clients say
                self._prompts.clear()
            self._prompts[text] = prompt
        return prompt

    def written(self, text: str) -> str:
        """The whole prompt of an instruction."""
        marks = SPECIAL_TOKENS
        if any(mark in text for mark in marks.values()):
            raise UserError(f"the instruction {text!r} holds a special token; write plain words")
        image = marks["image_start"] + marks["image"] * self.config.image_tokens + marks["image_end"]
        return "".join(f"Image-{k}: {image}\n" for k in range(1, self.views + 1)) + text.strip()

    def _tokenize(self, text: str) -> dict[str, np.ndarray]:
        tokens, each, length = self.config.tokens, self.config.image_tokens, self.max_length
        ids = np.asarray(self.tokenizer.encode(self.written(text), add_special_tokens=False).ids, np.int32)
        is_image = ids == tokens.image
        slot = np.where(is_image, np.cumsum(is_image) - 1, -1)
        shown, position = slot < self.given * each, np.arange(len(ids))
        if self.whole:  # what is not given shares the tokens of one black image, behind the others
            slot = np.where(shown, slot, self.given * each + slot % each)
        else:
            ids, slot, position, shown = (values[shown] for values in (ids, slot, position, shown))
        if (slot[length:] >= 0).any():
            end = int(np.flatnonzero(slot >= 0)[-1]) + 1
            raise UserError(f"max_length {length} has no room for the images, whose last token is number {end}")
        return {
            "input_ids": _padded(ids, length, tokens.pad),
            "position": np.arange(length, dtype=np.int32) if self.whole else _padded(position, length, 0),
            "image_slot": _padded(slot, length, -1),
            "visible": _padded(shown, length, False),
            "attention_mask": np.arange(length) < len(ids),
        }

    @property
    def image_prefix(self) -> dict[str, np.ndarray]:
        """Nothing: images are seen with their instruction."""
        return {}

    def resized(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Views, each uint8 [B, height, width, 3], as the tower sees them: [B, V, N, N, 3]."""
        size = (self.config.vision.image_size, self.config.vision.image_size)

        def resized(view: np.ndarray) -> np.ndarray:
            same = view.shape[1:3] == size
            return view if same else np.stack([resize(picture, size, "bicubic_once") for picture in view])

        return np.stack([resized(view) for view in images], 1)

    def prepare(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Backbone arrays of a batch: pixels uint8 [B, V, N, N, 3] and those of `prompt` [B, S].

        Args:
            images: uint8 [B, height, width, 3] of each of the V views, whose sizes may differ.
            texts: B instructions.
        """
        for view in images:
            if view.dtype != np.uint8 or view.ndim != 4 or len(view) != len(texts) or len(images) != self.given:
                what = f"{len(images)} views, {view.dtype} {list(view.shape)}"
                raise ValueError(f"{what}: expected {self.given}, uint8 [{len(texts)}, height, width, 3]")
        prompts = [self.prompt(text) for text in texts]
        return {name: np.stack([prompt[name] for prompt in prompts]) for name in prompts[0]} | {
            "pixels": self.resized(images)
        }


def _padded(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    """The first `length`, filled up to so many; bool stays, all else is int32."""
    padded = np.full(length, fill, bool if values.dtype == bool else np.int32)
    padded[: len(values)] = values[:length]
    return padded
