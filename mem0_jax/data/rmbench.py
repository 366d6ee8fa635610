"""RMBench's recordings: task folders, one HDF5 file an episode, and language annotations.

Axes: T frames of one episode, H, W picture size. A task folder is laid out as RMBench collects it:

    TASK/SETTING/data/episode0.hdf5, episode1.hdf5, ...
    TASK/SETTING/language_annotation.json   {"episode_0": [["press the button", 120], ...], ...}; needed if staged

In a file: joint_action/{left,right}_arm float [T, 6|7] in radians, joint_action/{left,right}_gripper float [T] in
[0, 1], observation/head_camera/rgb bytes [T], JPEG padded with NUL. Layout and labels follow Mem-0's converters
(RMBench, policy/Mem-0/scripts/hdf5_to_lerobot).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mem0_jax.data.picture_file import DAMAGE
from mem0_jax.data.rmbench_tasks import TASKS
from mem0_jax.data.robot import RMBENCH
from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install

END_FRAMES = 8  # frames at the end of a subtask that are marked as its end
ANNOTATIONS = "language_annotation.json"
RGB = "observation/head_camera/rgb"
_MAX_FRAMES, _MAX_SIDE, _MAX_BYTES = 100_000, 4096, 2**32  # a file that claims more is hostile, not an episode
_HDF5_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError)  # what h5py raises for damage, by its place


class RmbenchError(UserError):
    """A task folder, HDF5 file or annotation that cannot be imported; names the file, and the key in it."""


@dataclass(frozen=True)
class TaskFolder:
    """A folder of episodes: `episodes` maps the number in the file's name to the file, ascending."""

    task: str
    folder: Path
    instruction: str
    staged: bool
    episodes: dict[int, Path]
    annotations: Mapping[str, Any]

    def labels(self, number: int, length: int) -> tuple[list[str], np.ndarray, int]:
        """Return (subtask texts, subtask_end bool [T], how many frames no segment covers) of an episode of T frames.

        Frames after the last segment have the text "" and no end. Adjacent segments stay apart, equal text or not.
        """
        if not self.staged:
            return [self.instruction] * length, _ends([length], length), 0
        segments, where = self._segments(number)
        lengths = [frames for _, frames in segments]
        if sum(lengths) > length:
            raise RmbenchError(f"{where} covers {sum(lengths)} frames, but the recording has {length}")
        texts = [text for text, frames in segments for _ in range(frames)]
        rest = length - len(texts)
        return texts + [""] * rest, _ends(lengths, length), rest

    def _segments(self, number: int) -> tuple[list[tuple[str, int]], str]:
        path, key = self.folder / ANNOTATIONS, f"episode_{number}"
        where = f"{path}: {key}"
        if key not in self.annotations:
            raise RmbenchError(f"{where} is missing; {self.task} is staged, every episode needs its subtasks")
        segments = self.annotations[key]
        if not isinstance(segments, list) or not segments or not all(map(_is_segment, segments)):
            raise RmbenchError(f'{where}: expected a list such as [["press the button", 120], ...] (text, frames)')
        return [(text, frames) for text, frames in segments], where


def open_task(folder: str | Path, instructions: Mapping[str, str] | None = None) -> TaskFolder:
    """Find the episodes of TASK, TASK/SETTING or a folder that holds data/episodeN.hdf5 itself.

    Args:
        folder: the folder; the task's name is that of TASK.
        instructions: by task; takes precedence over RMBench's own, and is needed for other tasks.
    """
    folder = Path(folder).resolve()
    setting = _setting(folder)
    inside = setting == folder and folder.name not in TASKS
    in_setting = inside and (folder.name.startswith("demo_") or folder.parent.name in TASKS)
    task = folder.parent.name if in_setting else folder.name
    known = TASKS.get(task)
    instruction = (instructions or {}).get(task) or (known.instruction if known else None)
    if instruction is None:
        raise RmbenchError(
            f"{folder}: {task!r} is none of RMBench's tasks ({', '.join(TASKS)}); rename the folder to its task, or "
            f"give the instruction: --instruction '{task}=TEXT'"
        )
    annotations = _annotations(setting / ANNOTATIONS)
    staged = known.staged if known else any(annotations.values())
    if staged and not annotations:
        raise RmbenchError(f"{setting / ANNOTATIONS} is missing or empty; {task} is staged, it needs its subtasks")
    return TaskFolder(task, setting, instruction, staged, _episodes(setting), annotations)


def require_h5py() -> Any:
    """The package. Raises RmbenchError: it is missing."""
    try:
        import h5py
    except ImportError as error:
        raise RmbenchError(f"reading HDF5 needs the package h5py: {how_to_install('rmbench')}") from error
    return h5py


