"""A tiny policy, and a comparison of real rollouts: the expert stands for memory, the frame oracle for none."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import token_ids, word_tokenizer
from mem0_jax.data.normalize import NormStats
from mem0_jax.envs import Expert, frame_oracle, make, rollout
from mem0_jax.eval.report import Arm, Attention, Curve, Facts, Results, Video
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.bundle import Bundle, Inputs, save_bundle
from mem0_jax.policies.mem0 import Mem0, Mem0Config

EPISODES = 12


def arm(kind, floor: float) -> Arm:
    env = make("put_back_block")
    episodes = [rollout(env, kind(env, np.random.default_rng(9000 + seed)), seed=seed) for seed in range(EPISODES)]
    step = np.arange(10, 3010, 10)
    noise = np.random.default_rng(0).normal(size=(3, len(step)))
    action = np.exp(-step / 600) + floor + 0.02 * np.abs(noise[0])
    ends = 0.5 * np.exp(-step / 300) + 0.02 * np.abs(noise[1])
    return Arm(
        success=tuple(e.success for e in episodes),
        placed=tuple(e.placed for e in episodes),
        placed_right=tuple(e.placed_right for e in episodes),
        curve=Curve(step, action + ends, action, ends),
        videos=tuple(Video(e.image, f"seed {e.seed}", e.success) for e in episodes[:2] if e.image is not None),
    )


@pytest.fixture(scope="session")
def results() -> Results:
    remembers, forgets = arm(Expert, 0.05), arm(frame_oracle, 0.07)
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
    tokenizer = word_tokenizer(["put the block back where it was", "press the button", "press the confirm button"])
    config = Mem0Config(
        Qwen3VLConfig(
            TextConfig(32, 1, 2, 1, 16, 32, tokenizer.get_vocab_size(), 1e4, (4, 2, 2)),
            VisionConfig(1, 32, 32, 2, 64, (0,), 16, 1, 2, 32),
            token_ids(tokenizer),
        ),
        MemoryConfig(4, 2),
        FlowConfig(solver_steps=2),
        DiTConfig(32, 2, 2, 32, 32, 32, horizon=3),
        ClassifierConfig((96, 16)),
        image_size=(64, 64),
        dtype="float32",
    )
    span = {"min": np.full(16, -1.5), "max": np.full(16, 1.5)}
    params = jax.jit(Mem0(config).init)(jax.random.key(0))
    inputs = Inputs((64, 64), "bilinear", 24)
    return Bundle(config, params, NormStats(span, span), tokenizer, inputs, {"made_by": "a test"})


@pytest.fixture(scope="session")
def bundle_folder(bundle, tmp_path_factory) -> Path:
    """It on disk."""
    return save_bundle(bundle, tmp_path_factory.mktemp("policy") / "bundle")
