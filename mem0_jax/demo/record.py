"""Recording expert episodes as a LeRobot v3.0 dataset."""

import shutil

import numpy as np

from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.robot import RMBENCH
from mem0_jax.demo.settings import FPS, TRAIN_SEEDS, Demo
from mem0_jax.envs import Expert, Noise, make, rollout
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress

CAMERA = "observation.image.head_camera"


def record(demo: Demo) -> None:
    """Records the expert's successful episodes; does nothing if they are there."""
    if demo.dataset.exists():
        return
    shutil.rmtree(demo.dataset.with_name(f".{demo.dataset.name}.partial"), ignore_errors=True)  # of a killed run
    env = make(demo.task)
    expert = Expert(env, np.random.default_rng([demo.seed, 0]), noise=Noise())
    count = demo.config["data"]["episodes"]
    height, width = env.observation_space["observation"]["head_camera"]["rgb"].shape[:2]  # pyright: ignore
    recorded = 0
    progress = Progress("recording experts", count, "episode")
    with progress, LeRobotWriter(demo.dataset, FPS, staged_features(height, width), "mem0_jax tabletop") as writer:
        for seed in demo.seeds(TRAIN_SEEDS, 10 * count):
            episode = rollout(env, expert, seed)
            if not episode.success:
                continue
            frames = {
                CAMERA: episode.image,
                "observation.state": RMBENCH.state.read(episode.state),
                "action": RMBENCH.action.read(episode.action),
                "subtask": list(episode.text),
                "subtask_end": episode.subtask_end,
                "episode_id": np.full(len(episode), recorded, np.int32),
            }
            writer.add_episode(frames, episode.instruction)
            recorded += 1
            progress.advance()
            if recorded == count:
                break
        else:
            raise UserError(f"the expert of {demo.task} succeeded in only {recorded} of {10 * count} episodes")
