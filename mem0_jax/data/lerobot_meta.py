"""Metadata of LeRobot datasets, versions 2.0, 2.1 and 3.0: info.json, the episode table, tasks and statistics.

Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mem0_jax.data import files, parquet
from mem0_jax.data.files import AnyPath, DatasetError, MissingFile
from mem0_jax.data.lerobot_features import COMMON, PICTURES, TEXTS, is_number, plain, unfit, unreadable

VERSIONS = ("v2.0", "v2.1", "v3.0")
MAX_SIDE = 8192  # pixels; of a declared picture
_MAX_INDEX = 2**40
EPISODES = "meta/episodes"
STATS = "meta/stats.json"
EPISODES_V2 = "meta/episodes.jsonl"
_PLACE = ("chunk_index", "file_index")

Statistics = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's pictures lie: `path` (mp4) and the number of its first frame in that file."""

    path: AnyPath
    first_frame: int


@dataclass(frozen=True)
class Episode:
    """One episode: its frames are rows `start` to `start + length - 1` of every column.

    In its parquet file `data_path` they begin at row `data_row`. Of a video camera it has a span in `videos`, or
    in `lost` why not.
    """

    index: int
    start: int
    length: int
    tasks: tuple[str, ...]
    data_path: AnyPath
    videos: dict[str, VideoSpan]
    data_row: int = 0
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"episode {self.index}"


@dataclass(frozen=True)
class Info:
    """What meta/info.json says, checked but for `video_path`, which nobody may ask for; `raw` is all of it.

    `features` have dtype and shape in their usual spelling; those that are neither in `numbers`, `texts`, `videos` nor
    `images` cannot be read.
    """

    version: str
    fps: float
    features: dict[str, dict[str, Any]]
    data_path: str
    video_path: Any
    chunks_size: int
    raw: dict[str, Any]

    @property
    def videos(self) -> list[str]:
        """Keys of the video features."""
        return [key for key, value in self.features.items() if value["dtype"] == "video"]

    @property
    def images(self) -> list[str]:
        """Keys of the image features."""
        return [key for key, value in self.features.items() if value["dtype"] == "image"]

    @property
    def texts(self) -> list[str]:
        """Keys of the string features."""
        return [key for key, value in self.features.items() if value["dtype"] in TEXTS]

    @property
    def numbers(self) -> list[str]:
        """Keys of the numeric features."""
        return [key for key, value in self.features.items() if is_number(value) and not unreadable(value)]

    def fits(self, key: str) -> bool:
        """Whether a feature is declared as what commands read it as, or read by none."""
        return key not in COMMON or not unfit(key, self.features[key])


def read_info(root: AnyPath) -> Info:
    """Read and check meta/info.json.

    Raises:
        MissingFile, DatasetError: naming the field and what was expected.
    """
    path = root / "meta/info.json"
    raw = files.read_json(path)
    version = _version(raw.get("codebase_version"), path)
    fps: Any = raw.get("fps")
    chunks, features = raw.get("chunks_size", 1000), raw.get("features")
    if not _is_number(fps) or not 0 < fps <= 10_000:
        raise DatasetError(f"{path}: fps is {fps!r}; expected a positive number{_unquoted(fps)}")
    if not isinstance(chunks, int) or chunks < 1:
        raise DatasetError(f"{path}: chunks_size is {chunks!r}; expected a positive integer{_unquoted(chunks)}")
    if not isinstance(features, dict) or not features:
        raise DatasetError(f"{path}: features is missing or empty; expected one entry for every column and camera")
    features = {key: _checked_feature(key, value, f"{path}: feature {key!r}") for key, value in features.items()}
    data = files.checked_template(raw.get("data_path"), f"{path}: data_path")
    return Info(version, float(fps), features, data, raw.get("video_path"), chunks, raw)


def _version(label: Any, path: AnyPath) -> str:
    """The version that info.json names: "v3.0", "V3.0", "3.0.0", "v3" and 3 are one."""
    found = re.fullmatch(r"[vV]?([0-9]{1,4})(?:\.([0-9]{1,4}))?(?:\.0)?", str(label).strip())
    major, minor = (int(found[1]), found[2] and int(found[2])) if found else (None, None)
    if major == 2 and minor is None:
        cure = "write v2.1 if there is meta/episodes_stats.jsonl, else v2.0"
    elif major is None or not isinstance(label, str | int | float):
        cure = f"write v3.0 if there is {EPISODES}, v2.1 if there is meta/episodes_stats.jsonl, else v2.0"
    elif (version := f"v{major}.{minor or 0}") in VERSIONS:
        return version
    elif major < 2:
        cure = "convert the dataset with lerobot's conversion scripts"
    else:
        cure = "if its files are laid out as in one of these, write that there"
    known = f"{', '.join(VERSIONS[:-1])} and {VERSIONS[-1]}"
    raise DatasetError(f"{path}: codebase_version {label!r} is unknown; this reader knows {known}: {cure}")


