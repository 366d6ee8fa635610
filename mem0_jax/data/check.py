"""Validation of a whole dataset: everything that is wrong with it, by episode and frame."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.data import lerobot_meta
from mem0_jax.data.check_causes import causes, is_cause
from mem0_jax.data.check_columns import DataReport, Moments, check_data_file
from mem0_jax.data.check_meta import Metadata, check_meta
from mem0_jax.data.check_pictures import PictureReport, check_images, check_video_file
from mem0_jax.data.check_stats import check_stats
from mem0_jax.data.check_use import check_use
from mem0_jax.data.files import AnyPath, DatasetError, MissingFile, dataset_path
from mem0_jax.data.findings import Finding, Findings, once_a_cause
from mem0_jax.data.lerobot_meta import Episode


@dataclass(frozen=True)
class Report:
    """All findings, errors first, then by episode; and how much was checked."""

    findings: list[Finding]
    episodes: int
    frames: int
    files: int

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        counts = {"episodes": self.episodes, "frames": self.frames, "files": self.files, "errors": self.errors}
        return counts | {"findings": [finding.to_json() for finding in self.findings]}


def check_dataset(
    root: str | Path,
    *,
    video: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Check a dataset, several files at a time, and return everything found.

    Checked are info.json, task and episode tables, every row of every parquet file (columns, shapes, finite values,
    counters, timestamps, tasks, subtask ends), every picture, and the statistics.

    Args:
        root: the folder, or an fsspec address.
        video: decode the pictures; otherwise videos only have to be there.
        workers: threads; by default one a core.
        progress: called with (files done, files in all).
    """
    path = dataset_path(root)
    try:
        info = lerobot_meta.read_info(path)
        lerobot_meta.check_label(path, info)
    except (DatasetError, MissingFile) as error:
        return Report([Finding("error", "info", str(error), file=f"{path}/meta/info.json")], 0, 0, 0)
    meta, found = check_meta(path, info)
    jobs = _jobs(meta, video)
    data: list[DataReport] = []
    colors: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures: dict[Future[Any], str] = {pool.submit(job): camera for camera, job in jobs}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                report = future.result()
                found += report.findings
                if isinstance(report, PictureReport):
                    colors[futures[future]] |= report.means
                else:
                    data.append(report)
                progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    moments: dict[int, dict[str, Moments]] = {}
    for report in data:
        moments |= report.moments
    found += _check_ids(meta, {episode: number for report in data for episode, number in report.ids.items()})
    found += check_stats(meta, moments, colors) if meta.episodes else []
    if all(finding.severity != "error" for finding in found):
        found += check_use(meta)
    readable = {episode.index for episode in meta.episodes}
    ordered = sorted(
        once_a_cause(causes(sorted(found, key=lambda f: f.file), readable)),
        key=lambda f: (
            *(f.severity, not is_cause(f, readable), -1 if f.episode is None else f.episode),
            *(f.frames, f.feature, f.message),
        ),
    )
    return Report(ordered, len(meta.episodes), sum(e.length for e in meta.episodes), len(jobs))


def _jobs(meta: Metadata, video: bool) -> list[tuple[str, Callable[[], DataReport | PictureReport]]]:
    """Return (camera or "", check) of every file."""
    jobs: list[tuple[str, Callable[[], DataReport | PictureReport]]] = []
    data: dict[AnyPath, list[Episode]] = {}
    for episode in meta.episodes:
        data.setdefault(episode.data_path, []).append(episode)
    for camera in meta.info.videos:
        videos: dict[AnyPath, list[Episode]] = {}
        for episode in meta.episodes:
            if camera in episode.videos:
                videos.setdefault(episode.videos[camera].path, []).append(episode)
        jobs += [
            (camera, lambda c=camera, p=path, e=users: check_video_file(meta, c, p, e, video))
            for path, users in videos.items()
        ]
    for path, users in data.items():
        jobs.append(("", lambda p=path, e=users: check_data_file(meta, p, e)))
        if video:
            jobs += [(c, lambda c=c, p=path, e=users: check_images(meta, c, p, e)) for c in meta.info.images]
    return jobs


def _check_ids(meta: Metadata, ids: dict[int, int]) -> Findings:
    """Memory is kept by episode_id: two episodes must not share one."""
    found, first = Findings(meta.root), {}
    for episode, number in sorted(ids.items()):
        if number in first:
            message = f"{number} is that of episode {first[number]} too; episodes need ids of their own"
            found.error("episode-id", message, episode=episode, feature="episode_id")
        first.setdefault(number, episode)
    return found
