"""Check of the stored statistics against the data they were computed from.

Axes: D numbers of a feature in one frame.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mem0_jax.data import lerobot_meta
from mem0_jax.data.check_columns import Moments
from mem0_jax.data.check_meta import Metadata, feature_names
from mem0_jax.data.files import DatasetError, MissingFile
from mem0_jax.data.findings import Findings
from mem0_jax.data.lerobot_features import AUTOMATIC

_EXACT = 1e-5  # of the largest value: minimum and maximum are values of the data
_CLOSE = 2e-3  # of the span: mean and std are computed in float32 by some writers
_COLOR = 0.06  # of the brightest: encoding and sampling change the mean colour by less


def check_stats(
    meta: Metadata, moments: Mapping[int, Mapping[str, Moments]], colors: Mapping[str, Mapping[int, np.ndarray]]
) -> Findings:
    """Compare stored statistics, of each episode and of all, with moments (episode -> feature) of the data.

    Args:
        colors: mean colours by camera and episode, float64 [3] in [0, 1].
    """
    found = Findings(meta.root / "meta")
    try:
        episodes = dict(lerobot_meta.read_episode_statistics(meta.root, meta.info))
        whole = lerobot_meta.read_statistics(meta.root, meta.info)
    except (DatasetError, MissingFile) as error:
        severity = found.warning if isinstance(error, MissingFile) else found.error
        severity("statistics", str(error))
        return found
    keys = [key for key in meta.info.numbers if key not in AUTOMATIC]
    for episode in meta.episodes:
        if meta.info.version != "v2.0" and episode.index not in episodes:
            found.warning("statistics", "has no statistics", episode=episode.index)
        stored, measured = episodes.get(episode.index, {}), moments.get(episode.index, {})
        for key in keys:
            if key in stored and key in measured:
                _compare(meta, key, stored[key], measured[key], found, episode=episode.index)
        for camera, means in colors.items():
            if camera in stored and episode.index in means:
                _compare_color(camera, stored[camera], means[episode.index], episode.index, found)
    complete = [key for key in keys if all(key in moments.get(e.index, {}) for e in meta.episodes)]
    for key in complete if meta.episodes else ():
        if key not in whole:
            found.warning("statistics", "no statistics of the whole dataset", feature=key)
            continue
        total = functools.reduce(Moments.join, (moments[e.index][key] for e in meta.episodes))
        _compare(meta, key, whole[key], total, found)
    return found


def _compare(
    meta: Metadata, key: str, stored: Mapping[str, np.ndarray], measured: Moments, found: Findings, **where: Any
) -> None:
    names, of = feature_names(meta.info.features[key]), "the episode" if where else "the whole dataset"
    count = stored.get("count")
    if count is not None and count.size and count.ravel()[0] != measured.count:
        message = f"statistics of {of} count {count.ravel()[0]:g} frames; there are {measured.count}"
        found.error("statistics", message, feature=key, **where)
    width = meta.info.features[key]["shape"][-1]
    if "mean" in stored and stored["mean"].size == width < len(names):
        measured, names = measured.fold(width), [f"[:, {i}]" for i in range(width)]
    span, size = measured.high - measured.low, np.maximum(np.abs(measured.low), np.abs(measured.high))
    exact, close = _EXACT * size + 1e-6, _CLOSE * span + _EXACT * size + 1e-6
    values = {
        "min": (measured.low, exact),
        "max": (measured.high, exact),
        "mean": (measured.mean, close),
        "std": (np.sqrt(measured.square / measured.count), close),
    }
    for name, (value, tolerance) in values.items():
        given = stored.get(name)
        if given is None or given.size != value.size:
            got = "missing" if given is None else f"{given.size} numbers"
            found.error("statistics", f"{name} of {of}: {got}; expected {value.size}", feature=key, **where)
            continue
        wrong = ~(np.abs(given.ravel() - value) <= tolerance)
        if wrong.any():
            details = ", ".join(
                f"{names[d]} {given.ravel()[d]:.5g} instead of {value[d]:.5g}" for d in np.flatnonzero(wrong)
            )
            found.error("statistics", f"stored {name} of {of} is not that of the data: {details}", feature=key, **where)


def _compare_color(
    camera: str, stored: Mapping[str, np.ndarray], mean: np.ndarray, episode: int, found: Findings
) -> None:
    given = stored.get("mean")
    if given is not None and given.size == 3 and not (np.abs(given.ravel() - mean) <= _COLOR).all():
        text = " ".join(f"{v:.2f}" for v in given.ravel()), " ".join(f"{v:.2f}" for v in mean)
        message = f"mean colour is {text[1]}, statistics say {text[0]}; perhaps the pictures of another episode"
        found.warning("statistics", message, episode=episode, feature=camera)
