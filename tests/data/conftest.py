"""Shared data: two datasets written by the lerobot library with their ground truth, and one recorded by our writer."""

import numpy as np
import pytest
from episodes import ASSETS, LENGTHS, NULLS, episode_frames

from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features


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
    with LeRobotWriter(root, 10, staged_features(64, 96), "planar") as writer:
        for e, length in enumerate(LENGTHS):
            writer.add_episode(episode_frames(e, length, null_frames=NULLS.get(e, ())), f"task {e % 2}")
    return LeRobotDataset(root)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Three tasks of short episodes: (folder, what was recorded by task and number)."""
    from rmbench_files import write_task  # needs h5py

    root = tmp_path_factory.mktemp("raw")
    recorded = {
        "put_back_block": write_task(root, "put_back_block", {0: 12, 1: 9, 3: 5}),
        "swap_blocks": write_task(root, "swap_blocks", {0: 11, 2: 10}, joints=7),
        "press_button": write_task(root, "press_button", {0: 30}),
    }
    return root, recorded
