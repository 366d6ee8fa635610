"""Mem-0, as the rest of the house sees it."""

from dataclasses import replace

from tokenizers import Tokenizer

from mem0_jax.backbones.qwen3_vl.processor import Processor, check_tokenizer, token_ids, word_tokenizer
from mem0_jax.family import PolicyFamily
from mem0_jax.policies.mem0 import axes
from mem0_jax.policies.mem0.config import Mem0Config
from mem0_jax.policies.mem0.flops import parts
from mem0_jax.policies.mem0.policy import Mem0, serving_dtype


def completed(config: Mem0Config, tokenizer: Tokenizer, vocabulary: int, dtype: str) -> Mem0Config:
    """The configuration with the tokenizer's ids, a vocabulary and a compute dtype."""
    text = replace(config.backbone.text, vocab_size=vocabulary)
    return replace(config, backbone=replace(config.backbone, text=text, tokens=token_ids(tokenizer)), dtype=dtype)


FAMILY = PolicyFamily(
    name="mem0",
    config=Mem0Config,
    policy=Mem0,
    init=lambda config: Mem0(config).init,
    logical_axes=lambda config: axes.logical_axes(config.backbone),
    vocabulary=lambda config: config.backbone.text.vocab_size,
    check_tokenizer=lambda tokenizer, config: check_tokenizer(tokenizer, config.backbone),
    serving_dtype=serving_dtype,
    backbone="backbone",
    processor=lambda tokenizer, config, inputs: Processor(
        tokenizer, config.backbone, config.image_size, inputs.max_length, len(inputs.cameras)
    ),
    word_tokenizer=word_tokenizer,
    completed=completed,
    parts=parts,
)
