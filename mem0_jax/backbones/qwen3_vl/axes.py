"""Logical axes of the backbone's parameters; `distributed.sharding` maps them to the axes of a mesh.

layers: stacked layers. embed: width of the residual stream, where a matrix reads or writes it. stream: the same, of
vectors. mlp: inner width of an MLP. heads: all heads of an attention. vocab: rows of the token table. small: the rest.
"""

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig


def logical_axes(config: Qwen3VLConfig) -> tuple[tuple[str, str], ...]:
    """(logical axes, path regex) for the tree of a bare `Qwen3VL`."""
    text, vision = "language_model/", "visual/"
    rules = [
        ("vocab embed", text + "embed_tokens/embedding"),
        ("layers embed heads", text + "layers/self_attn/[qkv]_proj/kernel"),
        ("layers heads embed", text + "layers/self_attn/o_proj/kernel"),
        ("layers small", text + "layers/self_attn/[qk]_norm/scale"),
        ("layers embed mlp", text + "layers/mlp/(gate|up)_proj/kernel"),
        ("layers mlp embed", text + "layers/mlp/down_proj/kernel"),
        ("layers stream", text + "layers/(input|post_attention)_layernorm/scale"),
        ("stream", text + "norm/scale"),
        ("small embed", vision + "(patch_embed/kernel|pos_embed/embedding)"),
        ("stream", vision + "patch_embed/bias"),
        ("layers embed heads", vision + "blocks/attn/[qkv]/kernel"),
        ("layers heads", vision + "blocks/attn/[qkv]/bias"),
        ("layers heads embed", vision + "blocks/attn/proj/kernel"),
        ("layers embed mlp", vision + "blocks/linear_fc1/kernel"),
        ("layers mlp", vision + "blocks/linear_fc1/bias"),
        ("layers mlp embed", vision + "blocks/linear_fc2/kernel"),
        ("layers stream", vision + "blocks/(attn/proj/bias|linear_fc2/bias|norm[12]/.*)"),
    ]
    mergers = [("", "merger/")]
    if config.vision.deepstack_visual_indexes:
        mergers.append(("layers ", "deepstack_mergers/"))
    for stack, merger in mergers:
        rules += [
            (stack + "embed mlp", vision + merger + "linear_fc1/kernel"),
            (stack + "mlp", vision + merger + "linear_fc1/bias"),
            (stack + "mlp embed", vision + merger + "linear_fc2/kernel"),
            (stack + "stream", vision + merger + "(linear_fc2/bias|norm/.*)"),
        ]
    if not config.text.tie_word_embeddings:
        rules.append(("embed vocab", "lm_head/kernel"))
    return tuple(rules)
