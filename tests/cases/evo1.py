"""EVO1 on a single arm with two cameras, and fewer numbers and cameras than the model has places for."""

from pathlib import Path

from arm import CAMERAS, write_arm
from tiny import changed

from mem0_jax.backbones.internvl3.config import InternVL3Config, TextConfig, VisionConfig
from mem0_jax.heads.cross_attention import CrossAttentionConfig
from mem0_jax.policies.evo1 import EVO1Config
from mem0_jax.train.job import DataSettings, Job, TrainSettings

write_dataset = write_arm


def config() -> EVO1Config:
    """One layer of everything, pictures of 28 x 28 in four patches that become one token."""
    text = TextConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        vocab_size=20,
    )
    vision = VisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=28
    )
    head = CrossAttentionConfig(
        width=16,
        hidden_size=20,
        state_hidden_size=24,
        num_heads=2,
        num_layers=1,
        action_dim=9,
        state_dim=8,
        horizon=4,
    )
    return changed(EVO1Config(InternVL3Config(vision, text), head), {"flow.solver_steps": 2, "flow.draws": 2})


def job(dataset: Path, train: TrainSettings) -> Job:
    """Single frames in a random order; rates at which six steps move something."""
    data = DataSettings(
        datasets=(str(dataset),),
        text="task",
        cameras=tuple(CAMERAS),
        camera_size=(28, 28),
        tokenizer="words",
        max_length=24,
        held_out=1,
        threads=1,
        schedule="shuffled",
    )
    return Job(data, config(), train)
