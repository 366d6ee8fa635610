"""Logical axes of the backbone's parameters; `distributed.sharding` maps them to the axes of a mesh.

layers: stacked layers. embed: width of the residual stream, where a matrix reads or writes it. stream: the same, of
vectors. mlp: inner width of an MLP. heads: all heads of an attention. vocab: rows of the token table. small: the rest.
"""

TEXT, VISION = "language_model/", "vision_tower/"
AXES = (
    ("vocab embed", TEXT + "embed_tokens/embedding"),
    ("layers embed heads", TEXT + "layers/self_attn/[qkv]_proj/kernel"),
    ("layers heads", TEXT + "layers/self_attn/[qkv]_proj/bias"),
    ("layers heads embed", TEXT + "layers/self_attn/o_proj/kernel"),
    ("layers embed mlp", TEXT + "layers/mlp/(gate|up)_proj/kernel"),
    ("layers mlp embed", TEXT + "layers/mlp/down_proj/kernel"),
    ("layers stream", TEXT + "layers/(input|post_attention)_layernorm/scale"),
    ("stream", TEXT + "norm/scale"),
    ("small embed", VISION + "(patch_embed/kernel|position|cls_token)"),
    ("stream", VISION + "patch_embed/bias"),
    ("layers embed heads", VISION + "blocks/attn/[qkv]/kernel"),
    ("layers heads", VISION + "blocks/attn/[qkv]/bias"),
    ("layers heads embed", VISION + "blocks/attn/proj/kernel"),
    ("layers embed mlp", VISION + "blocks/fc1/kernel"),
    ("layers mlp", VISION + "blocks/fc1/bias"),
    ("layers mlp embed", VISION + "blocks/fc2/kernel"),
    ("layers stream", VISION + "blocks/(attn/proj/bias|fc2/bias|norm[12]/.*|lambda_[12])"),
    ("embed mlp", "projector/linear_1/kernel"),
    ("mlp", "projector/linear_1/bias"),
    ("mlp embed", "projector/linear_2/kernel"),
    ("stream", "projector/(linear_2/bias|norm/.*)"),
)
