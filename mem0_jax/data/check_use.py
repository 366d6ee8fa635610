"""Check that what uses a dataset takes it: reading, statistics and training themselves are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mem0_jax.data.check_meta import Metadata
from mem0_jax.data.findings import Findings
from mem0_jax.data.joint_names import VECTORS
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_features import TEXT_KEY
from mem0_jax.data.needed import needed
from mem0_jax.data.normalize import vectors


def check_use(meta: Metadata) -> Findings:
    """Ask for all that commands read but pictures; what is refused although no file is at fault is an error."""
    found = Findings(meta.root)
    opened = _refusal(lambda: LeRobotDataset(meta.root), found)
    if opened is None:
        return found
    dataset: LeRobotDataset = opened
    text = TEXT_KEY if TEXT_KEY in dataset.features else "task"
    for key, read in needed(dataset):
        _refusal((lambda key=key: vectors(dataset, key)) if key in VECTORS else read, found, key)
    _refusal(lambda: dataset.texts("task"), found)
    if not found:
        cameras = dict.fromkeys(dataset.cameras[:1], (1, 1))
        how = {"lanes": 1, "frames": 1, "horizon": 1, "seed": 0, "cameras": cameras, "text": text}
        _refusal(lambda: LaneSource(dataset, **how), found)
    return found


def _refusal(use: Callable[[], Any], found: Findings, feature: str = "") -> Any:
    try:
        return use()
    except (ValueError, OSError) as error:
        found.error("use", str(error).removeprefix(f"{found.file}: ").removeprefix(f"{feature}: "), feature=feature)
        return None
