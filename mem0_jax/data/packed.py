"""Reader of packed datasets: episodes whose pictures lie as JPEGs in ArrayRecord shards (see `packed_format`).

Axes: F frames of the whole dataset, n frames asked for, H, W picture height and width.

Needs neither array_record nor TFDS: a picture is one read of known size, wherever the folder lies (on this machine, a
mounted bucket, or any fsspec address). A packed dataset comes from a stranger: what it claims is checked against the
sizes of its files, a picture's bytes against their CRC and its size against the declared one before it is decoded.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from mem0_jax.data import files, lerobot_meta
from mem0_jax.data.files import AnyPath, DatasetError, MissingFile, RemotePath
from mem0_jax.data.lerobot_tasks import read_tasks
from mem0_jax.data.packed_format import COLUMNS, FORMAT, MANIFEST, PICTURES, SOURCE, picture_limit, read_logical

_AXES = ("height", "width", "channels")


class PackedPictureError(DatasetError):
    """A picture of a packed dataset that is missing or damaged."""


@dataclass(frozen=True)
class PackedEpisode:
    """One episode: its frames are rows `start` to `start + length - 1` of every column; its pictures lie in `shard`."""

    index: int
    start: int
    length: int
    tasks: tuple[str, ...]
    shard: AnyPath

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"episode {self.index}"


class PackedDataset:
    """A packed dataset, with the face of `LeRobotDataset`; pictures come from `open_frames`.

    Holds no open files and can be pickled. Columns are loaded when they are first asked for.

    Attributes:
        root: the folder.
        fps: frames per second.
        info: the source's info.json.
        features: the source's features by key; cameras have the packed size.
        cameras: keys of the picture features.
        episodes: all episodes, ordered by index.
        num_frames: F.

    Raises:
        MissingFile, DatasetError: naming the file and the field.
    """

    def __init__(self, root: str | Path | RemotePath):
        self.root: AnyPath = files.dataset_path(root)
        manifest = _Fields(files.read_json(self.root / MANIFEST), f"{self.root / MANIFEST}")
        if manifest.value.get("format") != FORMAT:
            raise DatasetError(
                f"{manifest.where}: format is {manifest.value.get('format')!r}, but this version reads {FORMAT}; "
                "pack the dataset again with this version, or read it with the version that packed it"
            )
        self._info = lerobot_meta.read_info(self.root / SOURCE)
        self.fps, self.info, self.robot_type = self._info.fps, self._info.raw, self._info.raw.get("robot_type")
        self.num_frames = manifest.integer("frames", 1)
        self.episodes = _episodes(self.root, manifest, self.num_frames)
        self._numbers, self._texts = _columns(manifest)
        self._shapes = _cameras(manifest)
        self.cameras = list(self._shapes)
        self.features = {
            key: value | {"shape": [*self._shapes[key], 3], "names": list(_AXES)} if key in self._shapes else value
            for key, value in self._info.features.items()
        }
        self._loaded: dict[AnyPath, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"PackedDataset({str(self.root)!r}, {len(self.episodes)} episodes, {self.num_frames} frames)"

    def column(self, key: str) -> np.ndarray:
        """Return a numeric feature of every frame: [F] for shape (1,), else [F, *shape], in the source's dtype."""
        if key not in self._numbers:
            raise DatasetError(f"{self.root}: no numeric feature {key!r}; there are {sorted(self._numbers)}")
        number, dtype, shape = self._numbers[key]
        return self._column(number, dtype, shape, key)

    def texts(self, key: str) -> tuple[np.ndarray, list[str]]:
        """Return a string feature as (ids int32 [F], the distinct texts); `key` may also be "task"."""
        if key not in self._texts:
            raise DatasetError(f"{self.root}: no text feature {key!r}; there are {sorted(self._texts)}")
        number, texts = self._texts[key]
        ids = self._column(number, np.dtype("<i4"), (), key)
        if ids.min() < 0 or ids.max() >= len(texts):
            raise DatasetError(f"{self.root}: column {number} ({key}) names texts that packed.json does not hold")
        return ids, list(texts)

    def tasks(self) -> dict[int, str]:
        """Return the task texts by task_index."""
        return dict(read_tasks(self.root / SOURCE, self._info))

    def statistics(self) -> lerobot_meta.Statistics:
        """Return the source's stored statistics; see `LeRobotDataset.statistics`."""
        return lerobot_meta.read_statistics(self.root / SOURCE, self._info)

    def image_shape(self, camera: str) -> tuple[int, int]:
        """Return (height, width) of a camera's packed pictures."""
        if camera not in self._shapes:
            raise DatasetError(f"{self.root}: no camera {camera!r}; cameras are {self.cameras}")
        return self._shapes[camera]

    def open_frames(self, camera: str) -> PackedFrames:
        """Return a reader of a camera's pictures, for one lane."""
        shape, path = self.image_shape(camera), self.root / PICTURES / f"{self.cameras.index(camera):03d}.bin"
        what = f"places of the pictures of {camera}"
        return PackedFrames(camera, shape, self._load(path, np.dtype("<i8"), (self.num_frames, 3), what))

    def _column(self, number: int, dtype: np.dtype, shape: tuple[int, ...], key: str) -> np.ndarray:
        path = self.root / COLUMNS / f"{number:03d}.bin"
        return self._load(path, dtype, (self.num_frames, *shape), f"column {key}")

    def _load(self, path: AnyPath, dtype: np.dtype, shape: tuple[int, ...], what: str) -> np.ndarray:
        if path not in self._loaded:
            self._loaded[path] = _read_array(path, dtype, shape, what)
        return self._loaded[path]


