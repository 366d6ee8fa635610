"""Logical axes of EVO1's parameters; their names are those of `backbones.internvl3.axes`."""

from mem0_jax.backbones.internvl3 import axes
from mem0_jax.heads.cross_attention import CrossAttentionConfig

HEAD = (
    ("layers embed heads", r"head/blocks/[qkv]/kernel"),
    ("layers heads", r"head/blocks/[qkv]/bias"),
    ("layers heads embed", r"head/blocks/out/kernel"),
    ("layers embed mlp", r"head/blocks/ff_in/kernel"),
    ("layers mlp", r"head/blocks/ff_in/bias"),
    ("layers mlp embed", r"head/blocks/ff_out/kernel"),
    ("layers stream", r"head/blocks/(out/bias|ff_out/bias|norm[12]/.*)"),
    ("small embed", r"head/time_table/embedding"),
    ("mlp embed", r"head/pool/kernel"),
    ("stream", r"head/(norm_out/.*|pool/bias)"),
)
# Layers that with several kinds of robots have a leading axis.
STATE = (("small embed", "head/state_encoder/layer1"), ("mlp embed", "head/state_encoder/layer2"))
DECODER = (("embed mlp", "head/decoder/layer1"), ("embed small", "head/decoder/layer2"))
ACTION = (
    ("small embed", "head/action_encoder/layer1"),
    ("embed mlp", "head/action_encoder/layer2"),
    ("mlp embed", "head/action_encoder/layer3"),
)


def logical_axes(head: CrossAttentionConfig) -> tuple[tuple[str, str], ...]:
    """(logical axes, path regex) for the tree of `EVO1`."""
    rules = [(names, f"backbone/{path}") for names, path in axes.AXES] + list(HEAD)
    if head.horizon > 1:
        rules.append(("small embed", "head/position_table/embedding"))
    else:
        rules += [("small embed", "head/single/kernel"), ("stream", "head/single/bias")]
    many = "layers " if head.categories > 1 else ""
    for names, path in (*STATE, *DECODER, *(ACTION if head.horizon > 1 else ())):
        rules += [(many + names, f"{path}/kernel"), (f"{many}stream", f"{path}/bias")]
    return tuple(rules)
