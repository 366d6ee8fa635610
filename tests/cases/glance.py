"""Glance on an arm that says where its hand is, and is told how to move and turn it: more numbers, some relative."""

from pathlib import Path

import numpy as np
from arm import CAMERAS, LENGTHS, TASK, pictures

from mem0_jax.data.lerobot_writer import LeRobotWriter
from mem0_jax.train.job import DataSettings, Job, TrainSettings

STATE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
ACTION = ["x", "y", "z", *(f"rotation_{i}" for i in range(6)), "gripper"]


def write_dataset(root: Path) -> Path:
    """Four short episodes: the position of the next frame, two columns of its rotation, the gripper's open or shut."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [7], "names": STATE},
        "action": {"dtype": "float32", "shape": [10], "names": ACTION},
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
            turn = way[1:, 5]
            columns = [np.cos(turn), np.sin(turn), 0 * turn, -np.sin(turn), np.cos(turn), 0 * turn]
            action = np.concatenate([way[1:, :3], np.stack(columns, 1), way[1:, 6:]], 1).astype(np.float32)
            shown = [pictures(episode, i) for i in range(length)]
            frames = {key: np.stack([views[key.rpartition(".")[2]] for views in shown]) for key in CAMERAS}
            writer.add_episode({"observation.state": way[:-1], "action": action, **frames}, TASK)
    return root


def job(dataset: Path, train: TrainSettings) -> Job:
    """Single frames in a random order; positions are differences."""
    data = DataSettings(
        datasets=(str(dataset),),
        text="task",
        cameras=tuple(CAMERAS),
        camera_sizes=((36, 48), (24, 24)),
        tokenizer="words",
        max_length=8,
        held_out=1,
        threads=1,
        schedule="shuffled",
        raw=("gripper",),
        delta=("x", "y", "z"),
    )
    return Job(data, train=train, policy="glance")
