"""A single arm of seven numbers with two cameras of different sizes, recorded by the writer: nothing of RMBench's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mem0_jax.data.lerobot_writer import LeRobotWriter

NAMES = [f"{joint}.pos" for joint in ("base", "shoulder", "elbow", "wrist_1", "wrist_2", "wrist_3", "gripper")]
CAMERAS = {"observation.images.top": (48, 64), "observation.images.wrist": (32, 32)}
TASK = "put the cup on the shelf"
LENGTHS = (9, 12, 8, 10)


def pictures(episode: int, frame: int) -> dict[str, np.ndarray]:
    """By the names that environments use."""
    rng = np.random.default_rng([episode, frame])
    return {
        key.rpartition(".")[2]: np.full((*size, 3), rng.integers(0, 256, 3), np.uint8) for key, size in CAMERAS.items()
    }


def write_arm(root: Path) -> Path:
    """Four short episodes; actions are the next state, the gripper's open or shut."""
    return record(root, NAMES, NAMES, lambda way: way[1:])


def record(root: Path, state: list[str], action: list[str], actions: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The same movements of seven numbers under other names; `actions` are made of states [T + 1, 7], for T frames."""
    features = {
        key: {"dtype": "float32", "shape": [len(names)], "names": names}
        for key, names in (("observation.state", state), ("action", action))
    }
    features |= {
        key: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channels"]}
        for key, size in CAMERAS.items()
    }
    with LeRobotWriter(root, 10, features, "arm") as writer:
        for episode, length in enumerate(LENGTHS):
            t = np.arange(length + 1)
            way = np.sin(0.3 * t[:, None] + np.arange(7) + episode).astype(np.float32)
            way[:, 6] = t > length // 2
            shown = [pictures(episode, i) for i in range(length)]
            frames = {key: np.stack([views[key.rpartition(".")[2]] for views in shown]) for key in CAMERAS}
            writer.add_episode({"observation.state": way[:-1], "action": actions(way), **frames}, TASK)
    return root
