"""Frame-exact, forward-walking decoding of one episode inside an mp4.

Axes: N frames, H height, W width. Frames are addressed by integers; seconds never decide which picture is shown.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

# A truncated or damaged file shows up as any of these, depending on where the damage lies.
_DECODE_ERRORS = (FFmpegError, EOFError)


class VideoError(ValueError):
    """A video that cannot be opened, or does not hold the frames its dataset promises."""


class EpisodeVideo:
    """Decoder of one episode's frames, cheapest when they are read in order.

    Row `r` of the episode is frame `first_frame + r` of the file. A frame's number is its presentation time counted in
    frame periods from the stream's start and rounded to the nearest integer, so a file whose times jitter by less than
    half a period still maps exactly, and a missing or doubled frame is noticed. Reading on from the last frame never
    seeks; anything else seeks to the keyframe before and walks forward. Not thread-safe: one owner per instance.

    Args:
        path: the mp4.
        fps: the dataset's frames per second.
        first_frame: number in the file of the episode's first frame.
        length: frames in the episode.
        shape: (H, W) that every picture must have.
        name: how errors call the episode.
    """

    def __init__(self, path: Path, *, fps: float, first_frame: int, length: int, shape: tuple[int, int], name: str):
        self.path, self.name, self.shape = Path(path), name, shape
        self.first_frame, self.length = first_frame, length
        self._rate = Fraction(fps).limit_denominator(1_000_000)
        # A new scaling context for every picture would cost a third of the speed: one serves the whole episode.
        self._reformatter = VideoReformatter()
        if not self.path.is_file():
            raise FileNotFoundError(f"{name}: video file {self.path} is missing; download or record the dataset again")
        try:
            self._container = av.open(str(self.path))
        except _DECODE_ERRORS as error:
            raise VideoError(f"{name}: {self.path} is not a readable video ({error}); it may be truncated") from error
        try:
            self._open_stream()
        except BaseException:
            self._container.close()
            raise

    def _open_stream(self) -> None:
        if not self._container.streams.video:
            raise VideoError(f"{self.name}: {self.path} holds no video stream")
        stream = self._container.streams.video[0]
        # Lanes run in parallel, so the decoder's own threads would only compete with them.
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        if (stream.height, stream.width) != self.shape:
            raise VideoError(
                f"{self.name}: pictures of {self.path} are {stream.height}x{stream.width}, "
                f"but info.json declares {self.shape[0]}x{self.shape[1]}"
            )
        last = self.first_frame + self.length
        if stream.frames and stream.frames < last:
            raise VideoError(
                f"{self.name}: {self.path} holds {stream.frames} frames, but the episode needs frames "
                f"{self.first_frame} to {last - 1}; video and episode table do not belong together"
            )
        assert stream.time_base is not None  # every demuxed stream has one
        self._stream, self._start = stream, stream.start_time or 0
        self._frames_per_tick = self._rate * stream.time_base
        self._decoded: Any = None
        self._next = -1

    def read(self, start: int, count: int) -> np.ndarray:
        """Return rows `start` to `start + count - 1` of the episode as uint8 [N, H, W, 3], RGB.

        Raises:
            IndexError: rows outside the episode.
            VideoError: the file ends early, is damaged, or lacks a frame.
        """
        if start < 0 or count < 0 or start + count > self.length:
            raise IndexError(
                f"{self.name}: rows {start} to {start + count - 1} are outside its {self.length} frames ({self.path})"
            )
        out = np.empty((count, *self.shape, 3), np.uint8)
        if count and start != self._next:
            self._seek(start)
        for i in range(count):
            out[i] = self._read_next(self.first_frame + start + i)
        self._next = start + count if count else self._next
        return out

    def close(self) -> None:
        """Release the file."""
        self._decoded = None
        self._container.close()

    def _seek(self, row: int) -> None:
        self._next = -1  # stays so if anything below fails
        pts = self._start + round((self.first_frame + row) / self._frames_per_tick)
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
        except _DECODE_ERRORS as error:
            raise VideoError(f"{self.name}: cannot seek to row {row} in {self.path} ({error})") from error
        self._decoded = self._container.decode(self._stream)

    def _read_next(self, number: int) -> np.ndarray:
        """Decode forward to frame `number` of the file."""
        first_read, self._next = self._next < 0, -1
        while True:
            try:
                frame = next(self._decoded)
            except (StopIteration, *_DECODE_ERRORS) as error:
                raise VideoError(
                    f"{self.name}: {self.path} ends or is damaged before frame {number} "
                    f"(row {number - self.first_frame} of {self.length}); the file may be truncated"
                ) from error
            at = round((frame.pts - self._start) * self._frames_per_tick)
            if at < number and first_read:
                continue  # between the keyframe and the frame asked for
            if at != number:
                raise VideoError(f"{self.name}: {self.path} has frame {at} where frame {number} was expected")
            self._next = number - self.first_frame + 1
            return self._reformatter.reformat(frame, format="rgb24").to_ndarray()