class Recording:
    """One HDF5 file, opened for reading; a context manager.

    Attributes:
        length: T.

    Raises:
        RmbenchError: naming the file and, where there is one, the key; from every method.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._h5py = require_h5py()
        try:
            self._file = self._h5py.File(self.path, "r")
        except OSError as error:
            raise RmbenchError(f"{self.path} is not a readable HDF5 file ({error}); copy or record it again") from error
        try:
            self._check()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def state(self) -> np.ndarray:
        """Return the joint positions in the model layout, float32 [T, 16]; a 6-joint arm's seventh joint is 0."""
        sides = []
        for side in ("left", "right"):
            arm, gripper = (self._numbers(f"joint_action/{side}_{part}") for part in ("arm", "gripper"))
            padding = np.zeros((self.length, 7 - arm.shape[1]))
            sides += [arm, padding, gripper[:, None]]
        return RMBENCH.state.read(np.concatenate(sides, axis=1))

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield the head camera's pictures, uint8 [H, W, 3] RGB, all of the first one's size."""
        data, shape = self._dataset(RGB), None
        for frame in range(self.length):
            picture = _decode(bytes(self._read(data, frame)), f"{self.path}: {RGB}: frame {frame}")
            shape = shape or picture.shape
            if picture.shape != shape:
                raise RmbenchError(f"{self.path}: {RGB}: frame {frame} is {picture.shape[:2]}, frame 0 {shape[:2]}")
            yield picture

    def _check(self) -> None:
        pictures = self._dataset(RGB)
        if pictures.ndim != 1 or pictures.dtype.kind != "S":
            raise self._bad(RGB, "bytes [T]", pictures)
        self.length = len(pictures)
        if not 1 <= self.length <= _MAX_FRAMES:
            raise RmbenchError(f"{self.path}: {RGB} has {self.length} frames; expected 1 to {_MAX_FRAMES}")
        for side in ("left", "right"):
            for part, shapes in (("arm", [(self.length, 6), (self.length, 7)]), ("gripper", [(self.length,)])):
                key = f"joint_action/{side}_{part}"
                data = self._dataset(key)
                if data.shape not in shapes or data.dtype.kind not in "fiu":
                    expected = " or ".join(str(list(shape)) for shape in shapes)
                    raise self._bad(key, f"numbers {expected}, as {RGB} has {self.length} frames", data)

    def _dataset(self, key: str) -> Any:
        """The dataset at `key`, if it lies in this very file and has a sane size."""
        try:
            data = self._file[key]
            if isinstance(data, self._h5py.Dataset):
                _ = data.dtype, data.shape  # both are decoded only now
        except _HDF5_ERRORS as error:
            raise RmbenchError(f"{self.path}: {key} is missing or unreadable ({error})") from error
        if not isinstance(data, self._h5py.Dataset) or data.shape is None:
            raise RmbenchError(f"{self.path}: {key} is a group or empty; expected a dataset")
        if data.file.filename != self._file.filename or data.external or data.is_virtual:
            raise RmbenchError(f"{self.path}: {key} points to another file; expected the data itself")
        chunk = int(np.prod(data.chunks, dtype=object)) if data.chunks else 0
        if max(int(np.prod(data.shape, dtype=object)), chunk) * data.dtype.itemsize > _MAX_BYTES:
            raise RmbenchError(f"{self.path}: {key} claims {data.shape} {data.dtype}, more than {_MAX_BYTES >> 30} GiB")
        return data

    def _numbers(self, key: str) -> np.ndarray:
        values = np.asarray(self._read(self._dataset(key), slice(None)), np.float64)
        bad = np.argwhere(~(np.abs(values) <= np.finfo(np.float32).max))
        if bad.size:
            raise RmbenchError(f"{self.path}: {key} has NaN or infinite values, first at {bad[0].tolist()}")
        return values

    def _read(self, data: Any, index: Any) -> Any:
        try:
            return data[index]
        except _HDF5_ERRORS as error:
            raise RmbenchError(f"{self.path}: {data.name.lstrip('/')} cannot be read ({error})") from error

    def _bad(self, key: str, expected: str, data: Any) -> RmbenchError:
        return RmbenchError(f"{self.path}: {key} is {data.dtype} {list(data.shape)}; expected {expected}")


def _decode(data: bytes, where: str) -> np.ndarray:
    """RMBench hands RGB pictures to OpenCV's encoder, which takes them for BGR: its decoder gives RGB back."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:  # reads the size, decodes nothing
            width, height = header.size
    except DAMAGE as error:
        raise RmbenchError(f"{where} is not a JPEG picture") from error
    if max(width, height) > _MAX_SIDE or width % 2 or height % 2:
        raise RmbenchError(f"{where} is {height}x{width}; expected even sides up to {_MAX_SIDE}")
    if not data.endswith(b"\xff\xd9"):
        raise RmbenchError(f"{where} is a truncated JPEG picture")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None or picture.shape != (height, width, 3):
        raise RmbenchError(f"{where} is a damaged JPEG picture")
    return picture


def _setting(folder: Path) -> Path:
    """The folder that holds data/episodeN.hdf5: `folder` itself or its only such subfolder."""
    if not folder.is_dir():
        raise RmbenchError(f"{folder} is no folder; expected a task's folder, such as data/put_back_block")
    if _episodes(folder):
        return folder
    settings = [child for child in sorted(folder.iterdir()) if child.is_dir() and _episodes(child)]
    if not settings:
        raise RmbenchError(f"{folder} holds no episodes; expected data/episode0.hdf5 in it or in a folder of it")
    if len(settings) > 1:
        names = ", ".join(child.name for child in settings)
        raise RmbenchError(f"{folder} has several settings ({names}); name one, such as {settings[0]}")
    return settings[0]


def _episodes(setting: Path) -> dict[int, Path]:
    found = {}
    for path in (setting / "data").glob("episode*.hdf5"):
        if match := re.fullmatch(r"episode(\d{1,9})\.hdf5", path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _annotations(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RmbenchError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RmbenchError(f"{path}: expected an object with a list of subtasks for every episode")
    return value


def _is_segment(segment: Any) -> bool:
    if not isinstance(segment, list) or len(segment) != 2:
        return False
    text, frames = segment
    return isinstance(text, str) and type(frames) is int and 0 <= frames <= _MAX_FRAMES


def _ends(lengths: list[int], total: int) -> np.ndarray:
    """True on the last END_FRAMES frames of consecutive segments, bool [total]; frames after them are no ends."""
    ends = np.zeros(total, bool)
    stop = 0
    for frames in lengths:
        stop += frames
        ends[max(stop - END_FRAMES, stop - frames) : stop] = True
    return ends
