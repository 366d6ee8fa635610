"""Writes lerobot_v21_cameras (with lerobot 0.3.3) or lerobot_v30_cameras (0.4.4), and what lerobot reads back from it.

Two cameras, one of them an image column; numbers of every shape; texts. Run: python make_cameras.py OUT
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

LENGTHS, FPS, HEIGHT, WIDTH = (5, 4, 6), 10, 32, 64
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": {"motors": ["shoulder", "elbow", "gripper"]}},
    "action": {"dtype": "float32", "shape": (3,), "names": ["shoulder", "elbow", "gripper"]},
    "touch": {"dtype": "float32", "shape": (2, 3), "names": None},
    "success": {"dtype": "bool", "shape": (1,), "names": None},
    "count": {"dtype": "int64", "shape": (1,), "names": None},
    "note": {"dtype": "string", "shape": (1,), "names": None},
    "observation.images.front": {
        "dtype": "image",
        "shape": (HEIGHT, WIDTH, 3),
        "names": ["height", "width", "channels"],
    },
    "observation.images.wrist": {
        "dtype": "video",
        "shape": (HEIGHT, WIDTH, 3),
        "names": ["height", "width", "channels"],
    },
}


def frame(episode: int, i: int) -> dict:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    base = np.stack([4 * x, 8 * y, np.full_like(x, 40 * episode + 8 * i)], -1).astype(np.uint8)
    return {
        "observation.state": np.array([episode, i, 0.5], np.float32),
        "action": np.array([episode, i + 1, -0.5], np.float32),
        "touch": np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * episode + i,
        "success": np.array([i % 2 == 1]),
        "count": np.array([100 * episode + i]),
        "note": f"note {i // 2} é",
        "observation.images.front": base,
        "observation.images.wrist": base[:, ::-1].copy(),
    }


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    dataset = LeRobotDataset.create("local/cameras", FPS, FEATURES, root=out, robot_type="arm", use_videos=True)
    old = dataset.meta.info["codebase_version"] == "v2.1"
    for episode, length in enumerate(LENGTHS):
        for i in range(length):
            task = f"task {episode % 2}"
            if old:
                dataset.add_frame(frame(episode, i), task)
            else:
                dataset.add_frame(frame(episode, i) | {"task": task})
        dataset.save_episode()
    if not old:
        dataset.finalize()
    read = LeRobotDataset("local/cameras", root=out, video_backend="pyav")
    pictures = {}
    for camera in ("front", "wrist"):
        stack = np.stack([read[i][f"observation.images.{camera}"].numpy() for i in range(len(read))])
        pictures[camera] = (stack.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    np.savez_compressed(out.with_suffix(".npz"), **pictures)
    shutil.rmtree(out / "images", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
