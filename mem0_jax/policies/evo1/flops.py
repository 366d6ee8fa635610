"""Operations of one frame's forward pass through the parts of an EVO1. Axis letters as in `policy`."""

from mem0_jax.family import Part
from mem0_jax.policies.evo1.config import EVO1Config


def parts(config: EVO1Config, tokens: int) -> dict[str, Part]:
    """Operations by part, of prompts of so many tokens and pictures at all places."""
    backbone = config.views * _vision(config) + _text(config, tokens)
    return {"backbone": Part(backbone), "head": Part(_head(config, tokens), ("backbone",))}


def _vision(config: EVO1Config) -> float:
    vision, text = config.backbone.vision, config.backbone.text
    patches, width = vision.side**2, vision.hidden_size
    layer = 2.0 * patches * (4 * width**2 + 2 * width * vision.intermediate_size) + 4.0 * patches**2 * width
    joined = width * config.backbone.merge**2
    projector = 2.0 * config.backbone.image_tokens * text.hidden_size * (joined + text.hidden_size)
    return vision.num_hidden_layers * layer + 2.0 * patches * 3 * vision.patch_size**2 * width + projector


def _text(config: EVO1Config, tokens: int) -> float:
    text = config.backbone.text
    inner = text.num_attention_heads * text.head_dim
    projections = text.hidden_size * (2 * inner + 2 * text.num_key_value_heads * text.head_dim)
    weights = projections + 3 * text.hidden_size * text.intermediate_size
    return text.num_hidden_layers * (2.0 * tokens * weights + 4.0 * tokens**2 * inner)


def _head(config: EVO1Config, tokens: int) -> float:
    head = config.head
    width, chunk, keys = head.width, head.horizon, (1 if config.cls_only else tokens) + 1
    once = 2.0 * width * head.state_hidden_size + 2.0 * head.state_dim * head.state_hidden_size
    once += head.num_layers * 2.0 * keys * 2 * width**2
    block = 2.0 * chunk * 10 * width**2 + 4.0 * chunk * keys * width
    encoder = 2.0 * chunk * (head.action_dim * width + 2 * width**2)
    out = 2.0 * (chunk * width**2 + head.hidden_size * (width + chunk * head.action_dim))
    return once + config.flow.draws * (head.num_layers * block + encoder + out)
