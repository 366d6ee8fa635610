"""Frame-exact, forward-walking decoding of one episode inside an mp4, local or remote.

Axes: N frames, H height, W width. Frames are addressed by integers; seconds never decide which picture is shown.
"""

from __future__ import annotations

import contextlib
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mem0_jax.data.camera_shape import other_size
from mem0_jax.data.files import AnyPath, MissingFile, ffmpeg_name, open_binary
from mem0_jax.data.media import as_mp4, media_kind
from mem0_jax.errors import UserError
from mem0_jax.stand_in import HEAD_BYTES, stand_in

# A truncated or damaged file, or a connection that fails, shows up as any of these.
DECODE_ERRORS = (FFmpegError, EOFError, OSError)
CODECS = ("av1", "h264", "hevc", "vp9", "mpeg4")
_CONTAINERS = ("an MP4 or MOV video", "a Matroska or WebM video")
_EBML = b"\x1a\x45\xdf\xa3"  # how Matroska and WebM begin


class VideoError(UserError, ValueError):
    """A video that cannot be opened, or does not hold the frames its dataset promises."""


def open_video_file(path: AnyPath, name: str) -> tuple[Any, VideoStream, contextlib.ExitStack]:
    """Open an mp4 and its video stream for one reader.

    A remote file is read piece by piece as the decoder asks for it. Only mp4 (or Matroska and WebM under that name) and
    the codecs in `CODECS` are let through: other containers can name further files and addresses.

    Args:
        path: the file.
        name: how errors call it.

    Returns:
        (container, stream, what to close).

    Raises:
        MissingFile, VideoError
    """
    stack, head = contextlib.ExitStack(), b"\0"
    try:
        if not path.is_file():
            raise MissingFile(f"{name}: video file {path} is missing; download or record the dataset again")
        with open_binary(path) as file:
            head = file.read(HEAD_BYTES)
        source: Any = ffmpeg_name(path) if isinstance(path, Path) else stack.enter_context(open_binary(path))
        container = stack.enter_context(av.open(source, "r", format="matroska" if head[:4] == _EBML else "mp4"))
        # Of several streams LeRobot's decoder takes the same: not the cover, which comes first in some files.
        stream: Any = container.streams.best("video")
        if stream is None:
            raise VideoError(f"{name}: {path} holds no video stream")
        codec = stream.codec.canonical_name if stream.codec_context else "unknown"
        if codec not in CODECS:
            expected = f"expected one of {', '.join(CODECS)}"
            raise VideoError(f"{name}: {path} has the codec {codec}; {expected}: {as_mp4(path)}")
        # Readers run in parallel, so the decoder's own threads would only compete with them.
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
    except DECODE_ERRORS as error:
        stack.close()
        if isinstance(error, MissingFile):
            raise
        reason = getattr(error, "strerror", None) or error
        kind = media_kind(head)
        if kind and kind not in _CONTAINERS:
            found = f"is {kind}; expected MP4, MOV, Matroska or WebM: {as_mp4(path)}"
        else:
            found = stand_in(head) or f"is not a readable video ({reason}); it may be truncated"
        raise VideoError(f"{name}: {path} {found}") from error
    except BaseException:
        stack.close()
        raise
    return container, stream, stack


def frames_per_period(stream: VideoStream, fps: float) -> int:
    """How many frames of the file belong to one of the dataset: 2 for a video of 60 Hz in a dataset of 30 Hz."""
    # The average counts frames that an edit list hides, the base rate (that of the time stamps) grows where these vary.
    rates = [float(rate) for rate in (stream.average_rate, stream.base_rate) if rate]
    return max(1, round(min(rates, default=fps) / fps))


