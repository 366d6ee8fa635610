"""Glance, as the rest of the house sees it."""

from dataclasses import replace
from typing import Any

from mem0_jax.family import Part, PolicyFamily

from .config import GlanceConfig
from .policy import Glance
from .processor import Processor, check_tokenizer, word_tokenizer


def completed(config: GlanceConfig, tokenizer: Any, vocabulary: int, dtype: str) -> GlanceConfig:
    """The configuration with a vocabulary and a compute dtype."""
    return replace(config, vocabulary=vocabulary, dtype=dtype)


def parts(config: GlanceConfig, tokens: int) -> dict[str, Part]:
    """Operations of one frame's forward pass."""
    pixels, width = sum(3 * height * columns for height, columns in config.sizes), config.width
    draw = 2.0 * width * (config.state_dim + 4 * (2 * width + config.chunk + 1) + 4 * config.chunk)
    return {"eyes": Part(2.0 * pixels * width), "head": Part(config.flow.draws * draw, ("eyes",))}


FAMILY = PolicyFamily(
    name="glance",
    config=GlanceConfig,
    policy=Glance,
    init=lambda config: Glance(config).init,
    logical_axes=lambda config: Glance.logical_axes,
    vocabulary=lambda config: config.vocabulary,
    check_tokenizer=check_tokenizer,
    processor=Processor,
    word_tokenizer=word_tokenizer,
    completed=completed,
    parts=parts,
    learning_rates={"eyes": 1e-3, "head": 2e-3},
    floors={"eyes": 1e-5, "head": 1e-5},
)
