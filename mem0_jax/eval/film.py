"""Films that every browser plays: H.264 in mp4.

Axes: H height, W width.
"""

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, cast

import av
import numpy as np

from mem0_jax.data.files import ffmpeg_name

FPS = 10  # of the benchmark's films
CODEC = "libx264"


def can_film() -> bool:
    """Whether PyAV was built with the encoder."""
    return CODEC in av.codecs_available


class Encoder:
    """Pictures uint8 [H, W, 3] RGB one after the other; odd sizes lose their last row or column.

    Args:
        target: path or binary file.
        height, width: of every picture.
        fps: pictures a second.
        quality: constant rate factor, smaller is better.
        preset: of x264: slower presets make smaller files.
    """

    def __init__(
        self,
        target: Path | IO[bytes],
        height: int,
        width: int,
        fps: float = FPS,
        quality: int = 23,
        preset: str = "veryfast",
    ):
        self.height, self.width = height // 2 * 2, width // 2 * 2
        where = ffmpeg_name(target) if isinstance(target, Path) else target
        # The index can move to the front of a file only: ffmpeg opens it once more for that.
        muxing = {"movflags": "faststart"} if isinstance(target, Path) else {}
        self._container = av.open(where, "w", format="mp4", options=muxing)
        rate, options = Fraction(fps).limit_denominator(1000), {"crf": str(quality), "preset": preset}
        self._stream = cast(Any, self._container.add_stream(CODEC, rate=rate, options=options))
        self._stream.width, self._stream.height, self._stream.pix_fmt = self.width, self.height, "yuv420p"

    def append(self, picture: np.ndarray) -> None:
        """Encodes one picture."""
        picture = np.ascontiguousarray(picture[: self.height, : self.width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

    def close(self) -> None:
        """Writes what is left and the index."""
        self._container.mux(self._stream.encode())
        self._container.close()


class Film:
    """A film beside its final name, which it takes when it is complete."""

    def __init__(self, path: Path, height: int, width: int):
        self._path, self._beside = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._encoder = Encoder(self._beside, height, width)

    def append(self, picture: np.ndarray) -> None:
        """Adds a picture uint8 [H, W, 3]."""
        self._encoder.append(picture)

    def close(self) -> None:
        """Completes the film; where the disk refuses, nothing is left of it."""
        try:
            self._encoder.close()
            self._beside.replace(self._path)
        finally:
            self._beside.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leaves no trace of it."""
        try:
            with suppress(OSError):  # what cannot be written is not wanted any more
                self._encoder.close()
        finally:
            self._beside.unlink(missing_ok=True)
