"""Writes lerobot_v30_arm with lerobot 0.4.4: an arm of seven numbers, two cameras of different sizes, ten episodes.

Run: python make_arm.py OUT
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

NAMES = [f"{joint}.pos" for joint in ("base", "shoulder", "elbow", "wrist_1", "wrist_2", "wrist_3", "gripper")]
SIZES = {"top": (48, 64), "wrist": (32, 32)}
FEATURES = {key: {"dtype": "float32", "shape": (7,), "names": NAMES} for key in ("observation.state", "action")}
FEATURES |= {
    f"observation.images.{camera}": {
        "dtype": "video",
        "shape": (*size, 3),
        "names": ["height", "width", "channels"],
    }
    for camera, size in SIZES.items()
}


def picture(size: tuple[int, int], place: float) -> np.ndarray:
    """A light square on a dark ground, where the arm is."""
    y, x = np.mgrid[: size[0], : size[1]]
    seen = np.stack([2 * x, 3 * y, np.full_like(x, 60)], -1).astype(np.uint8)
    column = int((place + 1) / 2 * (size[1] - 8))
    seen[size[0] // 2 : size[0] // 2 + 8, column : column + 8] = 230
    return seen


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    dataset = LeRobotDataset.create("local/arm", 10, FEATURES, root=out, robot_type="arm", use_videos=True)
    for episode in range(10):
        length = 6 + episode % 4
        way = np.sin(0.3 * np.arange(length + 1)[:, None] + np.arange(7) + episode).astype(np.float32)
        way[:, 6] = np.arange(length + 1) > length // 2
        for i in range(length):
            pictures = {f"observation.images.{camera}": picture(size, way[i, 0]) for camera, size in SIZES.items()}
            vectors = {"observation.state": way[i], "action": way[i + 1]}
            dataset.add_frame(vectors | pictures | {"task": "put the cup on the shelf"})
        dataset.save_episode()
    dataset.finalize()
    shutil.rmtree(out / "images", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
