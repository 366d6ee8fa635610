"""EVO1, as the rest of the house sees it."""

from dataclasses import replace

from tokenizers import Tokenizer

from mem0_jax.backbones.internvl3 import family as backbone
from mem0_jax.backbones.internvl3.processor import check_tokenizer, word_tokenizer
from mem0_jax.family import NO_FACTOR, PolicyFamily, Preset
from mem0_jax.policies.evo1 import axes
from mem0_jax.policies.evo1.config import EVO1Config
from mem0_jax.policies.evo1.flops import parts
from mem0_jax.policies.evo1.policy import EVO1, serving_dtype
from mem0_jax.policies.evo1.processor import Processor

ADAPTED = rf"{NO_FACTOR}backbone/.*"
PRESETS = {
    "full": Preset(),
    "head_only": Preset((r"backbone/.*",), (r"backbone/.*",)),
    "lora": Preset((ADAPTED,), (ADAPTED,), (r"backbone/language_model/layers/.*_proj/kernel",)),
}


def completed(config: EVO1Config, tokenizer: Tokenizer | None, vocabulary: int, dtype: str) -> EVO1Config:
    """The configuration with the tokenizer's ids, a vocabulary and a compute dtype."""
    return replace(config, backbone=backbone.completed(config.backbone, tokenizer, vocabulary), dtype=dtype)


FAMILY = PolicyFamily(
    name="evo1",
    config=EVO1Config,
    policy=EVO1,
    init=lambda config: EVO1(config).init,
    logical_axes=lambda config: axes.logical_axes(config.head),
    vocabulary=lambda config: config.backbone.text.vocab_size,
    check_tokenizer=lambda tokenizer, config: check_tokenizer(tokenizer, config.backbone),
    serving_dtype=serving_dtype,
    backbone="backbone",
    processor=Processor,
    word_tokenizer=word_tokenizer,
    completed=completed,
    parts=parts,
    learning_rates={"backbone": 1e-5, "head": 1e-5},
    floors={"backbone": 0.0, "head": 0.0},
    no_decay=(r".*/(bias|scale|lambda_[12])",),
    presets=PRESETS,
    free=("remat", "remat_keep"),
    recomputes=lambda config: config.recompute == "nothing",
)
