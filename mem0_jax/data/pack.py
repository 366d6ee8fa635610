"""Packing: a LeRobot dataset turned into shards of JPEG frames (see `packed_format` for the files and the why).

Axes: F frames of the whole dataset, n frames of one shard, H, W picture height and width.

Threads are enough for parallelism: decoding, resizing, JPEG encoding and writing all happen outside Python's lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mem0_jax.data import files, lerobot_meta
from mem0_jax.data import packed_format as form
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.needed import check_needed
from mem0_jax.data.pack_source import READ_ERRORS, Column, PackError, read_columns, readable_cameras, why_not
from mem0_jax.data.pictures import open_frames
from mem0_jax.disk import behind, disk_told, explained
from mem0_jax.installed import how_to_install
from mem0_jax.lock import hold_output
from mem0_jax.progress import Progress
from mem0_jax.resize import resize

MAX_WORKERS = 256
_BLOCK = 16  # frames decoded at once
_SAMPLES = 8  # episodes from which the size of a frame is estimated
_WORK = "unfinished"  # in the partial folder: plan and indices, removed at the end

Place = tuple[int, int, int]  # of a JPEG: start in its record, bytes, CRC-32
Damage = tuple[int, str]  # number of the episode, what is wrong with it


@dataclass(frozen=True)
class Packed:
    """What was written. `bytes` counts the shards; `left_out` are features that cannot be read, by key why."""

    root: Path
    name: str
    episodes: int
    frames: int
    shards: int
    bytes: int
    left_out: dict[str, str]


def pack(
    dataset: LeRobotDataset,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    quality: int = 95,
    shard_mib: float = 256,
    workers: int = 2,
) -> Packed:
    """Write a dataset as shards, into a hidden folder beside `out` that is renamed when everything is there.

    Finished shards survive an interruption: the same call continues after them.

    Args:
        dataset: the source.
        out: the new folder.
        size: (H, W) to resize all cameras to, bilinear; None keeps each camera's own.
        quality: JPEG quality, 1 to 100.
        shard_mib: about how large a shard shall be, in MiB; a shard holds whole episodes.
        workers: threads.

    Raises:
        PackError: no camera can be read; naming every damaged episode; or saying what stands in the way. DatasetError:
            what training needs is not in order.
        LockedError, DiskError: another process packs into `out`, or the disk refused; finished shards are kept.
    """
    out = behind(Path(out))
    _check_arguments(out, size, quality, shard_mib, workers)
    check_needed(dataset)
    columns = read_columns(dataset)
    cameras, lost = readable_cameras(dataset)
    partial = out.parent / f".{out.name}.partial"
    with hold_output(out), disk_told(out, f"finished shards are kept in {partial}"):
        (partial / _WORK).mkdir(parents=True, exist_ok=True)
        settings = {"format": form.FORMAT, "size": size, "quality": quality, "shard_mib": shard_mib}
        settings |= {"name": _tfds_name(out), "source": _fingerprint(dataset, columns), "cameras": cameras}
        shards = _plan(partial, json.loads(json.dumps(settings)), dataset)
        shapes = {camera: size or dataset.image_shape(camera) for camera in cameras}
        packer = _Packer(dataset, columns, partial, settings["name"], shards, shapes, quality)
        packer.write_shards(workers)
        packer.write_rest()
        shutil.rmtree(partial / _WORK)
        partial.rename(out)
    size_in_bytes = sum(path.stat().st_size for path in out.glob("*.array_record-*"))
    packed = {*cameras, *(column.key for column in columns)}
    left_out = {key: lost.get(key) or why_not(dataset, key) for key in dataset.features if key not in packed}
    return Packed(
        out, settings["name"], len(dataset.episodes), dataset.num_frames, len(shards), size_in_bytes, left_out
    )


class _Packer:
    """One packing: `shards` are the numbers of the episodes in each, `shapes` (H, W) by camera."""

    def __init__(
        self,
        dataset: LeRobotDataset,
        columns: list[Column],
        folder: Path,
        name: str,
        shards: list[range],
        shapes: dict[str, tuple[int, int]],
        quality: int,
    ):
        self.dataset, self.columns, self.folder, self.name, self.shards = dataset, columns, folder, name, shards
        self.shapes, self.quality = shapes, quality
        self._stop = threading.Event()

    def write_shards(self, workers: int) -> None:
        """Write the shards that are not there yet; PackError names every damaged episode of them."""
        frames = [sum(self.dataset.episodes[e].length for e in shard) for shard in self.shards]
        todo = [i for i in range(len(self.shards)) if not self._index_path(i).is_file()]
        done = self.dataset.num_frames - sum(frames[i] for i in todo)
        damage: list[Damage] = []
        with (
            Progress("packing", self.dataset.num_frames, "frame", done=done) as progress,
            ThreadPoolExecutor(workers) as pool,
        ):
            try:
                for future in as_completed([pool.submit(self._write_shard, i, progress) for i in todo]):
                    damage += future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        if damage:
            raise PackError(
                f"{self.dataset.root}: {len(damage)} damaged episodes, so nothing was published; replace them and run "
                "this again, the other shards are kept:\n  " + "\n  ".join(text for _, text in sorted(damage))
            )

    def write_rest(self) -> None:
        """Write what lies beside the shards."""
        for folder in (form.COLUMNS, form.PICTURES, form.SOURCE):
            shutil.rmtree(self.folder / folder, ignore_errors=True)
            (self.folder / folder).mkdir()
        for number, column in enumerate(self.columns):
            column.values.tofile(self.folder / form.COLUMNS / f"{number:03d}.bin")
        index = np.concatenate([np.load(self._index_path(i)) for i in range(len(self.shards))], axis=1)
        for number, places in enumerate(index):
            np.ascontiguousarray(places).tofile(self.folder / form.PICTURES / f"{number:03d}.bin")
        for path in files.find(self.dataset.root / "meta", "*"):
            target = self.folder / form.SOURCE / str(path)[len(str(self.dataset.root)) + 1 :]
            target.parent.mkdir(parents=True, exist_ok=True)
            with files.open_binary(path) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        episodes = self.dataset.episodes
        lengths = [sum(episodes[e].length for e in shard) for shard in self.shards]
        paths = [self._shard_path(i) for i in range(len(self.shards))]
        form.write_tfds_metadata(
            self.folder, self.name, self._tfds_features(), lengths, sum(path.stat().st_size for path in paths)
        )
        manifest = {
            "format": form.FORMAT,
            "frames": self.dataset.num_frames,
            "jpeg_quality": self.quality,
            "cameras": [{"key": key, "height": h, "width": w} for key, (h, w) in self.shapes.items()],
            "columns": [column.describe() for column in self.columns],
            "shards": [{"file": path.name, "episodes": len(shard)} for path, shard in zip(paths, self.shards)],
            "episodes": {
                "index": [episode.index for episode in episodes],
                "length": [episode.length for episode in episodes],
                "tasks": [list(episode.tasks) for episode in episodes],
            },
        }
        (self.folder / form.MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False), "utf-8")

    def _tfds_features(self) -> dict[str, Any]:
        features: dict[str, Any] = {"is_first": ("bool", ()), "is_last": ("bool", ())}
        for column in self.columns:
            features.setdefault(column.key, ("text", ()))
            if column.texts is None:
                features[column.key] = (column.values.dtype.name, column.values.shape[1:])
        return features | {key: ("jpeg", shape) for key, shape in self.shapes.items()}

    def _shard_path(self, number: int) -> Path:
        return self.folder / form.shard_name(self.name, number, len(self.shards))

    def _index_path(self, number: int) -> Path:
        return self.folder / _WORK / f"{number:05d}.npy"

    def _write_shard(self, number: int, progress: Progress) -> list[Damage]:
        """Write one shard and its index int64 [cameras, n, 3]; return what is damaged instead, if anything is."""
        path, index_path = self._shard_path(number), self._index_path(number)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            sizes, places, damage = self._write_records(unfinished, number, progress)
        except RuntimeError as error:  # array_record's only kind
            unfinished.unlink(missing_ok=True)
            told = explained(error, path, f"finished shards are kept in {self.folder}")
            raise PackError(str(told) if told else f"{path}: cannot be written ({error})") from error
        if damage:
            unfinished.unlink()
            return damage
        index = _index(unfinished, sizes, places)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(path)
        with index_path.with_suffix(".unfinished").open("wb") as file:
            np.save(file, index)
        index_path.with_suffix(".unfinished").rename(index_path)
        return []

    def _write_records(
        self, path: Path, number: int, progress: Progress
    ) -> tuple[list[int], list[list[Place]], list[Damage]]:
        """Return (size of each record, places of each frame's pictures in it by camera, damaged episodes)."""
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        sizes, places, damage = [], [], []
        for e in self.shards[number]:
            try:
                for record, pictures in self._records(self.dataset.episodes[e]):
                    writer.write(record)
                    sizes.append(len(record))
                    places.append(pictures)
                    progress.advance()
            except _DamagedError as error:  # the others are looked at as well, so that all are named
                damage.append((e, str(error)))
        writer.close()
        return sizes, places, damage

    def _records(self, episode: Any) -> Iterator[tuple[bytes, list[Place]]]:
        """Yield each frame's record and where its pictures lie in it, by camera."""
        with contextlib.ExitStack() as stack:
            readers = {camera: open_frames(self.dataset, camera) for camera in self.shapes}
            for reader in readers.values():
                stack.callback(reader.close)
            for start in range(0, episode.length, _BLOCK):
                frames = np.arange(start, min(start + _BLOCK, episode.length))
                pictures = {camera: _read(readers[camera], episode, frames) for camera in readers}
                rows = self._rows(episode, start, len(frames))
                for i in range(len(frames)):
                    if self._stop.is_set():
                        raise KeyboardInterrupt
                    values = [(key, column[i]) for key, column in rows]
                    jpegs = [encode_jpeg(pictures[c][i], shape, self.quality) for c, shape in self.shapes.items()]
                    values += [(camera.encode(), jpeg) for camera, jpeg in zip(self.shapes, jpegs)]
                    record, starts = form.encode_example(values)
                    starts = starts[len(rows) :]
                    yield record, [(at, len(jpeg), zlib.crc32(jpeg)) for at, jpeg in zip(starts, jpegs)]

    def _rows(self, episode: Any, start: int, count: int) -> list[tuple[bytes, list[bytes]]]:
        last = episode.length - 1
        rows = {
            "is_first": [bytes([start + i == 0]) for i in range(count)],
            "is_last": [bytes([start + i == last]) for i in range(count)],
        }
        rows |= {column.key: column.rows(episode.start + start, count) for column in reversed(self.columns)}
        return [(key.encode(), values) for key, values in rows.items()]


class _DamagedError(Exception):
    """An episode of the source that cannot be read."""


def encode_jpeg(picture: np.ndarray, shape: tuple[int, int], quality: int) -> bytes:
    """Resize a picture uint8 [H, W, 3] (bilinear) and encode it."""
    bgr = cv2.cvtColor(resize(picture, shape, "bilinear"), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _read(reader: Any, episode: Any, frames: np.ndarray) -> np.ndarray:
    try:
        return reader.read_frames(episode, frames)
    except READ_ERRORS as error:
        raise _DamagedError(str(error)) from error


def _index(path: Path, sizes: list[int], places: list[list[Place]]) -> np.ndarray:
    """Return int64 [cameras, n, 3]: logical offset, bytes and CRC of each picture, after reading it back."""
    index = np.array(places, np.int64).reshape(len(places), -1, 3).transpose(1, 0, 2).copy()
    with path.open("rb") as file:
        try:
            index[:, :, 0] += form.record_offsets(file, sizes)
        except ValueError as error:
            raise PackError(f"{path}: {error}; is the disk full, or array_record too new?") from error
        for offset, size, crc in index.reshape(-1, 3).tolist():
            if zlib.crc32(form.read_logical(file, offset, size)) != crc:
                raise PackError(f"{path}: what was written reads differently; is the disk full or failing?")
    return index


# Before the work


def _check_arguments(out: Path, size: tuple[int, int] | None, quality: int, shard_mib: float, workers: int) -> None:
    if out.exists():
        raise PackError(f"{out} exists; choose another folder or remove it first")
    if not 1 <= quality <= 100:
        raise PackError(f"quality is {quality}; expected 1 to 100")
    if not shard_mib > 0:
        raise PackError(f"shard_mib is {shard_mib}; expected a positive number of MiB")
    if not 1 <= workers <= MAX_WORKERS:
        raise PackError(f"workers is {workers}; expected 1 to {MAX_WORKERS}")
    if size and not 1 <= min(size) <= max(size) <= lerobot_meta.MAX_SIDE:
        raise PackError(f"size is {size[0]}x{size[1]}; expected 1 to {lerobot_meta.MAX_SIDE} pixels a side")
    try:
        import array_record.python.array_record_module  # noqa: F401
    except ImportError as error:
        raise PackError(f"packing needs array_record: {how_to_install('pack')} ({error})") from error


def _plan(partial: Path, settings: dict[str, Any], dataset: LeRobotDataset) -> list[range]:
    """Return the shards: those of the interrupted packing if there was one, else new ones, written down."""
    path = partial / _WORK / "plan.json"
    if path.is_file():
        plan = json.loads(path.read_text("utf-8"))
        if any(plan["settings"].get(key) != settings[key] for key in ("source", "cameras")):
            raise PackError(
                f"{partial} holds an unfinished packing, and the dataset has changed since, or is another one: remove "
                "that folder"
            )
        differing = [f"{key} was {plan['settings'].get(key)}, now {settings[key]}" for key in settings
                     if plan["settings"].get(key) != settings[key]]  # fmt: skip
        if differing:
            raise PackError(
                f"{partial} holds an unfinished packing with other settings ({'; '.join(differing)}); finish that one "
                "with its settings, or remove the folder"
            )
        return [range(first, first + count) for first, count in plan["shards"]]
    for stale in partial.iterdir():  # of an older interruption
        if stale.name != _WORK:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    shards = _divide(
        [e.length for e in dataset.episodes], settings["shard_mib"] * 2**20 / _frame_bytes(dataset, settings)
    )
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"settings": settings, "shards": [[s.start, len(s)] for s in shards]}), "utf-8")
    unfinished.rename(path)
    return shards


