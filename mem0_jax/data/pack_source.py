"""What of a LeRobot dataset is packed: the columns and cameras that can be read; and why the others are not.

Axes: F frames of the whole dataset.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from mem0_jax.data import lerobot_meta
from mem0_jax.data.camera_shape import is_depth_map
from mem0_jax.data.files import DatasetError, RemoteError
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_features import unreadable
from mem0_jax.data.pictures import open_frames
from mem0_jax.errors import UserError

READ_ERRORS = (OSError, ValueError)  # what reading a damaged episode raises


class PackError(UserError):
    """A dataset that cannot be packed, or a folder that cannot be packed into."""


@dataclass(frozen=True)
class Column:
    """A low-dimensional column: `values` [F, ...], or ids int32 [F] into `texts`."""

    key: str
    values: np.ndarray
    texts: list[str] | None = None

    def describe(self) -> dict[str, Any]:
        """Its entry in packed.json."""
        if self.texts is not None:
            return {"key": self.key, "texts": self.texts}
        return {"key": self.key, "dtype": self.values.dtype.name, "shape": list(self.values.shape[1:])}

    def rows(self, start: int, count: int) -> list[bytes]:
        """What the records of some frames hold."""
        values = self.values[start : start + count]
        if self.texts is not None:
            return [self.texts[i].encode() for i in values.tolist()]
        return [row.tobytes() for row in values]


def read_columns(dataset: LeRobotDataset) -> list[Column]:
    """Return every low-dimensional column of a dataset that can be read, and its task texts as "task".

    Raises:
        DatasetError: one that commands read cannot be.
    """
    info = lerobot_meta.read_info(dataset.root)
    columns: list[Column] = []
    for key in dict.fromkeys([*info.numbers, *info.texts, "task"]):
        try:
            if key in info.numbers:
                columns.append(Column(key, _little_endian(dataset.column(key))))
            else:
                ids, texts = dataset.texts(key)
                columns.append(Column(key, _little_endian(ids.astype(np.int32)), texts))
        except DatasetError:
            if key == "task":
                raise
    return columns


def readable_cameras(dataset: LeRobotDataset) -> tuple[list[str], dict[str, str]]:
    """Return the cameras to pack, and why not the others: of no episode the first picture can be read.

    Raises:
        PackError: there are cameras, but none to pack.
    """
    lost = {camera: why for camera in dataset.cameras if (why := _unreadable(dataset, camera))}
    if lost and len(lost) == len(dataset.cameras):
        told = "\n  ".join(f"{camera}: {why}" for camera, why in lost.items())
        raise PackError(
            f"{dataset.root}: no camera can be read, so nothing was packed; replace the pictures, or take the features "
            f"out of meta/info.json to pack without them:\n  {told}"
        )
    return [camera for camera in dataset.cameras if camera not in lost], lost


def _unreadable(dataset: LeRobotDataset, camera: str) -> str:
    """Why no episode's first picture of a camera can be read; "" if one can."""
    first = ""
    with closing(open_frames(dataset, camera)) as reader:
        for episode in dataset.episodes:
            try:
                reader.read_frames(episode, np.zeros(1, np.int64))
                return ""
            except RemoteError:  # it may be there
                raise
            except READ_ERRORS as error:
                first = first or str(error)
    return first


def why_not(dataset: LeRobotDataset, key: str) -> str:
    """Say why `read_columns` leaves a feature out."""
    feature = dataset.features[key]
    if is_depth_map(feature):
        return "a depth map"
    if problem := unreadable(feature):
        return problem
    try:
        dataset.column(key)
    except DatasetError as error:
        return str(error)
    return ""


def _little_endian(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
