"""What training and packing need of a dataset, and in which order it must be: one list, which a check asks for, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from mem0_jax.data.files import DatasetError
from mem0_jax.data.findings import Finding, runs
from mem0_jax.data.joint_names import VECTORS
from mem0_jax.data.lerobot_features import AUTOMATIC, COMMON, TEXT_KEY, unfit
from mem0_jax.data.normalize import finite_vectors

NO_FEATURE = "info.json lacks this feature, which every dataset has"
NO_FLAG = "is neither 0 nor 1"


def needed(dataset: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each needed feature and what reads it, which raises ValueError or OSError where it is not in order."""
    for key in COMMON:
        if key in VECTORS:
            yield key, partial(finite_vectors, dataset, key)
        elif key in dataset.features or key in AUTOMATIC:
            yield key, partial(_read, dataset, key)


def check_needed(dataset: Any, *, subtasks: bool = True) -> None:
    """Read all that is needed of a dataset, or of each one of a mixture.

    Args:
        dataset: a `LeRobotDataset`, `PackedDataset`, `Subset` or `Mixture`.
        subtasks: the texts of the subtasks, too: otherwise whoever trains on them asks for them.

    Raises:
        ValueError, OSError: naming the dataset, the feature and what was expected.
    """
    for part in getattr(dataset, "datasets", [dataset]):
        for key, read in needed(part):
            if subtasks or key != TEXT_KEY:
                read()


def not_flags(values: np.ndarray) -> np.ndarray:
    """Which subtask ends [N] are neither 0 nor 1, NaN among them: bool [N]."""
    return (values != 0) & (values != 1)


def _read(dataset: Any, key: str) -> None:
    problem = unfit(key, dataset.features[key]) if key in dataset.features else NO_FEATURE
    if problem:
        raise DatasetError(f"{dataset.root}: {key}: {problem}")
    if key == TEXT_KEY:
        dataset.texts(key)
        return
    values = dataset.column(key)
    if key == "subtask_end":
        for episode in dataset.episodes:
            wrong = not_flags(values[episode.start : episode.start + episode.length])
            if wrong.any():
                index = getattr(episode, "index", None)
                finding = Finding("error", "subtask-end", NO_FLAG, episode=index, frames=runs(wrong), feature=key)
                raise DatasetError(f"{dataset.root}: {finding}")