def _divide(lengths: Sequence[int], frames: float) -> list[range]:
    """Cut consecutive episodes into shards of at most `frames` frames, or of one episode."""
    shards, first, filled = [], 0, 0
    for e, length in enumerate(lengths):
        if filled and filled + length > frames:
            shards.append(range(first, e))
            first, filled = e, 0
        filled += length
    return [*shards, range(first, len(lengths))]


def _frame_bytes(dataset: LeRobotDataset, settings: dict[str, Any]) -> float:
    """Estimate the size of a record from frames in the middle of some episodes; damaged ones are passed over."""
    episodes = dataset.episodes
    chosen = np.unique(np.linspace(0, len(episodes) - 1, _SAMPLES).round().astype(int))
    total = 1000.0
    for camera in settings["cameras"]:
        height, width = settings["size"] or dataset.image_shape(camera)
        sizes = []
        reader = open_frames(dataset, camera)
        for e in chosen.tolist():
            with contextlib.suppress(*READ_ERRORS):
                picture = reader.read_frames(episodes[e], np.array([episodes[e].length // 2]))[0]
                sizes.append(len(encode_jpeg(picture, (height, width), settings["quality"])))
        reader.close()
        total += float(np.mean(sizes)) if sizes else height * width / 2
    return total


def _fingerprint(dataset: LeRobotDataset, columns: list[Column]) -> str:
    """Tell datasets apart by info.json and all their numbers and texts."""
    digest = hashlib.sha256(json.dumps([dataset.info, [[e.index, e.length] for e in dataset.episodes]]).encode())
    for column in columns:
        digest.update(json.dumps(column.describe()).encode())
        digest.update(column.values.tobytes())
    return digest.hexdigest()[:16]


def _tfds_name(out: Path) -> str:
    """A name TFDS accepts: that of the folder, or of the one above it when the folder is called like a version."""
    name = out.parent.name if out.name == form.TFDS_VERSION else out.name
    name = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_") or "episodes"
    return name if name[0].isalpha() else f"episodes_{name}"
