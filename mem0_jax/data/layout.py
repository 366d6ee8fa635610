"""The two orders of a two-armed robot's joint vector.

Axes: ... any leading axes. Environments give [left arm, left gripper, right arm, right gripper], 14 numbers for
6-joint arms and 16 for 7-joint arms; models use [left arm 7, right arm 7, left gripper, right gripper], always 16,
where a 6-joint arm's seventh joint is 0 (Mem-0's convention).
"""

from __future__ import annotations

import numpy as np

MODEL_DIM = 16
GRIPPER_DIMS = (14, 15)  # of the model layout
SEVENTH_JOINTS = (6, 13)  # likewise
JOINT_NAMES = (
    *(f"left_joint_{i}" for i in range(7)),
    *(f"right_joint_{i}" for i in range(7)),
    "left_gripper",
    "right_gripper",
)
# Where each number of an environment vector stands in the model layout.
_MODEL_INDEX = {
    14: np.array([0, 1, 2, 3, 4, 5, 14, 7, 8, 9, 10, 11, 12, 15]),
    16: np.array([0, 1, 2, 3, 4, 5, 6, 14, 7, 8, 9, 10, 11, 12, 13, 15]),
}


def env_to_model(vector: np.ndarray) -> np.ndarray:
    """Reorder an environment vector [..., 14|16] to the model layout, float32 [..., 16]."""
    vector = np.asarray(vector, np.float32)
    index = _index(vector.shape[-1] if vector.ndim else 0)
    out = np.zeros((*vector.shape[:-1], MODEL_DIM), np.float32)
    out[..., index] = vector
    return out


def model_to_env(vector: np.ndarray, dim: int) -> np.ndarray:
    """Reorder a model vector [..., 16] to an environment's layout of `dim` (14 or 16) numbers, float32 [..., dim]."""
    vector = np.asarray(vector, np.float32)
    if vector.shape[-1:] != (MODEL_DIM,):
        raise ValueError(f"model vector has shape {list(vector.shape)}; expected [..., {MODEL_DIM}]")
    return vector[..., _index(dim)]


def _index(dim: int) -> np.ndarray:
    if dim not in _MODEL_INDEX:
        raise ValueError(f"environment vector has {dim} numbers; expected 14 (6-joint arms) or 16 (7-joint arms)")
    return _MODEL_INDEX[dim]
