"""Import of RMBench recordings into a LeRobot dataset: parallel, resumable, published by rename.

Axes: T frames of one episode. What is slow, decoding JPEG and encoding video, is done episode by episode into a hidden
folder beside the dataset and kept there, so that an interrupted import continues where it was. Labels are cheap and put
on when the dataset is put together.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.lerobot_writer_v21 import LeRobotWriterV21
from mem0_jax.data.rmbench import Recording, RmbenchError, TaskFolder, open_task, require_h5py
from mem0_jax.data.video_encode import CRF, GOP, PRESET
from mem0_jax.data.video_join import EncodedVideo
from mem0_jax.disk import behind, disk_told
from mem0_jax.lock import hold_output
from mem0_jax.progress import Progress

FPS = 30  # the rate the reference labels its datasets with
CAMERA = "observation.image.head_camera"
WRITERS = {"v3.0": LeRobotWriter, "v2.1": LeRobotWriterV21}


@dataclass(frozen=True)
class Source:
    """One recording and the id it gets: its number in the file's name, counted on over the folders before it."""

    id: int
    number: int
    path: Path
    folder: TaskFolder

    def key(self) -> dict[str, Any]:
        """What a prepared episode depends on."""
        status = self.path.stat()
        return {
            "path": str(self.path),
            "size": status.st_size,
            "modified": status.st_mtime_ns,
            "encoder": [FPS, GOP, CRF, PRESET],
        }


@dataclass(frozen=True)
class Prepared:
    """An episode with its labels: `state` float32 [T, 16], `texts` T subtasks, `ends` bool [T]."""

    source: Source
    state: np.ndarray
    video: EncodedVideo
    texts: list[str]
    ends: np.ndarray


@dataclass
class ImportReport:
    """What was imported (`episodes`: id, task, file, frames), left out (`skipped`: file, reason) and noticed."""

    dataset: Path
    version: str
    episodes: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def import_rmbench(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    version: str = "v3.0",
    workers: int = 1,
    skip_damaged: bool = False,
    instructions: Mapping[str, str] | None = None,
) -> ImportReport:
    """Import task folders into the new LeRobot dataset `out`; see `rmbench.open_task` for folders and instructions.

    The features are those of Mem-0's converters: `observation.state`, `action` (the next frame's state), the camera,
    `subtask`, `subtask_end` (int32; bool if every task is staged), `episode_id`, and `global_task` if a task is staged.

    Args:
        version: "v3.0" or "v2.1".
        workers: processes that decode and encode.
        skip_damaged: leave damaged recordings out instead of failing.

    Raises:
        RmbenchError: a folder is unfit, or recordings are damaged: all of them are named. What was prepared is kept.
        LockedError, DiskError: another process makes `out`, or the disk refused; what was prepared is kept.
    """
    require_h5py()
    out = behind(Path(out))
    if out.exists():
        raise RmbenchError(f"{out} exists; choose another folder or remove it first")
    tasks = [open_task(folder, instructions) for folder in folders]
    if unused := sorted((instructions or {}).keys() - {task.task for task in tasks}):
        raise RmbenchError(f"an instruction is given for {unused}, but the folders are {[task.task for task in tasks]}")
    sources = _sources(tasks)
    stage = out.parent / f".{out.name}.import"
    with hold_output(out), disk_told(out, f"finished episodes are kept in {stage}"):
        stage.mkdir(exist_ok=True)
        report = ImportReport(out, version)
        _import(sources, stage, workers, skip_damaged, report)
        shutil.rmtree(stage)
    return report


def _import(sources: Sequence[Source], stage: Path, workers: int, skip_damaged: bool, report: ImportReport) -> None:
    damaged = _prepare(sources, stage, workers)
    episodes = _labelled(sources, stage, damaged, report)
    if report.skipped and not (skip_damaged and episodes):
        reasons = "".join(f"\n  {entry['reason']}" for entry in report.skipped)
        raise RmbenchError(
            f"{len(report.skipped)} of {len(sources)} recordings are damaged:{reasons}\n"
            "Repair them or leave them out with --skip-damaged; what is finished is kept and not done again"
        )
    _check_sizes(episodes)
    try:
        with Progress(f"writing {report.dataset}"):
            _write(episodes, report)
    except ValueError as error:
        raise RmbenchError(f"{error}; a prepared episode is damaged: remove {stage} and start again") from error


def rmbench_features(height: int, width: int, tasks: Sequence[TaskFolder]) -> dict[str, dict[str, Any]]:
    """Return the features of a dataset of these tasks, as Mem-0's converters have them."""
    features = {}
    for key, value in staged_features(height, width, camera=CAMERA).items():
        features[key] = value
        if key == "subtask" and any(task.staged for task in tasks):
            features["global_task"] = {"dtype": "string", "shape": [1], "names": ["global_task_annotation"]}
    if all(task.staged for task in tasks):
        features["subtask_end"]["dtype"] = "bool"
    return features


# Preparing episodes