class PackedFrames:
    """Pictures of one camera of a packed dataset: any frame of any episode, fastest in order. One owner per instance.

    Args:
        camera: its key, for errors.
        shape: (H, W) that every picture must have.
        index: int64 [F, 3]: logical offset in the shard, bytes and CRC-32 of each picture.
    """

    def __init__(self, camera: str, shape: tuple[int, int], index: np.ndarray):
        self._camera, self._shape, self._index = camera, shape, index
        self._file: BinaryIO | None = None
        self._shard: AnyPath | None = None

    def read_frames(self, episode: PackedEpisode, frames: np.ndarray) -> np.ndarray:
        """Return uint8 [n, H, W, 3], RGB, for int64 [n] numbers of frames within the episode.

        Raises:
            IndexError: frames outside the episode.
            MissingFile, PackedPictureError: naming the episode, the frame and the shard.
        """
        frames = np.asarray(frames)
        if len(frames) and not 0 <= frames.min() <= frames.max() < episode.length:
            raise IndexError(f"{episode.name}: frames {frames.min()} to {frames.max()} of {episode.length} ({self})")
        out = np.empty((len(frames), *self._shape, 3), np.uint8)
        file = self._open(episode)
        for i, frame in enumerate(frames.tolist()):
            where = f"{episode.name}, frame {frame} ({self._camera}) in {episode.shard}"
            data = self._read(file, self._index[episode.start + frame].tolist(), where)
            _decode(data, self._shape, out[i], where)
        return out

    def close(self) -> None:
        """Release the shard."""
        if self._file is not None:
            self._file.close()
        self._file = self._shard = None

    def _open(self, episode: PackedEpisode) -> BinaryIO:
        if self._file is None or self._shard != episode.shard:
            self.close()
            try:
                self._file, self._shard = files.open_binary(episode.shard), episode.shard
            except FileNotFoundError as error:
                raise MissingFile(
                    f"{episode.name}: shard {episode.shard} is missing; copy the dataset again"
                ) from error
        return self._file

    def _read(self, file: BinaryIO, place: list[int], where: str) -> bytes:
        offset, size, crc = place
        if offset < 0 or not 0 < size <= picture_limit(*self._shape):
            raise PackedPictureError(f"{where}: its entry in {PICTURES}/ is impossible (offset {offset}, {size} bytes)")
        try:
            data = read_logical(file, offset, size)
        except (OSError, OverflowError) as error:
            self.close()
            raise PackedPictureError(f"{where}: cannot be read ({error})") from error
        if len(data) < size:
            raise PackedPictureError(f"{where}: the shard ends before it; it is truncated, copy it again")
        if zlib.crc32(data) != crc:
            raise PackedPictureError(f"{where}: its bytes are not those that were packed; copy the shard again")
        return data


def open_dataset(root: str | Path | RemotePath) -> Any:
    """Open a folder as what it is: a `PackedDataset` if it holds packed.json, else a `LeRobotDataset`."""
    from mem0_jax.data.lerobot import LeRobotDataset

    path = files.dataset_path(root)
    return PackedDataset(path) if (path / MANIFEST).is_file() else LeRobotDataset(path)


