"""Logical axes of Mem-0's parameters; their names are those of `backbones.qwen3_vl.axes`."""

from mem0_jax.backbones.qwen3_vl import axes
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig

MEMORY = (
    ("embed heads", r"memory/cross_attn[12]/[qkv]/kernel"),
    ("heads", r"memory/cross_attn[12]/[qkv]/bias"),
    ("heads embed", r"memory/cross_attn[12]/out/kernel"),
    ("embed mlp", r"memory/rank_linear_1/kernel"),
    ("mlp", r"memory/rank_linear_1/bias"),
    ("mlp embed", r"memory/rank_linear_2/kernel"),
    ("stream", r"memory/(cross_attn[12]/out/bias|rank_linear_2/bias|norm[12]/.*)"),
)
ACTION = (
    ("layers embed heads", r"action/blocks/(cross|self)/to_[qkv]/kernel"),
    ("layers heads", r"action/blocks/(cross|self)/to_[qkv]/bias"),
    ("layers heads embed", r"action/blocks/(cross|self)/to_out/kernel"),
    ("layers embed mlp", r"action/blocks/(cross|self)/ff_in/kernel"),
    ("layers mlp", r"action/blocks/(cross|self)/ff_in/bias"),
    ("layers mlp embed", r"action/blocks/(cross|self)/ff_out/kernel"),
    # The modulation is split in two halves, scale and shift: `tensor` would cut them apart.
    ("layers embed small", r"action/blocks/(cross|self)/norm1/kernel"),
    ("layers stream", r"action/blocks/(cross|self)/(norm1|to_out|ff_out)/bias"),
    ("small embed", r"action/(state_encoder|action_encoder)/layer1/kernel"),
    ("embed small", r"action/action_decoder/layer2/kernel"),
    ("embed mlp", r"action/(action_encoder/layer2|time_linear_1|action_decoder/layer1)/kernel"),
    ("mlp embed", r"action/(action_encoder/layer3|state_encoder/layer2|time_linear_2)/kernel"),
    ("embed small", r"action/proj_out_[12]/kernel"),
    ("small embed", r"action/position_embedding/embedding"),
    ("stream", r"action/[^/]*(encoder|decoder|linear|proj)[^/]*/(layer\d/)?bias"),
)
CLASSIFIER = (
    ("embed mlp", r"classifier/block_\d+/(fc1|skip)/kernel"),
    ("mlp embed", r"classifier/block_\d+/fc2/kernel"),
    ("embed small", r"classifier/head/kernel"),
    ("stream", r"classifier/.*/(bias|scale)"),
)


def logical_axes(backbone: Qwen3VLConfig) -> tuple[tuple[str, str], ...]:
    """(logical axes, path regex) for the tree of `Mem0`."""
    inner = tuple((names, f"backbone/{path}") for names, path in axes.logical_axes(backbone))
    return (*inner, *MEMORY, *ACTION, *CLASSIFIER)