class EpisodeVideo:
    """Decoder of one episode's frames, cheapest when they are read in order.

    Row `r` of the episode is frame `first_frame + r` of the file. A frame's number is its presentation time counted in
    frame periods from the stream's start and rounded to the nearest integer, so a file whose times jitter by less than
    half a period still maps exactly, and a missing or doubled frame is noticed; of a video with twice the frames every
    second one is read, as LeRobot does. Reading on from the last frame never seeks; anything else seeks to the keyframe
    before and walks forward. Not thread-safe: one owner per instance.

    Args:
        path: the mp4, local or remote.
        fps: the dataset's frames per second.
        first_frame: number in the file of the episode's first frame.
        length: frames in the episode.
        shape: (H, W) that every picture must have.
        name: how errors call the episode.
    """

    def __init__(self, path: AnyPath, *, fps: float, first_frame: int, length: int, shape: tuple[int, int], name: str):
        self.path, self.name, self.shape = path, name, shape
        self.first_frame, self.length = first_frame, length
        # A new scaling context for every picture would cost a third of the speed: one serves the whole episode.
        self._reformatter = VideoReformatter()
        self._container, self._stream, self._opened = open_video_file(path, name)
        try:
            self._check_stream(fps)
        except BaseException:
            self._opened.close()
            raise

    def _check_stream(self, fps: float) -> None:
        stream = self._stream
        if (stream.height, stream.width) != self.shape:
            size = other_size((stream.height, stream.width), self.shape)
            raise VideoError(f"{self.name}: pictures of {self.path} are {size}")
        self._multiple = frames_per_period(stream, fps)
        last = self.first_frame + self.length
        if stream.frames and stream.frames < (last - 1) * self._multiple + 1:
            raise VideoError(
                f"{self.name}: {self.path} holds {stream.frames} frames, but the episode needs frames "
                f"{self.first_frame} to {last - 1}; video and episode table do not belong together"
            )
        assert stream.time_base is not None  # every demuxed stream has one
        self._start = stream.start_time or 0
        self._frames_per_tick = Fraction(fps).limit_denominator(1_000_000) * self._multiple * stream.time_base
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
        self._opened.close()

    def _seek(self, row: int) -> None:
        """Place the decoder on a keyframe at or before a row."""
        self._next = -1  # stays so if anything below fails
        number, back = self.first_frame + row, 0
        while True:
            pts = self._start + round(max(0, number - back) * self._multiple / self._frames_per_tick)
            try:
                self._container.seek(pts, stream=self._stream, backward=True)
                decoded = self._container.decode(self._stream)
                first = next(decoded, None)
            except DECODE_ERRORS as error:
                raise VideoError(f"{self.name}: cannot seek to row {row} in {self.path} ({error})") from error
            self._decoded = itertools.chain([] if first is None else [first], decoded)
            # Where frames are stored in another order than shown, the seek may find a keyframe that is shown later.
            if first is None or self._position(first) <= number * self._multiple or back > number:
                return
            back = 2 * back + 16

    def _position(self, frame: Any) -> int:
        """When a frame is shown, in frames of the file from its start."""
        return round((frame.pts - self._start) * self._frames_per_tick)

    def _read_next(self, number: int) -> np.ndarray:
        """Decode forward to frame `number` of the file, counted in periods of the dataset."""
        first_read, self._next = self._next < 0, -1
        wanted, row = number * self._multiple, number - self.first_frame
        while True:
            try:
                frame = next(self._decoded)
            except (StopIteration, *DECODE_ERRORS) as error:
                raise VideoError(
                    f"{self.name}: {self.path} ends or is damaged before frame {number} "
                    f"(row {row} of {self.length}); the file may be truncated, or cut before its first keyframe"
                ) from error
            at = self._position(frame)
            if at < wanted and (first_read or at > wanted - self._multiple):
                continue  # between the keyframe and the frame asked for, or between two frames of the dataset
            if at != wanted:
                found = Fraction(at, self._multiple)
                raise VideoError(f"{self.name}: {self.path} has frame {found} where frame {number} was expected")
            if (frame.height, frame.width) != self.shape:
                size = other_size((frame.height, frame.width), self.shape)
                raise VideoError(f"{self.name}: {self.path}: frame {number} (row {row} of {self.length}) is {size}")
            if frame.is_corrupt:
                raise VideoError(f"{self.name}: {self.path} is damaged at frame {number} (row {row} of {self.length})")
            self._next = row + 1
            return self._reformatter.reformat(frame, format="rgb24").to_ndarray()