def episode_rows(root: AnyPath, info: Info) -> list[dict[str, Any]]:
    """Return the rows of the episode table in the order of its files, unchecked.

    v2: episode_index, length, tasks. v3.0: those and the columns without statistics, by their names in the file.
    """
    check_label(root, info)
    if info.version != "v3.0":
        return files.read_json_lines(root / EPISODES_V2)
    required = ["episode_index", "length", "tasks", *(f"data/{key}" for key in _PLACE)]
    rows = []
    if not (found := _episode_files(root)):
        raise MissingFile(f"{root}/{EPISODES} holds no parquet file; a v3.0 dataset needs it")
    for path in found:
        with parquet.opened(path, "episode table") as file:
            names = file.schema_arrow.names
        times = (*_PLACE, "from_timestamp", "to_timestamp")
        known = ["dataset_from_index", "dataset_to_index"]
        known += [f"videos/{camera}/{key}" for camera in info.videos for key in times]
        columns = required + [name for name in known if name in names]
        rows += parquet.read_table(path, columns, "episode table").to_pylist()
    return rows


def make_episode(root: AnyPath, info: Info, row: Mapping[str, Any], start: int) -> Episode:
    """Make an episode of a row of the episode table.

    Raises:
        DatasetError: naming the episode and the field.
    """
    index = integer(row, "episode_index", "episode table", 0)
    where = f"episode {index}"
    length = integer(row, "length", where, 1)
    tasks = row.get("tasks")
    texts = (tasks,) if isinstance(tasks, str) else tuple(tasks or ()) if isinstance(tasks, list | None) else ()
    if info.version == "v3.0":
        place = {key: integer(row, f"data/{key}", where, 0) for key in _PLACE}
    else:
        place = {"episode_chunk": index // info.chunks_size, "episode_index": index}
    path = format_path(root, info.data_path, info, **place)
    videos: dict[str, VideoSpan] = {}
    lost: dict[str, str] = {}
    for camera in info.videos:
        try:
            videos[camera] = _span(root, info, row, camera, place, where)
        except DatasetError as error:  # which matters where its pictures are asked for
            lost[camera] = str(error)
    return Episode(index, start, length, tuple(map(str, texts)), path, videos, lost=lost)


def format_path(root: AnyPath, template: str, info: Info, **fields: Any) -> AnyPath:
    """Fill a path template of info.json in; the result lies inside the dataset."""
    where = f"{root}/meta/info.json"
    try:
        name = template.format(**fields)
    except KeyError as error:
        raise DatasetError(
            f"{where}: {template!r} uses {error}, which {info.version} lacks; correct it, or codebase_version if "
            f"the files are named as in {'v2.1' if info.version == 'v3.0' else 'v3.0'}"
        ) from error
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{where}: path template {template!r} cannot be filled in ({error})") from error
    return files.inside(root, name, f"{where}: path template {template!r}")


def read_statistics(root: AnyPath, info: Info) -> Statistics:
    """Return the statistics of the whole dataset by feature and name (min, max, mean, std, count, v3.0: q01 ... q99).

    v2.1 has them for each episode only; they are joined with every episode's count as its weight.

    Raises:
        MissingFile: the dataset has none.
    """
    if info.version == "v2.1":
        return _joined([stats for _, stats in read_episode_statistics(root, info)])
    path = root / STATS
    return _statistics(files.read_json(path), str(path))


def read_episode_statistics(root: AnyPath, info: Info) -> list[tuple[int, Statistics]]:
    """Return (episode_index, statistics) of every episode; v2.0 has none."""
    if info.version == "v2.0":
        return []
    if info.version == "v2.1":
        path = root / "meta/episodes_stats.jsonl"
        if not path.is_file() and (root / STATS).is_file():
            raise MissingFile(
                f"{path} is missing, but there is {STATS} as in v2.0; set codebase_version in meta/info.json to v2.0"
            )
        rows = [(integer(row, "episode_index", str(path), 0), row.get("stats")) for row in files.read_json_lines(path)]
        return [(index, _statistics(stats, f"{path}: episode {index}")) for index, stats in rows]
    found = []
    for path in _episode_files(root):
        with parquet.opened(path, "episode table") as file:
            names = [name for name in file.schema_arrow.names if name.startswith("stats/")]
        for row in parquet.read_table(path, ["episode_index", *names], "episode table").to_pylist():
            nested: dict[str, dict[str, Any]] = {}
            for name in names:
                feature, _, statistic = name[len("stats/") :].rpartition("/")
                if row[name] is not None:
                    nested.setdefault(feature, {})[statistic] = row[name]
            found.append((row["episode_index"], _statistics(nested, f"{path}: episode {row['episode_index']}")))
    return found


def _episode_files(root: AnyPath) -> list[AnyPath]:
    found = files.find(root / EPISODES, "*/*.parquet")
    return [path for path in found if not path.name.startswith(".")]


def check_label(root: AnyPath, info: Info) -> None:
    """Raises DatasetError: the only episode table is that of another version than info.json says."""
    old, new = (root / EPISODES_V2).is_file(), bool(_episode_files(root))
    if old == new or new == (info.version == "v3.0"):
        return
    label, found, file = info.raw["codebase_version"], *(("v3.0", EPISODES) if new else ("v2.1", EPISODES_V2))
    raise DatasetError(
        f"{root}/meta/info.json says codebase_version {label!r}, but there is {file} as in {found}; set it to "
        f"{found!r} if the other files are named so too, or convert the dataset with lerobot's conversion scripts"
    )


def _span(
    root: AnyPath, info: Info, row: Mapping[str, Any], camera: str, place: Mapping[str, int], where: str
) -> VideoSpan:
    template = files.checked_template(info.video_path, f"{root}/meta/info.json: video_path")
    if info.version != "v3.0":
        return VideoSpan(format_path(root, template, info, video_key=camera, **place), 0)
    lacking = [name for key in (*_PLACE, "from_timestamp") if row.get(name := f"videos/{camera}/{key}") is None]
    if lacking:
        raise DatasetError(
            f"{where}: the episode table does not say where its video of {camera} is ({', '.join(lacking)}): the "
            "recording was not finished, or there are none and the feature is to be taken out of meta/info.json"
        )
    place = {key: integer(row, f"videos/{camera}/{key}", where, 0) for key in _PLACE}
    seconds = row[f"videos/{camera}/from_timestamp"]
    if not _is_number(seconds) or not 0 <= seconds < _MAX_INDEX:
        raise DatasetError(f"{where}: videos/{camera}/from_timestamp is {seconds!r}; expected seconds, 0 or more")
    # from_timestamp is a running sum of floats, a hair below or above the frame's time: floor would be wrong.
    return VideoSpan(format_path(root, template, info, video_key=camera, **place), round(seconds * info.fps))


def _checked_feature(key: str, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise DatasetError(f"{where} has no dtype; expected an entry with dtype and shape")
    feature = plain(value)
    shape = feature["shape"]
    if feature["dtype"] not in PICTURES:
        return feature  # whether it can be read matters where it is asked for
    if "/" in key or key.startswith("."):
        raise DatasetError(f"{where}: names hold no slash and do not start with a dot")
    # The rest is read by `camera_shape`, where pictures are asked for.
    if isinstance(shape, list) and any(isinstance(n, int) and n > MAX_SIDE for n in shape):
        raise DatasetError(f"{where} has shape {shape}; expected a picture of up to {MAX_SIDE} pixels a side")
    return feature


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def integer(row: Mapping[str, Any], key: str, where: str, least: int) -> int:
    """Return an integer of a row, at least `least`; DatasetError if it is none."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _MAX_INDEX:
        raise DatasetError(f"{where}: {key} is {value!r}; expected an integer, at least {least}{_unquoted(value)}")
    return value


def _unquoted(value: Any) -> str:
    return ", written without quotes" if isinstance(value, str) else ""


def _statistics(raw: Any, where: str) -> Statistics:
    if not isinstance(raw, dict) or not all(isinstance(value, dict) for value in raw.values()):
        raise DatasetError(f"{where}: expected statistics as an object of objects")
    found: Statistics = {}
    for feature, values in raw.items():
        for name, value in values.items():
            try:
                found.setdefault(feature, {})[name] = np.asarray(value, np.float64)
            except (TypeError, ValueError) as error:
                raise DatasetError(f"{where}: {name} of {feature} is not a list of numbers") from error
    return found


def _joined(parts: list[Statistics]) -> Statistics:
    """Join statistics of disjoint sets of frames: means and variances weighted by counts."""
    joined: Statistics = {}
    for feature in {key: None for part in parts for key in part}:
        rows = [part[feature] for part in parts if feature in part]
        if any({"min", "max", "mean", "std", "count"} - row.keys() for row in rows):
            continue
        try:
            low, high, mean, std = (np.stack([row[name] for row in rows]) for name in ("min", "max", "mean", "std"))
            count = np.stack([row["count"].reshape(-1)[0] for row in rows])
            weight = (count / count.sum()).reshape(-1, *[1] * (mean.ndim - 1))
            center = (weight * mean).sum(0)
            variance = (weight * (std**2 + (mean - center) ** 2)).sum(0)
        except (ValueError, IndexError) as error:
            raise DatasetError(f"statistics of {feature} differ in shape from episode to episode") from error
        joined[feature] = {"min": low.min(0), "max": high.max(0), "mean": center, "std": np.sqrt(variance)}
        joined[feature]["count"] = np.array([count.sum()])
    return joined
