"""Small episodes whose pictures and numbers tell where they come from."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.tree import flatten

ASSETS = Path(__file__).parent / "assets"
CAMERA = "observation.image.head_camera"

LENGTHS = (7, 12, 5, 9, 1, 16, 8)
NULLS = {1: (0, 1, 5), 2: (0, 1, 2, 3, 4), 5: (15,)}  # episode 2 is never played


def assert_same(found: dict, expected: dict) -> None:
    """Equal elements or batches, to the byte."""
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def picture(episode: int, frame: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A smooth picture whose 16 grey cells tell episode (6 bits) and frame (10 bits)."""
    y, x = np.mgrid[:height, :width]
    out = np.stack([80 + x // 2, 60 + y, np.full_like(x, 128)], -1).astype(np.uint8)
    for cell in range(16):
        bit = (episode << 10 | frame) >> (15 - cell) & 1
        row, column = divmod(cell, 8)
        cv2.rectangle(out, (column * 12, row * 16), (column * 12 + 11, row * 16 + 15), (220 * bit + 16,) * 3, -1)
    return out


def read_code(image: np.ndarray) -> tuple[int, int]:
    """(episode, frame) of a decoded `picture`."""
    cells = image[:32].reshape(2, 16, 8, 12, 3).mean((1, 3, 4)).ravel() > 126
    code = int("".join("01"[int(bit)] for bit in cells), 2)
    return code >> 10, code & 1023


def episode_frames(episode: int, length: int, *, null_frames: tuple[int, ...] = ()) -> dict:
    """One episode of staged_features whose numbers are functions of (episode, frame)."""
    t = np.arange(length)
    dims = np.arange(16)
    state = np.sin(0.1 * t[:, None] + dims + episode).astype(np.float32)
    texts = [f"pick block {episode % 2}" if i < length // 2 else "press the button" for i in range(length)]
    return {
        "observation.state": state,
        "action": np.concatenate([state[1:], state[-1:]]),
        CAMERA: np.stack([picture(episode, i) for i in range(length)]),
        "subtask": ["null" if i in null_frames else text for i, text in enumerate(texts)],
        "subtask_end": (t >= length - 3).astype(np.int32),
        "episode_id": np.full(length, episode, np.int32),
    }


def write_numbers(writer: Callable[..., LeRobotWriter], root: Path, *, episodes: int, length: int) -> None:
    """A dataset of staged_features without pictures."""
    features = {key: value for key, value in staged_features(64, 96).items() if key != CAMERA}
    with writer(root, 10, features, "planar") as opened:
        for episode in range(episodes):
            frames = episode_frames(episode, length)
            opened.add_episode({key: frames[key] for key in features}, "task")
