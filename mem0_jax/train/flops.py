"""Floating-point operations of a training step by formula, and how many a device could do.

A product of [m, k] and [k, n] counts 2 m k n; attention over n tokens of width d counts 4 n^2 d, masked or not, because
so much is computed; norms, softmax and embeddings count nothing. Source: the usual accounting of Kaplan et al. (2020)
and Chowdhery et al. (2022), part by part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mem0_jax.family import policy_family_of

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


def training_flops(config: Any, tokens: int, trained: Iterable[str]) -> float:
    """Operations of one frame in a training step, recomputation left out (as for MFU).

    A part whose kernels are trained takes three forward passes (forward, gradients of activations and of weights);
    one that only passes gradients on, or is trained by low-rank factors, two; one that does neither, one.

    Args:
        config: the policy.
        tokens: of a prompt, padding included.
        trained: paths of the trained parameters.
    """
    trained, total = list(trained), 0.0
    for name, part in policy_family_of(config).parts(config, tokens).items():
        own = [path for path in trained if path.startswith(f"{name}/")]
        passes_on = any(path.startswith(f"{other}/") for path in trained for other in part.upstream)
        whole = any(path.endswith("/kernel") for path in own)
        total += part.operations * (3 if whole else 2 if own or passes_on else 1)
    return total
