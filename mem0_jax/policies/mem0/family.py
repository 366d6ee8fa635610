"""Mem-0, as the rest of the house sees it."""

from dataclasses import replace

from tokenizers import Tokenizer

from mem0_jax.backbones.qwen3_vl import family as backbone
from mem0_jax.backbones.qwen3_vl.processor import Processor, check_tokenizer, word_tokenizer
from mem0_jax.family import NO_FACTOR, PolicyFamily, Preset
from mem0_jax.policies.mem0 import axes
from mem0_jax.policies.mem0.config import Mem0Config
from mem0_jax.policies.mem0.flops import parts
from mem0_jax.policies.mem0.policy import Mem0, serving_dtype

FEATURES = "(backbone|memory)/.*"  # all but the heads, which are float32 always
ADAPTED = rf"{NO_FACTOR}backbone/.*"
PRESETS = {
    "full": Preset(),
    "action_expert_only": Preset((r"(?!action/).*",), (FEATURES,)),
    "lora": Preset((ADAPTED,), (ADAPTED,), (r"backbone/language_model/layers/.*_proj/kernel",)),
}


def completed(config: Mem0Config, tokenizer: Tokenizer | None, vocabulary: int, dtype: str) -> Mem0Config:
    """The configuration with the tokenizer's ids, a vocabulary and a compute dtype."""
    return replace(config, backbone=backbone.completed(config.backbone, tokenizer, vocabulary), dtype=dtype)


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
    learning_rates={"backbone": 1e-5, "action": 1e-4, "classifier": 1e-4, "memory": 1e-5},
    floors={"backbone": 1e-6, "action": 5e-6, "classifier": 5e-6, "memory": 1e-6},
    presets=PRESETS,
    reference=(rf"{NO_FACTOR}{FEATURES}",),
    free=("remat", "remat_keep"),
    recomputes=lambda config: config.recompute == "nothing",
    unnamed=True,
)
