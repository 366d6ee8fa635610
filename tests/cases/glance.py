"""Glance on an arm that says where its hand is, and is told how to move and turn it: more numbers, some relative."""

from pathlib import Path

import numpy as np
from arm import CAMERAS, record

from mem0_jax.train.job import DataSettings, Job, TrainSettings

STATE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
ACTION = ["x", "y", "z", *(f"rotation_{i}" for i in range(6)), "gripper"]


def write_dataset(root: Path) -> Path:
    """The arm's movements, told as the hand's."""
    return record(root, STATE, ACTION, told)


def told(way: np.ndarray) -> np.ndarray:
    """The position of the next frame, two columns of its rotation, the gripper's open or shut."""
    turn = way[1:, 5]
    columns = [np.cos(turn), np.sin(turn), 0 * turn, -np.sin(turn), np.cos(turn), 0 * turn]
    return np.concatenate([way[1:, :3], np.stack(columns, 1), way[1:, 6:]], 1).astype(np.float32)


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
