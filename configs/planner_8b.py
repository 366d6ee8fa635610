"""The planner of the reference: Qwen3-VL-8B-Instruct, low-rank factors of every linear layer of its language model.

The recipe is that of RMBench's planning pipeline (LLaMA-Factory's defaults where it says nothing): rank 8, alpha 16, 25
passes, 16 rows a device, a learning rate of 1e-4 that falls to 0, vision tower and mergers as they are.

mem0-jax convert Qwen3-VL-8B-Instruct bundles/qwen3_vl_8b --dtype bfloat16
mem0-jax plan train --config=planner_8b --workdir=runs/planner --config.data.questions="('plan/press_button',)"
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from mem0_jax.planner.job import PlannerData, PlannerJob
from mem0_jax.planner.policy import PlannerConfig


def get_config() -> ConfigDict:
    """Settings of `mem0-jax plan train`."""
    return ConfigDict(
        asdict(
            PlannerJob(
                PlannerData(questions=("plan/press_button",)),
                PlannerConfig(remat=True),
                init_from="bundles/qwen3_vl_8b",
                hardware="gpu1",
            )
        )
    )
