"""One episode's pictures from an image column of a parquet file: PNG, JPEG and the like, a struct of bytes and path.

Axes: N frames, H height, W width.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from mem0_jax.data import files, parquet
from mem0_jax.data.camera_shape import other_size
from mem0_jax.data.files import AnyPath, DatasetError, open_binary
from mem0_jax.data.media import media_kind
from mem0_jax.data.picture_file import DAMAGE, FORMATS, PictureModeError, rgb, turned
from mem0_jax.stand_in import HEAD_BYTES, stand_in

# Whose size stands in front, so that no more is decoded than it says.
_FORMATS = (*FORMATS, "GIF", "TIFF", "PPM")
_EXPECTED = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
_BATCH = 16  # rows fetched at once
_MAX_FILE = 64 * 2**20


class ImageError(DatasetError):
    """A picture that is missing or damaged: `cause` is the message without the place."""

    def __init__(self, where: str, cause: str):
        super().__init__(f"{where}: {cause}")
        self.cause = cause


class EpisodeImages:
    """Reader of one episode's frames, cheapest when they are read in order. Same face as `EpisodeVideo`.

    Pictures are decoded with Pillow, as LeRobot does. Not thread-safe: one owner per instance.

    Args:
        path: the parquet file.
        key: the image feature.
        root: folder of the dataset; an image stored as a path is looked up there.
        first_row: row of the file with the episode's first frame.
        length: frames in the episode.
        shape: (H, W) that every picture must have.
        name: how errors call the episode.
    """

    def __init__(
        self,
        path: AnyPath,
        *,
        key: str,
        root: AnyPath,
        first_row: int,
        length: int,
        shape: tuple[int, int],
        name: str,
    ):
        self.path, self.name, self.shape, self.length = path, name, shape, length
        self._key, self._root, self._first = key, root, first_row
        self._opened = contextlib.ExitStack()
        self._cells: Iterator[Any] = iter(())
        self._next = -1

    def read(self, start: int, count: int) -> np.ndarray:
        """Return rows `start` to `start + count - 1` of the episode as uint8 [N, H, W, 3], RGB.

        Raises:
            IndexError: rows outside the episode.
            DatasetError: the file ends early, or a picture is damaged or of another size.
        """
        if start < 0 or count < 0 or start + count > self.length:
            raise IndexError(
                f"{self.name}: rows {start} to {start + count - 1} are outside its {self.length} frames ({self.path})"
            )
        out = np.empty((count, *self.shape, 3), np.uint8)
        if count and start != self._next:
            self._opened.close()
            self._cells = self._walk(self._first + start)
        for i in range(count):
            self._next = -1  # stays so if the file cannot be read on
            where = f"{self.name}: frame {start + i} in {self.path}"
            cell = next(self._cells, None)
            if cell is None:
                raise ImageError(where, "is missing; the file ends before it")
            self._next = start + i + 1
            out[i] = decode_image(self._bytes(cell, where), self.shape, where)
        return out

    def close(self) -> None:
        """Release the file."""
        self._opened.close()
        self._cells, self._next = iter(()), -1

    def _walk(self, row: int) -> Iterator[Any]:
        """Yield the cells from a row of the file on, one small batch in memory at a time."""
        file = self._opened.enter_context(parquet.opened(self.path, self.name))
        if self._key not in file.schema_arrow.names:
            raise DatasetError(f"{self.name}: {self.path} lacks the column {self._key!r}")
        groups, skip = [], row
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if groups or skip < rows:
                groups.append(group)
            else:
                skip -= rows
        if not groups:
            return
        try:
            for batch in file.iter_batches(_BATCH, row_groups=groups, columns=[self._key], use_threads=False):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                yield from batch.column(0).slice(skip)
                skip = 0
        except (pa.ArrowException, OSError) as error:
            raise ImageError(self.name, f"{self.path} is damaged ({error})") from error

    def _bytes(self, cell: pa.Scalar, where: str) -> bytes:
        value: Any = cell.as_py()
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            return value["bytes"]
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            empty = value is None or (isinstance(value, dict) and not any(value.values()))
            found = "an empty cell" if empty else f"{cell.type}; encode arrays of pixels as PNG, or as a video"
            raise ImageError(where, f"expected an image as bytes and path, got {found}")
        try:
            path = files.inside(self._root, value["path"], where)
        except DatasetError as error:
            raise ImageError(where, str(error).removeprefix(f"{where}: ")) from error
        try:
            with open_binary(path) as file:
                return file.read(_MAX_FILE)
        except OSError as error:
            reason = error.strerror or error
            raise ImageError(where, f"neither the image nor its file {path} is there ({reason})") from error


def decode_image(data: bytes, shape: tuple[int, int], where: str) -> np.ndarray:
    """Decode a picture of one of `_FORMATS` and of a known size to uint8 [H, W, 3], RGB.

    Grey, palette and CMYK become RGB as by Pillow, and transparency is dropped; of an animation the first picture
    counts, as in LeRobot.

    Raises:
        ImageError: damaged, of another format, size, or more than 8 bits of grey; the size is compared before anything
            is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if (min(image.size), max(image.size)) != (min(shape), max(shape)):  # a turned one is turned back below
                raise ImageError(where, f"image is {other_size(image.size[::-1], shape)}")
            upright = turned(image)
            if upright.size != shape[::-1]:
                raise ImageError(where, f"image is {other_size(upright.size[::-1], shape)}")
            return rgb(upright)
    except ImageError:
        raise
    except PictureModeError as error:
        raise ImageError(where, f"image {error}") from None
    except DAMAGE as error:
        raise ImageError(where, _unread(data[:HEAD_BYTES], error)) from error


def _unread(head: bytes, error: Exception) -> str:
    """Why a picture is not read: it is another thing, of another format, or damaged."""
    kind, why = media_kind(head), "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
    if not kind and (found := stand_in(head)):
        return f"not a readable picture: it {found}"
    if not kind:
        return f"not a readable picture{why}; expected {_EXPECTED}"
    if kind.split(" ", 1)[1] in _FORMATS:
        return f"not a readable picture: {kind} that is damaged or cut off{why}"
    return f"not a readable picture: it is {kind}; expected {_EXPECTED}: convert the pictures to PNG"
