"""Mem-0 on a single arm with two cameras, and fewer numbers than the model has."""

from pathlib import Path

from arm import CAMERAS, write_arm
from tiny import mem0_config

from mem0_jax.train.job import DataSettings, Job, TrainSettings

write_dataset = write_arm


def job(dataset: Path, train: TrainSettings) -> Job:
    """Two draws a sample, and no dropout."""
    dropout = {f"{part}.dropout": 0.0 for part in ("memory", "action", "classifier")}
    data = DataSettings(
        datasets=(str(dataset),),
        text="task",
        cameras=tuple(CAMERAS),
        camera_size=(32, 32),
        tokenizer="words",
        max_length=24,
        held_out=1,
        threads=1,
    )
    return Job(data, mem0_config({"flow.draws": 2} | dropout), train)
