"""A tiny Mem-0 job over real files: a LeRobot dataset of moving pictures, and a configuration for the command line.

Axis letters: L lanes, T frames, R draws, C horizon, A action width.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from tiny import mem0_config

from mem0_jax.backbones.qwen3_vl.config import TokenIds
from mem0_jax.backbones.qwen3_vl.processor import Processor, token_ids, word_tokenizer
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.policies.mem0 import Mem0, Mem0Config

TEXTS = ["pick the block", "press the button"]
LENGTHS = (9, 7, 11, 8)
CONFIG = """
from dataclasses import asdict
from ml_collections import ConfigDict
from mem0_jax.train.job import DataSettings, Job, TrainSettings
from jobs import model

def get_config():
    data = DataSettings(
        datasets=("DATASET",), camera_size=(32, 32), tokenizer="words", max_length=24, held_out=1, threads=1
    )
    rates = {"backbone": 1e-3, "action": 2e-3, "classifier": 2e-3, "memory": 1e-3}
    train = TrainSettings(
        steps=12, batch_size=8, lanes=2, accumulate=2, precision="float32", learning_rates=rates, ema_decay=0.9,
        log_every=3, save_every=2, validate_every=6, keep_best=1,
    )
    return ConfigDict(asdict(Job(data, model(), train)))
"""


def model(tokens: TokenIds | None = None, vocabulary: int = 15) -> Mem0Config:
    """The tiny Mem-0 with two draws a sample, a window of 3 frames and no dropout."""
    dropout = {f"{part}.dropout": 0.0 for part in ("memory", "action", "classifier")}
    return mem0_config({"memory.window_size": 3, "flow.draws": 2} | dropout, tokens, vocabulary)


class GivenNoise:
    """Mem-0 whose noise and times come with the frames, as noise [L, T, R, C, A] and time [L, T, R]."""

    def __init__(self, config: Mem0Config):
        self._policy = Mem0(config)
        self.init, self.init_state = self._policy.init, self._policy.init_state
        self.learning_rate_groups, self.no_gradient = self._policy.learning_rate_groups, self._policy.no_gradient
        self.logical_axes = self._policy.logical_axes

    def loss(self, params, state, batch, rng, train):
        def draws_first(value):
            value = value.reshape(-1, *value.shape[2:])
            return jax.numpy.moveaxis(value, 1, 0).reshape(-1, *value.shape[2:])

        return self._policy.loss(
            params, state, batch | {name: draws_first(batch[name]) for name in ("noise", "time")}, rng, train
        )


def policy_and_batch(lanes: int, frames: int) -> tuple[GivenNoise, dict[str, np.ndarray]]:
    """The tiny policy, and one batch of random frames in which episodes and subtasks end."""
    tokenizer = word_tokenizer(TEXTS)
    config = model(token_ids(tokenizer), tokenizer.get_vocab_size())
    rng = np.random.default_rng(0)
    samples = lanes * frames
    images = rng.integers(0, 256, (samples, 32, 32, 3), np.uint8)
    arrays = Processor(tokenizer, config.backbone, (32, 32), 12).prepare(
        [images], [TEXTS[i % 2] for i in range(samples)]
    )
    batch = {name: value.reshape(lanes, frames, *value.shape[1:]) for name, value in arrays.items()}
    ends = np.cumsum(rng.random((lanes, frames)) < 0.2, 1)
    return GivenNoise(config), batch | {
        "state": rng.normal(size=(lanes, frames, 16)).astype(np.float32),
        "action": rng.normal(size=(lanes, frames, 3, 16)).astype(np.float32),
        "episode": (ends + 100 * np.arange(lanes)[:, None]).astype(np.int32),
        "subtask_end": (rng.random((lanes, frames)) < 0.3).astype(np.int32),
        "noise": rng.normal(size=(lanes, frames, 2, 3, 16)).astype(np.float32),
        "time": rng.random((lanes, frames, 2)).astype(np.float32),
    }


def write_dataset(root: Path, rounds: int = 1, camera: str = "observation.image.head_camera") -> Path:
    """`rounds` times four short episodes; the last two frames of each are a subtask's end."""
    with LeRobotWriter(root, 10, staged_features(32, 32, camera=camera), "planar") as writer:
        for episode, length in enumerate(LENGTHS * rounds):
            t = np.arange(length)
            state = np.sin(0.3 * t[:, None] + np.arange(16) + episode).astype(np.float32)
            shade = (20 * t + 40 * episode) % 256
            frames = {
                "observation.state": state,
                "action": np.concatenate([state[1:], state[-1:]]),
                camera: np.broadcast_to(shade[:, None, None, None], (length, 32, 32, 3)).astype(np.uint8),
                "subtask": [TEXTS[episode % 2]] * length,
                "subtask_end": (t >= length - 2).astype(np.int32),
                "episode_id": np.full(length, episode, np.int32),
            }
            writer.add_episode(frames, TEXTS[episode % 2])
    return root


def write_config(folder: Path, dataset: Path) -> Path:
    """A configuration file that trains on `dataset`."""
    path = folder / "tiny_job.py"
    here = f"import sys\nsys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}\n"
    path.write_text(here + CONFIG.replace("DATASET", str(dataset)))
    return path


if __name__ == "__main__":
    from mem0_jax.cli import main

    sys.exit(main(sys.argv[1:]))
