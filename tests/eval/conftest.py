"""A tiny policy, and a comparison of real rollouts: the expert stands for memory, the frame oracle for none."""

from pathlib import Path

import numpy as np
import pytest
from tiny import mem0_bundle

from mem0_jax.envs import Expert, frame_oracle, make, rollout
from mem0_jax.eval.report import Attention, Curve, Facts, Results, Side, Video
from mem0_jax.policies.bundle import Bundle, save_bundle

EPISODES = 12


def side(kind, floor: float) -> Side:
    env = make("put_back_block")
    episodes = [rollout(env, kind(env, np.random.default_rng(9000 + seed)), seed=seed) for seed in range(EPISODES)]
    step = np.arange(10, 3010, 10)
    noise = np.random.default_rng(0).normal(size=(3, len(step)))
    action = np.exp(-step / 600) + floor + 0.02 * np.abs(noise[0])
    ends = 0.5 * np.exp(-step / 300) + 0.02 * np.abs(noise[1])
    return Side(
        success=tuple(e.success for e in episodes),
        placed=tuple(e.placed for e in episodes),
        placed_right=tuple(e.placed_right for e in episodes),
        curve=Curve(step, action + ends, action, ends),
        videos=tuple(Video(e.image, f"seed {e.seed}", e.success) for e in episodes[:2] if e.image is not None),
    )


@pytest.fixture(scope="session")
def results() -> Results:
    remembers, forgets = side(Expert, 0.05), side(frame_oracle, 0.07)
    frames = remembers.videos[0].frames
    weights = np.exp(-np.linspace(2, 0, 30))
    return Results(
        with_memory=remembers,
        without_memory=forgets,
        facts=Facts(
            task="put_back_block",
            instruction="put the block back where it was",
            chance=0.25,
            parameters=712_345,
            steps=3000,
            frames_per_second=271.3,
            wall_seconds={"record": 21.4, "train with memory": 301.2, "train without memory": 288.0, "evaluate": 33.3},
            seeds={"training": "0 to 119", "evaluation": "10000 to 10011"},
            command="mem0-jax demo --out runs/demo",
            software={"jax": "0.10.2", "machine": "2 CPU cores"},
        ),
        attention=Attention(frames[4:34], weights / weights.sum(), frames[0], frames[34], step=34),
    )


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """A tiny untrained policy that knows the built-in tasks' words."""
    texts = ["put the block back where it was", "press the button", "press the confirm button"]
    return mem0_bundle(texts, provenance={"made_by": "a test"})


@pytest.fixture(scope="session")
def bundle_folder(bundle, tmp_path_factory) -> Path:
    """It on disk."""
    return save_bundle(bundle, tmp_path_factory.mktemp("policy") / "bundle")
