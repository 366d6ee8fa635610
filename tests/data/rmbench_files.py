"""RMBench-shaped recordings made from the built-in tasks: what RMBench's collection would have written."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
from episodes import ASSETS

from mem0_jax.cli import main
from mem0_jax.envs import Demonstration, Expert, make, rollout

RECORDINGS = ASSETS / "rmbench/recordings"


def play(task: str, seed: int, frames: int) -> Demonstration:
    """The first `frames` of an expert's episode."""
    env = make(task)
    episode = rollout(env, Expert(env, np.random.default_rng(seed)), seed)
    assert episode.image is not None
    cut = {key: getattr(episode, key)[:frames] for key in ("image", "state", "action", "subtask", "text")}
    return Demonstration(**vars(episode) | cut)


@dataclass(frozen=True)
class Recorded:
    """What went into one file: pictures uint8 [T, H, W, 3], arms float64 [T, joints], grippers float64 [T]."""

    images: np.ndarray
    arms: tuple[np.ndarray, np.ndarray]
    grippers: tuple[np.ndarray, np.ndarray]

    def state(self) -> np.ndarray:
        """The 16 numbers of the model layout, spelled out."""
        rows = []
        for t in range(len(self.images)):
            row: list[float] = []
            for arm in self.arms:
                row += [*arm[t], 0.0][:7]
            rows.append([*row, self.grippers[0][t], self.grippers[1][t]])
        return np.asarray(rows).astype(np.float32)


def recorded(episode: Demonstration, joints: int = 6) -> Recorded:
    """An episode of the built-in tasks, with a seventh joint that moves if `joints` is 7."""
    state = episode.state.astype(np.float64)
    extra = 0.01 * np.arange(len(state))[:, None]
    arms = [np.concatenate([arm, extra], 1)[:, :joints] for arm in (state[:, :6], state[:, 7:13])]
    assert episode.image is not None
    return Recorded(episode.image, (arms[0], arms[1]), (state[:, 6], state[:, 13]))


def write_hdf5(path: Path, data: Recorded) -> None:
    """Write RMBench's layout: pictures encoded by OpenCV as they are, in RGB order, and padded with NUL."""
    jpegs = [cv2.imencode(".jpg", image)[1].tobytes() for image in data.images]
    longest = max(map(len, jpegs))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        camera = file.create_group("observation/head_camera")
        camera.create_dataset("rgb", data=jpegs, dtype=f"S{longest}")
        camera.create_dataset("intrinsic_cv", data=np.zeros((len(jpegs), 3, 3)))
        joints = file.create_group("joint_action")
        for side, arm, gripper in zip(("left", "right"), data.arms, data.grippers):
            joints.create_dataset(f"{side}_arm", data=arm)
            joints.create_dataset(f"{side}_gripper", data=gripper)


def decoded(path: Path) -> np.ndarray:
    """The file's pictures as OpenCV gives them back, uint8 [T, H, W, 3]."""
    with h5py.File(path) as file:
        data = file["observation/head_camera/rgb"]
        assert isinstance(data, h5py.Dataset)
        pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in data]
    return np.stack([picture for picture in pictures if picture is not None])


def segments(episode: Demonstration) -> list[tuple[str, int]]:
    """(text, frames) of every stage; neighbours may have equal texts."""
    starts = [0, *(np.flatnonzero(np.diff(episode.subtask)) + 1), len(episode)]
    return [(episode.text[a], int(b - a)) for a, b in itertools.pairwise(starts)]


def write_task(root: Path, task: str, lengths: dict[int, int], joints: int = 6) -> dict[int, Recorded]:
    """Write ROOT/TASK/demo_clean with an episode of each length, and annotations if the task is staged."""
    setting, annotations, out = root / task / "demo_clean", {}, {}
    for number, frames in lengths.items():
        episode = play(task, number, frames)
        out[number] = recorded(episode, joints)
        write_hdf5(setting / f"data/episode{number}.hdf5", out[number])
        annotations[f"episode_{number}"] = segments(episode)
    (setting / "language_annotation.json").write_text(json.dumps(annotations))
    return out


def write_copy(source: Path, target: Path) -> Path:
    """A copy of a folder, to be damaged."""
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def run_import(*arguments: object) -> int:
    """`mem0-jax data import rmbench` with these arguments; its exit status."""
    return main(["data", "import", "rmbench", *map(str, arguments)])