def _sources(folders: Sequence[TaskFolder]) -> list[Source]:
    sources, offset, seen = [], 0, set()
    for folder in folders:
        if folder.folder in seen:
            raise RmbenchError(f"{folder.folder} is given twice; name every folder once")
        seen.add(folder.folder)
        sources += [Source(offset + number, number, path, folder) for number, path in folder.episodes.items()]
        offset += max(folder.episodes) + 1
    return sources


def _prepare(sources: Sequence[Source], stage: Path, workers: int) -> dict[Path, str]:
    """Prepare what is not prepared yet; the reasons why recordings cannot be."""
    waiting = [source for source in sources if not _is_prepared(stage, source)]
    done = len(sources) - len(waiting)
    damaged = {}
    with Progress("importing", len(sources), "episode", done=done) as progress:
        for path, reason in _encoded(waiting, stage, workers):
            if reason:
                damaged[path] = reason
            progress.advance()
    return damaged


def _encoded(waiting: Sequence[Source], stage: Path, workers: int) -> Iterator[tuple[Path, str | None]]:
    jobs = [(source.path, _place(stage, source), source.key()) for source in waiting]
    if workers == 1 or len(jobs) < 2:
        yield from ((path, _encode(path, place, key)) for path, place, key in jobs)
        return
    # Spawned, not forked: the video encoder's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_follow_parent) as pool:
        futures = {pool.submit(_encode, *job): job[0] for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise RmbenchError(
                "a worker process died, perhaps for want of memory; run again with fewer --workers. Finished episodes "
                "are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """End at once and without a word on Ctrl-C, and do not outlive the parent when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _encode(path: Path, place: Path, key: dict[str, Any]) -> str | None:
    """Prepare one episode in the folder `place`; the reason if it is damaged."""
    partial = place.with_name(f"{place.name}.partial")
    for folder in (place, partial):
        shutil.rmtree(folder, ignore_errors=True)  # of a killed run, or of another file
    partial.mkdir(parents=True)
    try:
        with Recording(path) as recording:
            np.save(partial / "state.npy", recording.state())
            video = EncodedVideo.encode(partial / "video.mp4", recording.pictures(), recording.length, fps=FPS)
    except RmbenchError as error:
        shutil.rmtree(partial)
        return str(error)
    video.save(partial / "video.json")
    (partial / "source.json").write_text(json.dumps(key), "utf-8")
    partial.rename(place)
    return None


def _place(stage: Path, source: Source) -> Path:
    return stage / f"episode_{source.id:06d}"


def _is_prepared(stage: Path, source: Source) -> bool:
    path = _place(stage, source) / "source.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(path.read_text("utf-8")) == source.key()
    return False


def _load(stage: Path, source: Source) -> tuple[np.ndarray, EncodedVideo]:
    place = _place(stage, source)
    return np.load(place / "state.npy"), EncodedVideo.load(place / "video.json", place / "video.mp4")


# Putting the dataset together


def _labelled(
    sources: Sequence[Source], stage: Path, damaged: Mapping[Path, str], report: ImportReport
) -> list[Prepared]:
    """The episodes that are whole; the others, and what is odd, go into the report."""
    episodes = []
    for source in sources:
        try:
            if source.path in damaged:
                raise RmbenchError(damaged[source.path])
            state, video = _load(stage, source)
            texts, ends, uncovered = source.folder.labels(source.number, len(state))
        except RmbenchError as error:
            report.skipped.append({"file": str(source.path), "reason": str(error)})
            continue
        if uncovered:
            report.warnings.append(f"{source.path}: its last {uncovered} frames have no subtask; their text is empty")
        episodes.append(Prepared(source, state, video, texts, ends))
    return episodes


def _check_sizes(episodes: Sequence[Prepared]) -> None:
    first = episodes[0]
    for other in episodes:
        ours, theirs = ((each.video.height, each.video.width) for each in (first, other))
        if ours != theirs:
            raise RmbenchError(
                f"{other.source.path} has pictures of {theirs[0]}x{theirs[1]}, {first.source.path} of {ours[0]}x"
                f"{ours[1]}; a dataset needs one size: import them into separate datasets"
            )


def _write(episodes: Sequence[Prepared], report: ImportReport) -> None:
    out, video = report.dataset, episodes[0].video
    features = rmbench_features(video.height, video.width, [episode.source.folder for episode in episodes])
    shutil.rmtree(out.with_name(f".{out.name}.partial"), ignore_errors=True)  # of a killed run
    with WRITERS[report.version](out, FPS, features, None) as writer:
        for episode in episodes:
            source, state = episode.source, episode.state
            frames = {
                "observation.state": state,
                "action": np.concatenate([state[1:], state[-1:]]),
                CAMERA: episode.video,
                "subtask": episode.texts,
                "subtask_end": episode.ends,
                "episode_id": np.full(len(state), source.id, np.int32),
            }
            if "global_task" in features:
                frames["global_task"] = [source.folder.instruction] * len(state)
            writer.add_episode(frames, source.folder.task)
            entry = {"id": source.id, "task": source.folder.task, "file": str(source.path), "frames": len(state)}
            report.episodes.append(entry)
