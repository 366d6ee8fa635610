"""Floating-point operations of Mem-0 by formula, and how many a device could do.

Axis letters: P patches of an image, D vision width, M vision MLP width, H text width, S tokens of a prompt, I text MLP
width. A product of [m, k] and [k, n] counts
2 m k n; attention over n tokens of width d counts 4 n^2 d, masked or not, because so much is computed; norms, softmax
and embeddings count nothing. Source: the usual accounting of Kaplan et al. (2020) and Chowdhery et al. (2022), module
by module.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mem0_jax.policies.mem0 import Mem0Config

# Peak dense bfloat16 operations a second by the makers' data sheets; the first prefix of the device's kind counts.
PEAKS = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA A800", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA GeForce RTX 4090", 165e12),
    ("NVIDIA GeForce RTX 3090", 71e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Peak operations a second of a device by `jax.Device.device_kind`; None where it is not known."""
    return next((peak for prefix, peak in PEAKS if device_kind.startswith(prefix)), None)


def forward_flops(config: Mem0Config, tokens: int) -> dict[str, float]:
    """Operations of one frame's forward pass in training, by module; `tokens` is S."""
    return {
        "backbone": _vision(config) + _text(config, tokens),
        "memory": _memory(config),
        "action": _action(config),
        "classifier": sum(
            2.0 * (n_in * n_out + n_out * n_out + (n_in * n_out if n_in != n_out else 0))
            for n_in, n_out in pairwise(config.classifier.hidden_sizes)
        ),
    }


def training_flops(config: Mem0Config, tokens: int, trained: Iterable[str]) -> float:
    """Operations of one frame in a training step, recomputation left out (as for MFU).

    A module whose kernels are trained takes three forward passes (forward, gradients of activations and of weights);
    one that only passes gradients on, or is trained by low-rank factors, two; one that does neither, one.

    Args:
        config: the policy.
        tokens: of a prompt, padding included.
        trained: paths of the trained parameters.
    """
    trained = list(trained)
    forward, total = forward_flops(config, tokens), 0.0
    upstream = {"backbone": (), "memory": ("backbone",), "action": ("backbone", "memory")}
    upstream["classifier"] = upstream["action"]
    for module, operations in forward.items():
        own = [path for path in trained if path.startswith(f"{module}/")]
        passes_on = any(path.startswith(f"{name}/") for path in trained for name in upstream[module])
        whole = any(path.endswith("/kernel") for path in own)
        total += operations * (3 if whole else 2 if own or passes_on else 1)
    return total


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
