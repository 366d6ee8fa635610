"""A page to look at a dataset: pictures, distributions, episode lengths, instructions, subtask ends.

Axes: F frames of the dataset, N frames of an episode, D numbers of a feature in one frame, H, W picture size.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from mem0_jax.data.check_meta import feature_names
from mem0_jax.data.files import DatasetError
from mem0_jax.data.lerobot import Episode, LeRobotDataset
from mem0_jax.data.lerobot_features import AUTOMATIC, PICTURES, TEXTS
from mem0_jax.disk import disk_told, write_whole
from mem0_jax.errors import UserError

BINS = 40
T = TypeVar("T")
SAMPLES = 8  # pictures of an episode, in one camera
_SIDE = 240  # pixels; width of a picture on the page
_COUNTERS = (*AUTOMATIC, "episode_id", "subtask_end")  # counted or shown as subtasks, no numbers of a robot
_MAX_DIMS = 64  # of a feature; the distributions of more are not drawn
_MAX_TEXTS = 100


@dataclass(frozen=True)
class Histogram:
    """How one number of a feature is distributed: `counts` int [BINS] between `low` and `high`."""

    name: str
    low: float
    high: float
    mean: float
    std: float
    counts: np.ndarray


@dataclass(frozen=True)
class Sheet:
    """Pictures of one episode in one camera: JPEG data addresses with their frames, or why there are none."""

    camera: str
    pictures: list[tuple[int, str]]
    problem: str = ""


@dataclass(frozen=True)
class Strip:
    """The subtasks of one episode: (first frame, length, text or None) and flagged runs (first frame, length)."""

    episode: Episode
    segments: list[tuple[int, int, str | None]]
    ends: list[tuple[int, int]]


@dataclass(frozen=True)
class View:
    """All that the page shows.

    Attributes:
        sheets: contact sheets by episode.
        histograms: by feature, one a number; features that share names and length come one after the other.
        texts: by feature, (text, episodes, frames), most frames first.
        strips: the subtasks of the shown episodes.
        problems: why a feature is not shown.
    """

    dataset: LeRobotDataset
    sheets: dict[int, list[Sheet]]
    histograms: dict[str, list[Histogram]]
    texts: dict[str, list[tuple[str, int, int]]]
    strips: list[Strip]
    problems: dict[str, str]


def show_dataset(
    root: str | Path,
    out: Path,
    *,
    episodes: int = 6,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> View:
    """Write the page of a dataset to `out`.

    Args:
        root: the folder, or an fsspec address.
        out: the HTML file; one file, which needs no network.
        episodes: how many episodes' pictures to show, spread over the dataset.
        progress: called with (contact sheets done, contact sheets in all).

    Raises:
        DatasetError, MissingFile: the dataset cannot be read; pictures and features that cannot are named on the page.
    """
    from mem0_jax.data.show_html import page

    dataset = LeRobotDataset(root)
    count = min(max(episodes, 0), len(dataset.episodes))
    chosen = [dataset.episodes[i] for i in np.linspace(0, len(dataset.episodes) - 1, count).round().astype(int)]
    sheets: dict[int, list[Sheet]] = {episode.index: [] for episode in chosen}
    for done, (episode, camera) in enumerate([(e, c) for e in chosen for c in dataset.cameras], 1):
        sheets[episode.index].append(_sheet(dataset, episode, camera))
        progress(done, len(chosen) * len(dataset.cameras))
    vectors = [key for key in dataset.features if _has_numbers(dataset, key)]
    keys = ["task", *(key for key, value in dataset.features.items() if value["dtype"] in TEXTS)]
    histograms, problems = _of_each(vectors, lambda key: _histograms(dataset, key))
    texts, more = _of_each(keys, lambda key: _texts(dataset, key))
    ends, most = _of_each(["subtask_end"] if "subtask_end" in dataset.features else [], dataset.column)
    strips = [_strip(dataset, episode, "subtask" in texts, ends.get("subtask_end")) for episode in chosen]
    view = View(dataset, sheets, histograms, texts, strips, problems | more | most)
    with disk_told(out):
        write_whole(out, page(view))
    return view


def _of_each(keys: Iterable[str], make: Callable[[str], T]) -> tuple[dict[str, T], dict[str, str]]:
    """Return what is made of each key, and of the others why nothing is."""
    made, problems = {}, {}
    for key in keys:
        try:
            made[key] = make(key)
        except UserError as error:
            problems[key] = str(error)
    return made, problems


def _has_numbers(dataset: LeRobotDataset, key: str) -> bool:
    kind = dataset.features[key]["dtype"]
    return key not in _COUNTERS and kind not in (*PICTURES, *TEXTS, "language")


def _sheet(dataset: LeRobotDataset, episode: Episode, camera: str) -> Sheet:
    pictures: list[tuple[int, str]] = []
    try:
        video = dataset.open_video(episode, camera)
        try:
            frames = np.unique(np.linspace(0, episode.length - 1, SAMPLES).round().astype(int)).tolist()
            # Extended one by one: the pictures before a damaged one are shown.
            pictures.extend((frame, _jpeg_address(video.read(frame, 1)[0])) for frame in frames)
        finally:
            video.close()
    except (DatasetError, UserError) as error:
        return Sheet(camera, pictures, str(error))
    return Sheet(camera, pictures)


def _jpeg_address(picture: np.ndarray) -> str:
    """Return a small version of uint8 [H, W, 3] as the address of an <img>."""
    height, width = picture.shape[:2]
    if width > _SIDE:
        size = (_SIDE, max(1, round(height * _SIDE / width)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _histograms(dataset: LeRobotDataset, key: str) -> list[Histogram]:
    values = dataset.column(key).reshape(dataset.num_frames, -1)[:, :_MAX_DIMS].astype(np.float64)
    found = []
    for name, column in zip(feature_names(dataset.features[key]), values.T):
        finite = column[np.isfinite(column)]
        if not finite.size:
            finite = np.zeros(1)
        low, high = float(finite.min()), float(finite.max())
        # Numbers so close that no bin fits between them count as one.
        counts = np.histogram(finite, BINS, (low, high))[0] if high - low > 1e-12 * max(1, abs(low)) else None
        if counts is None:
            counts = np.zeros(BINS, np.int64)
            counts[BINS // 2] = finite.size
        found.append(Histogram(name, low, high, float(finite.mean()), float(finite.std()), counts))
    return found


def _texts(dataset: LeRobotDataset, key: str) -> list[tuple[str, int, int]]:
    ids, texts = dataset.texts(key)
    owner = np.repeat(np.arange(len(dataset.episodes)), [episode.length for episode in dataset.episodes])
    frames = np.bincount(ids, minlength=len(texts))
    pairs = np.unique(np.stack([ids, owner]), axis=1)[0]
    episodes = np.bincount(pairs, minlength=len(texts))
    order = np.argsort(-frames, kind="stable")[:_MAX_TEXTS]
    return [(texts[i], int(episodes[i]), int(frames[i])) for i in order if frames[i]]


def _strip(dataset: LeRobotDataset, episode: Episode, subtasks: bool, flagged: np.ndarray | None) -> Strip:
    rows = slice(episode.start, episode.start + episode.length)
    segments: list[tuple[int, int, str | None]] = [(0, episode.length, None)]
    if subtasks:
        ids, texts = dataset.texts("subtask")
        segments = [(start, length, texts[ids[rows][start]]) for start, length in _runs(ids[rows])]
    ends: list[tuple[int, int]] = []
    if flagged is not None:
        flags = flagged[rows] != 0
        ends = [(start, length) for start, length in _runs(flags) if flags[start]]
    return Strip(episode, segments, ends)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, length) of the runs of equal values."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return list(zip(starts.tolist(), np.diff(starts, append=len(values)).tolist()))
