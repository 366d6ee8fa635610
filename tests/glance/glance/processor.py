"""Pictures and instructions to a Glance's arrays.

Axis letters: B frames, S words of a prompt, h and w height and width of a camera's pictures.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from mem0_jax.errors import UserError
from mem0_jax.policies.inputs import Inputs
from mem0_jax.resize import resize
from mem0_jax.tokenizer import UNKNOWN

from .config import GlanceConfig


def word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """One token a word."""
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([UNKNOWN, *words])}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: GlanceConfig) -> None:
    """Raises UserError: it has more words than the policy."""
    if tokenizer.get_vocab_size() > config.vocabulary:
        raise UserError(f"the tokenizer has {tokenizer.get_vocab_size()} words, the policy {config.vocabulary}")


class Processor:
    """See `mem0_jax.family.PolicyFamily.processor`."""

    def __init__(self, tokenizer: Tokenizer, config: GlanceConfig, inputs: Inputs):
        check_tokenizer(tokenizer, config)
        if len(inputs.cameras) != len(config.sizes):
            raise UserError(f"the policy has {len(config.sizes)} eyes, and there are {len(inputs.cameras)} cameras")
        self.tokenizer, self._config, self._length = tokenizer, config, inputs.max_length

    def prompt(self, text: str) -> dict[str, np.ndarray]:
        """words int32, attention_mask bool, [S]."""
        ids = self.tokenizer.encode(text).ids
        if len(ids) > self._length:
            raise UserError(f"the instruction {text!r} has {len(ids)} words, more than max_length {self._length}")
        words = np.zeros(self._length, np.int32)
        words[: len(ids)] = ids
        return {"words": words, "attention_mask": np.arange(self._length) < len(ids)}

    @property
    def image_prefix(self) -> dict[str, np.ndarray]:
        """Nothing is remembered, so nothing is seen without its text."""
        return {}

    def resized(self, views: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Pictures uint8 [B, h, w, 3] of each camera, as the eyes see them."""
        sizes = self._config.sizes
        return tuple(
            np.stack([resize(picture, size, "bilinear") for picture in view])
            for view, size in zip(views, sizes, strict=True)
        )

    def prepare(self, views: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """A batch: view_0, view_1, ... and the prompts."""
        prompts = [self.prompt(text) for text in texts]
        arrays = {name: np.stack([prompt[name] for prompt in prompts]) for name in prompts[0]}
        return arrays | {f"view_{i}": view for i, view in enumerate(self.resized(views))}
