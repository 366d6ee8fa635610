"""Check of a dataset's metadata: features, tasks, the episode table."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mem0_jax.data import lerobot_meta
from mem0_jax.data.camera_shape import picture_shape
from mem0_jax.data.files import AnyPath, DatasetError, MissingFile
from mem0_jax.data.findings import Findings
from mem0_jax.data.joint_names import VECTORS, flat_names
from mem0_jax.data.lerobot_features import AUTOMATIC, COMMON, PICTURES, unfit, unreadable
from mem0_jax.data.lerobot_meta import Episode, Info
from mem0_jax.data.lerobot_tasks import read_tasks, tasks_path
from mem0_jax.data.needed import NO_FEATURE

_GRID = 0.01  # frames; how far a video's from_timestamp may lie beside a frame


@dataclass(frozen=True)
class Metadata:
    """What the metadata says, as far as it can be read; `tasks` is None when its table cannot."""

    root: AnyPath
    info: Info
    episodes: list[Episode] = field(default_factory=list)
    tasks: dict[int, str] | None = None


def check_meta(root: AnyPath, info: Info) -> tuple[Metadata, Findings]:
    """Read the metadata and return it with everything wrong in it; unreadable episodes are left out of it."""
    found = Findings(root / "meta/info.json")
    _check_needed(info, found)
    _check_features(info, found)
    tasks = _check_tasks(root, info, found)
    episodes, rows = _read_episodes(root, info, found)
    if episodes and all(finding.kind != "episode-table" for finding in found):
        _check_totals(info, episodes, rows, found)
    if info.version == "v3.0":
        _check_spans(info, episodes, rows, found)
    for episode in episodes:
        for camera, why in episode.lost.items():
            message = why.removeprefix(f"{episode.name}: ")
            found.error("missing-video", message, file=_table(root, info), episode=episode.index, feature=camera)
    if tasks is not None:
        for episode in episodes:
            unknown = sorted(set(episode.tasks) - set(tasks.values()))
            if unknown:
                found.error("task", f"the task table has no {unknown}", file=_table(root, info), episode=episode.index)
    return Metadata(root, info, episodes, tasks), found


def severity(found: Findings, key: str, feature: Mapping[str, Any] | None = None) -> Callable[..., None]:
    """Return `found.error` for a feature that commands read and for pictures, else `found.warning`."""
    pictures = feature is not None and feature["dtype"] in PICTURES
    return found.error if key in COMMON or pictures else found.warning


def feature_names(feature: Mapping[str, Any]) -> list[str]:
    """Return a name for every number of a feature: those of info.json where they fit, else its position."""
    count = math.prod(feature["shape"])
    names = flat_names(feature.get("names"), count)
    return names if len(names) == count else [f"[{i}]" for i in range(count)]


def _table(root: AnyPath, info: Info) -> str:
    return str(root / (lerobot_meta.EPISODES if info.version == "v3.0" else lerobot_meta.EPISODES_V2))


def _check_needed(info: Info, found: Findings) -> None:
    """Features that commands read: are they there, and of the kind that they are read as?"""
    for key in AUTOMATIC:
        if key not in info.features:
            found.error("feature", NO_FEATURE, feature=key)
    for key in VECTORS:
        if key not in info.features:
            found.error("feature", "info.json lacks this feature; there is nothing to train on", feature=key)
        elif key in info.numbers and len(info.features[key]["shape"]) != 1:
            message = f"has shape {info.features[key]['shape']}; training and statistics need [D]"
            found.error("robot", f"{message}, one list of numbers a frame", feature=key)
    for key in (key for key in COMMON if key in info.features):
        if problem := unfit(key, info.features[key]):
            found.error("feature", problem, feature=key)


def _check_features(info: Info, found: Findings) -> None:
    for key in [*info.videos, *info.images]:
        try:
            picture_shape(info.features[key])
        except DatasetError as error:
            found.error("shape", str(error), feature=key)
    for key, feature in info.features.items():
        if key not in COMMON and (problem := unreadable(feature)):
            found.warning("feature", f"cannot be read: {problem}", feature=key)
        names, shape = feature.get("names"), feature.get("shape", ())
        # Names may be those of the numbers or those of the axes.
        if key in info.numbers and isinstance(names, list) and len(names) not in (0, math.prod(shape), len(shape)):
            found.warning("names", f"{len(names)} names for shape {shape}", feature=key)
        declared = (feature.get("info") or feature.get("video_info") or {}) if key in info.videos else {}
        fps = declared.get("video.fps") if isinstance(declared, dict) else None
        if fps is not None and fps != info.fps:
            found.error("fps", f"video.fps is {fps}, but the dataset has {info.fps:g} frames a second", feature=key)


def _check_tasks(root: AnyPath, info: Info, found: Findings) -> dict[int, str] | None:
    file = str(tasks_path(root, info))
    try:
        rows = read_tasks(root, info)
    except (DatasetError, MissingFile) as error:
        found.error("tasks", str(error), file=file)
        return None
    for number, count in Counter(index for index, _ in rows).items():
        if count > 1:
            found.error("tasks", f"task_index {number} is given {count} times", file=file)
    for text, count in Counter(text for _, text in rows).items():
        if count > 1:
            found.warning("tasks", f"the task {text!r} is listed {count} times", file=file)
    if info.raw.get("total_tasks") not in (None, len(rows)):
        found.warning("totals", f"total_tasks is {info.raw['total_tasks']}, but the task table holds {len(rows)}")
    return dict(rows)


def _read_episodes(root: AnyPath, info: Info, found: Findings) -> tuple[list[Episode], dict[int, Mapping[str, Any]]]:
    """Return the readable episodes by index, with their first rows filled in, and their rows of the table."""
    table = _table(root, info)
    try:
        raw = lerobot_meta.episode_rows(root, info)
    except (DatasetError, MissingFile) as error:
        found.error("episode-table", str(error), file=table)
        return [], {}
    if not raw:
        found.error("episode-table", "holds no episode", file=table)
    readable: dict[int, Episode] = {}
    rows: dict[int, Mapping[str, Any]] = {}
    last = -1
    for row in raw:
        try:
            episode = lerobot_meta.make_episode(root, info, row, 0)
        except DatasetError as error:
            index, said = _as_index(row), str(error)
            mine = said.startswith(f"episode {index}: ")  # what is said of no episode is one cause for all of them
            where = {"episode": index} if mine else {}
            found.error("episode-table", said.removeprefix(f"episode {index}: "), file=table, **where)
            continue
        if episode.index in readable:
            found.error("episode-table", "is listed twice", file=table, episode=episode.index)
            continue
        if episode.index < last:
            message = f"is listed after episode {last}; LeRobot expects them in order"
            severity = found.error if info.version == "v3.0" else found.warning
            severity("episode-order", message, file=table, episode=episode.index)
        last = max(last, episode.index)
        readable[episode.index], rows[episode.index] = episode, row
    listed = sorted({index for row in raw if (index := _as_index(row)) is not None})
    for before, after in itertools.pairwise([-1, *listed]):
        if after > before + 1 and after in readable:
            gap = "is" if after == before + 2 else f"and all up to {after - 1} are"
            found.error("episode-table", f"{gap} not in the episode table", file=table, episode=before + 1)
    return _with_starts([readable[index] for index in sorted(readable)]), rows


def _as_index(row: Mapping[str, Any]) -> int | None:
    index = row.get("episode_index")
    return index if isinstance(index, int) else None


def _with_starts(episodes: Sequence[Episode]) -> list[Episode]:
    out, start, rows = [], 0, {}
    for episode in episodes:
        row = rows.get(episode.data_path, 0)
        out.append(replace(episode, start=start, data_row=row))
        start, rows[episode.data_path] = start + episode.length, row + episode.length
    return out


def _check_totals(
    info: Info, episodes: Sequence[Episode], rows: Mapping[int, Mapping[str, Any]], found: Findings
) -> None:
    totals = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    for key, value in totals.items():
        if info.raw.get(key) != value:
            found.error("totals", f"{key} is {info.raw.get(key)!r}, but the episode table gives {value}")
    for key, at_end in (("dataset_from_index", 0), ("dataset_to_index", 1)):
        # Where one is wrong, those behind it mostly are by as much.
        wrong: list[tuple[int | None, int, str]] = []
        for episode in episodes:
            value = episode.start + at_end * episode.length
            given = rows[episode.index].get(key, value)
            if given != value:
                off = given - value if isinstance(given, int) else None
                wrong.append((off, episode.index, f"{key} is {given!r}; the lengths add up to {value}"))
        for _, group in itertools.groupby(wrong, lambda entry: entry[0]):
            (_, first, message), *others = group
            more = f" (and it is as far off up to episode {others[-1][1]})" if others else ""
            found.error("episode-table", message + more, episode=first)


def _check_spans(
    info: Info, episodes: Sequence[Episode], rows: Mapping[int, Mapping[str, Any]], found: Findings
) -> None:
    """Compare the times of episodes in shared videos with frames, lengths, and each other."""
    for camera in info.videos:
        files: dict[AnyPath, list[Episode]] = {}
        for episode in episodes:
            row = rows[episode.index]
            where: dict[str, Any] = {"episode": episode.index, "feature": camera}
            if camera in episode.lost:
                continue
            begin, end = (row.get(f"videos/{camera}/{key}") for key in ("from_timestamp", "to_timestamp"))
            begin = float(begin or 0) * info.fps
            if abs(begin - round(begin)) > _GRID:
                found.error("video-times", f"from_timestamp falls {begin:.3f} frames into the video", **where)
            if isinstance(end, float) and not abs(end * info.fps - begin - episode.length) <= _GRID:
                held = end * info.fps - begin
                found.error("video-times", f"its video span holds {held:.2f} frames, not {episode.length}", **where)
            files.setdefault(episode.videos[camera].path, []).append(episode)
        for path, users in files.items():
            users.sort(key=lambda episode: episode.videos[camera].first_frame)
            for before, after in itertools.pairwise(users):
                end, begin = before.videos[camera].first_frame + before.length, after.videos[camera].first_frame
                if end > begin:
                    message = f"shares {end - begin} frames of the video with {before.name}"
                    found.error("video-times", message, file=str(path), episode=after.index, feature=camera)