def _decode(data: bytes, shape: tuple[int, int], out: np.ndarray, where: str) -> None:
    # A header may promise gigabytes of pixels: it is compared before anything is decoded.
    found = _jpeg_shape(data)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if found == shape else None
    if picture is None or picture.shape[:2] != shape:
        size = f"{found[0]}x{found[1]}" if found else "no JPEG"
        raise PackedPictureError(f"{where}: is {size}; expected a JPEG of {shape[0]}x{shape[1]}")
    cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=out)


def _jpeg_shape(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG's header, or None if it has none. ITU-T T.81, B.2.2."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _read_array(path: AnyPath, dtype: np.dtype, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Read a raw array whose size must be that of the file."""
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    try:
        found = files.size_of(path)
        if found != needed:
            raise DatasetError(f"{path} ({what}) has {found} bytes; expected {needed}. Copy the dataset again")
        files.check_fits(needed, f"{path} ({what})")
        with files.open_binary(path) as file:
            return np.frombuffer(file.read(needed), dtype).reshape(shape)
    except FileNotFoundError as error:
        raise MissingFile(f"{path} ({what}) is missing; copy the dataset again") from error


# packed.json


@dataclass(frozen=True)
class _Fields:
    """An object of packed.json whose fields are asked for by kind; `where` is how errors call it."""

    value: Any
    where: str

    def get(self, key: str, kind: type, expected: str) -> Any:
        value = self.value.get(key) if isinstance(self.value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DatasetError(f"{self.where}: {key} is {str(value)[:60]!r}; expected {expected}")
        return value

    def integer(self, key: str, least: int) -> int:
        value = self.get(key, int, "an integer")
        if not least <= value < 2**40:
            raise DatasetError(f"{self.where}: {key} is {value}; expected an integer, at least {least}")
        return value

    def text(self, key: str) -> str:
        return self.get(key, str, "a text")

    def items(self, key: str, kind: type, expected: str) -> list[Any]:
        values = self.get(key, list, f"a list of {expected}")
        if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            raise DatasetError(f"{self.where}: {key} holds something else than {expected}")
        return values

    def objects(self, key: str) -> list[_Fields]:
        return [_Fields(v, f"{self.where}: {key}[{i}]") for i, v in enumerate(self.items(key, dict, "objects"))]


def _episodes(root: AnyPath, manifest: _Fields, frames: int) -> list[PackedEpisode]:
    table = _Fields(manifest.get("episodes", dict, "an object"), f"{manifest.where}: episodes")
    index, length = (table.items(key, int, "integers") for key in ("index", "length"))
    tasks = table.items("tasks", list, "lists of texts")
    shards = [
        (files.inside(root, shard.text("file"), shard.where), shard.integer("episodes", 1))
        for shard in manifest.objects("shards")
    ]
    if not index or not len(index) == len(length) == len(tasks) == sum(count for _, count in shards):
        raise DatasetError(f"{table.where}: the lists and the shards disagree on the number of episodes")
    if min(length) < 1 or sum(length) != frames or any(a >= b for a, b in itertools.pairwise(index)) or index[0] < 0:
        raise DatasetError(f"{table.where}: expected ascending indices and positive lengths, {frames} frames in all")
    place = [path for path, count in shards for _ in range(count)]
    found, start = [], 0
    for row in zip(index, length, tasks, place):
        found.append(PackedEpisode(row[0], start, row[1], tuple(map(str, row[2])), row[3]))
        start += row[1]
    return found


def _columns(manifest: _Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """(number, dtype, shape) of the numeric columns and (number, texts) of the others, by key."""
    numbers, texts = {}, {}
    for number, column in enumerate(manifest.objects("columns")):
        key = column.text("key")
        if "texts" in column.value:
            texts[key] = number, column.items("texts", str, "texts")
            continue
        name, shape = column.text("dtype"), column.items("shape", int, "integers")
        try:
            dtype = np.dtype(name)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind not in "biuf" or any(not 0 < n < 2**24 for n in shape) or len(shape) > 8:
            raise DatasetError(f"{column.where}: dtype {name[:40]!r} and shape {shape[:8]} are no column of numbers")
        numbers[key] = number, dtype.newbyteorder("<"), tuple(shape)
    return numbers, texts


def _cameras(manifest: _Fields) -> dict[str, tuple[int, int]]:
    shapes = {}
    for camera in manifest.objects("cameras"):
        shape = camera.integer("height", 1), camera.integer("width", 1)
        if max(shape) > lerobot_meta.MAX_SIDE:
            raise DatasetError(f"{camera.where}: {shape[0]}x{shape[1]} pixels; expected up to {lerobot_meta.MAX_SIDE}")
        shapes[camera.text("key")] = shape
    return shapes
