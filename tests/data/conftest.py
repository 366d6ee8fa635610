"""Shared data: two datasets written by the lerobot library with their ground truth, and one recorded by our writer."""

import numpy as np
import pytest
from episodes import ASSETS, LENGTHS, NULLS, episode_frames

from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, mem0_features


def pytest_configure(config):
    config.addinivalue_line("markers", "lerobot: compares with the lerobot library; skipped where it is not installed")


@pytest.fixture(scope="session")
def truth() -> dict[str, np.ndarray]:
    with np.load(ASSETS / "ground_truth.npz") as file:
        return dict(file)


@pytest.fixture(params=["lerobot_v21", "lerobot_v30"], scope="session")
def real(request) -> LeRobotDataset:
    """A dataset written by lerobot 0.3.3 (v2.1) or 0.6.1 (v3.0)."""
    return LeRobotDataset(ASSETS / request.param)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> LeRobotDataset:
    """Seven short episodes by our writer; some frames are "null"."""
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    with LeRobotWriter(root, 10, mem0_features(64, 96), "planar") as writer:
        for e, length in enumerate(LENGTHS):
            writer.add_episode(episode_frames(e, length, null_frames=NULLS.get(e, ())), f"task {e % 2}")
    return LeRobotDataset(root)
