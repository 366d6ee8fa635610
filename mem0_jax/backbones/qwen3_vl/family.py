"""Qwen3-VL alone, as the rest of the house sees it."""

from dataclasses import replace
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from mem0_jax.backbones.qwen3_vl.axes import logical_axes
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.decode import take_apart
from mem0_jax.backbones.qwen3_vl.generate import Generator
from mem0_jax.backbones.qwen3_vl.lessons import Lessons
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS, check_tokenizer, token_ids
from mem0_jax.family import ChatFamily
from mem0_jax.nn import module


def generator(
    config: Qwen3VLConfig, params: Any, tokenizer: Tokenizer, int8: bool = False, **settings: Any
) -> Generator:
    """Answers prompts with these parameters, which it takes apart; further settings are `Generator`'s."""
    return Generator(config, take_apart(params, int8=int8), tokenizer, **settings)


def completed(config: Qwen3VLConfig, tokenizer: Tokenizer | None, vocabulary: int | None) -> Qwen3VLConfig:
    """The configuration with the tokenizer's ids (None: its own), and a vocabulary (None: its own)."""
    text = replace(config.text, vocab_size=vocabulary or config.text.vocab_size)
    return replace(config, text=text, tokens=config.tokens if tokenizer is None else token_ids(tokenizer))


FAMILY = ChatFamily(
    name="qwen3_vl",
    config=Qwen3VLConfig,
    init=lambda config: partial(module.init, lambda rngs: Qwen3VL(config, rngs)),
    logical_axes=logical_axes,
    vocabulary=lambda config: config.text.vocab_size,
    check_tokenizer=check_tokenizer,
    title="Qwen3-VL",
    marks=SPECIAL_TOKENS,
    generator=generator,
    lessons=Lessons,
    completed=completed,
    unnamed=True,
)
