"""A planner of 0.4 million parameters from random weights, for a CPU and minutes: for the built-in staged task.

mem0-jax plan train --config=planner_small --workdir=runs/planner --config.data.questions="('plan/press_button',)"
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mem0_jax.backbones.chat import PixelBounds
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.planner.job import PlannerData, PlannerJob, PlannerTraining
from mem0_jax.planner.policy import PlannerConfig

WIDTH = 64


def get_config() -> ConfigDict:
    """Settings of `mem0-jax plan train`."""
    text = TextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        rope_theta=1e4,
        mrope_section=(4, 2, 2),
    )
    vision = VisionConfig(
        depth=2,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_position_embeddings=64,
        deepstack_visual_indexes=(0,),
        temporal_patch_size=1,
        out_hidden_size=WIDTH,
    )
    data = PlannerData(
        questions=("plan/press_button",),
        tokenizer="words",
        images=PixelBounds(1, 7000),  # the camera becomes 64x96,
        threads=1,
        prefetch=4,
    )
    train = PlannerTraining(
        steps=600,
        per_device=16,
        preset="full",
        train_vision=True,
        precision="float32",
        learning_rate=2e-3,
        floor=2e-5,
        warmup_ratio=0.05,
        b2=0.99,
        log_every=50,
        save_every=200,
    )
    return ConfigDict(asdict(PlannerJob(data, PlannerConfig(Qwen3VLConfig(text, vision)), train)))
