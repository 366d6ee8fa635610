"""InternVL3 alone, as the rest of the house sees it."""

from dataclasses import replace
from functools import partial

from tokenizers import Tokenizer

from mem0_jax.backbones.internvl3.axes import AXES
from mem0_jax.backbones.internvl3.config import InternVL3Config
from mem0_jax.backbones.internvl3.model import InternVL3
from mem0_jax.backbones.internvl3.processor import check_tokenizer, token_ids
from mem0_jax.family import Family
from mem0_jax.nn import module


def completed(config: InternVL3Config, tokenizer: Tokenizer | None, vocabulary: int | None) -> InternVL3Config:
    """The configuration with the tokenizer's ids (None: its own), and a vocabulary (None: its own)."""
    text = replace(config.text, vocab_size=vocabulary or config.text.vocab_size)
    return replace(config, text=text, tokens=config.tokens if tokenizer is None else token_ids(tokenizer))


FAMILY = Family(
    name="internvl3",
    config=InternVL3Config,
    init=lambda config: partial(module.init, lambda rngs: InternVL3(config, rngs)),
    logical_axes=lambda config: AXES,
    vocabulary=lambda config: config.text.vocab_size,
    check_tokenizer=check_tokenizer,
)
