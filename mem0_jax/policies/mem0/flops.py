"""Operations of Mem-0 by formula; what counts as one is said in `train.flops`.

Axis letters: P patches of an image, D vision width, M vision MLP width, H text width, S tokens of a prompt, I text MLP
width.
"""

from itertools import pairwise

from mem0_jax.family import Part
from mem0_jax.policies.mem0.config import Mem0Config


def parts(config: Mem0Config, tokens: int) -> dict[str, Part]:
    """Operations of one frame's forward pass in training; `tokens` is S."""
    classifier = sum(
        2.0 * (n_in * n_out + n_out * n_out + (n_in * n_out if n_in != n_out else 0))
        for n_in, n_out in pairwise(config.classifier.hidden_sizes)
    )
    return {
        "backbone": Part(_vision(config) + _text(config, tokens)),
        "memory": Part(_memory(config), ("backbone",)),
        "action": Part(_action(config), ("backbone", "memory")),
        "classifier": Part(classifier, ("backbone", "memory")),
    }


def _vision(config: Mem0Config) -> float:
    vision = config.backbone.vision
    patches = config.image_size[0] * config.image_size[1] // vision.patch_size**2
    width, joined = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    layer = 2.0 * patches * (4 * width**2 + 2 * width * vision.intermediate_size) + 4.0 * patches**2 * width
    merged = patches // vision.spatial_merge_size**2
    mergers = (1 + len(vision.deepstack_visual_indexes)) * 2.0 * merged * joined * (joined + vision.out_hidden_size)
    return vision.depth * layer + mergers + 2.0 * patches * vision.patch_width * width


def _text(config: Mem0Config, tokens: int) -> float:
    text = config.backbone.text
    inner = text.num_attention_heads * text.head_dim
    projections = text.hidden_size * (2 * inner + 2 * text.num_key_value_heads * text.head_dim)
    weights = projections + 3 * text.hidden_size * text.intermediate_size
    return text.num_hidden_layers * (2.0 * tokens * weights + 4.0 * tokens**2 * inner)


def _memory(config: Mem0Config) -> float:
    width = config.backbone.text.hidden_size
    keys = [{"window": config.memory.window_size, "anchor": 1}[branch] for branch in config.memory.branches]
    return sum(2.0 * 4 * width**2 + 4.0 * width * count for count in keys)


def _action(config: Mem0Config) -> float:
    head = config.action
    width, sequence = head.width, 1 + head.horizon
    pairs, context = head.num_layers // 2, 3
    keys = 2.0 * pairs * context * 2 * head.context_width * width  # once a frame, whatever the draws
    mlp_and_modulation = 2.0 * sequence * 8 * width**2 + 2.0 * 2 * width**2
    cross = 2.0 * sequence * 2 * width**2 + 4.0 * sequence * context * width
    self_attention = 2.0 * sequence * 4 * width**2 + 4.0 * sequence**2 * width
    encoder = 2.0 * head.horizon * (head.action_dim * width + 3 * width**2)
    output = 2.0 * sequence * width * head.output_dim + 4.0 * width**2
    decoder = 2.0 * head.horizon * head.hidden_size * (head.output_dim + head.action_dim)
    draw = pairs * (cross + self_attention + 2 * mlp_and_modulation) + encoder + output + decoder
    return keys + config.flow.draws * draw
