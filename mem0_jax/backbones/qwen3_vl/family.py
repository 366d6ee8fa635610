"""Qwen3-VL alone, as the rest of the house sees it."""

from functools import partial

from mem0_jax.backbones.qwen3_vl.axes import logical_axes
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.processor import check_tokenizer
from mem0_jax.family import Family
from mem0_jax.nn import module

FAMILY = Family(
    name="qwen3_vl",
    config=Qwen3VLConfig,
    init=lambda config: partial(module.init, lambda rngs: Qwen3VL(config, rngs)),
    logical_axes=logical_axes,
    vocabulary=lambda config: config.text.vocab_size,
    check_tokenizer=check_tokenizer,
)
