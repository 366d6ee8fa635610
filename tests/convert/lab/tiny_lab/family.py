"""As the rest of the house sees it."""

from typing import Any

import jax.numpy as jnp

from mem0_jax.family import Family

from .config import TinyConfig


def init(config: TinyConfig):
    """(key) -> fresh parameters."""
    width, layers = config.width, config.stack.layers
    return lambda key: {
        "embed": {"embedding": jnp.zeros((config.vocabulary, width))},
        "layers": {"kernel": jnp.zeros((layers, width, 2 * width)), "bias": jnp.zeros((layers, 2 * width))},
    }


def any_tokenizer(tokenizer: Any, config: TinyConfig) -> None:
    """It has no special tokens."""


FAMILY = Family(
    name="tiny_lab",
    config=TinyConfig,
    init=init,
    logical_axes=lambda config: (("", ".*"),),
    vocabulary=lambda config: config.vocabulary,
    check_tokenizer=any_tokenizer,
)
