"""Rotary position embeddings (Su et al., 2021), with the 2-D and interleaved multi-axis forms of Qwen3-VL.

Axis letters: B batch, S sequence, N heads, D head width. Angles are float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def inverse_frequencies(width: int, theta: float) -> np.ndarray:
    """theta^(-2i/width), i = 0 .. width/2 - 1; float32 [width / 2]."""
    return (1.0 / (theta ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width)))).astype(np.float32)


def axis_of_frequency(sections: tuple[int, int, int]) -> np.ndarray:
    """Which position axis (0 time, 1 height, 2 width) drives each rotary frequency: int [sum(sections)].

    Interleaved MRoPE: frequencies go t h w t h w ... while height and width last (3 * their section), then time.
    Source: Qwen3-VL technical report, 2025.
    """
    axis = np.zeros(sum(sections), np.int32)
    for which in (1, 2):
        axis[which : 3 * sections[which] : 3] = which
    return axis


def mrope_angles(position: Array, width: int, theta: float, sections: tuple[int, int, int]) -> Array:
    """Angles of the text stack.

    Args:
        position: int [3, B, S], rows time, height, width.
        width: head width D; sum(sections) must equal D / 2.
        theta: rotary base.
        sections: number of frequencies of each axis.

    Returns:
        float32 [B, S, D / 2].
    """
    chosen = position.astype(jnp.float32)[axis_of_frequency(sections)]  # [D/2, B, S]
    return jnp.moveaxis(chosen, 0, -1) * inverse_frequencies(width, theta)


def vision_angles(row_column: Array, width: int) -> Array:
    """2-D rotary angles of the vision tower: int [..., 2] -> float32 [..., width / 2], rows first then columns."""
    angle = row_column[..., None].astype(jnp.float32) * inverse_frequencies(width // 2, 10000.0)
    return angle.reshape(*angle.shape[:-2], width // 2)


def rotate(x: Array, angle: Array) -> Array:
    """Rotates the halves of each head: x [B, S, N, D], angle [B, S, D / 2] -> [B, S, N, D] in the dtype of x."""
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
