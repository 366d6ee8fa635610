"""Joining episodes that are encoded already into one mp4, by copying packets: nothing is decoded or encoded again.

Axes: H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from mem0_jax.data.files import ffmpeg_name
from mem0_jax.data.lerobot_stats import picture_histogram, sampled_pictures
from mem0_jax.data.video_encode import VideoFile


@dataclass(frozen=True)
class EncodedVideo:
    """One episode's pictures of one camera in an mp4 of their own, and what their statistics need.

    `histogram` int64 [3, 256] counts the grey levels of `sampled` of the `frames` pictures.
    """

    path: Path
    fps: int
    height: int
    width: int
    frames: int
    histogram: np.ndarray
    sampled: int

    def __len__(self) -> int:
        return self.frames

    @classmethod
    def encode(cls, path: Path, pictures: Iterable[np.ndarray], frames: int, *, fps: int) -> EncodedVideo:
        """Encode `frames` pictures uint8 [H, W, 3], RGB and all of one size, into a new file; one is held at a time."""
        chosen, sample = set(sampled_pictures(frames).tolist()), []
        stream = iter(pictures)
        first = next(stream)

        def passing() -> Iterator[np.ndarray]:
            for i, picture in enumerate(chain([first], stream)):
                if i in chosen:
                    sample.append(picture)
                yield picture

        video = VideoFile(path, fps=fps, height=first.shape[0], width=first.shape[1])
        try:
            video.append(passing())
        finally:
            video.close()
        histogram, sampled = picture_histogram(np.stack(sample))
        return cls(path, fps, first.shape[0], first.shape[1], video.frames, histogram, sampled)

    def save(self, path: Path) -> None:
        """Write everything but the pictures themselves as JSON."""
        numbers = {key: getattr(self, key) for key in ("fps", "height", "width", "frames", "sampled")}
        path.write_text(json.dumps(numbers | {"histogram": self.histogram.tolist()}), "utf-8")

    @classmethod
    def load(cls, path: Path, video: Path) -> EncodedVideo:
        """Read what `save` wrote."""
        data = json.loads(path.read_text("utf-8"))
        return cls(video, **data | {"histogram": np.asarray(data["histogram"], np.int64)})

    def packets(self) -> Iterator[tuple[Any, Any]]:
        """Yield (stream, packet) of every picture in order; ValueError if they are not `frames` in even steps."""
        try:
            with av.open(ffmpeg_name(self.path)) as container:
                stream = container.streams.video[0]
                assert stream.time_base is not None  # every demuxed stream has one
                step, count = Fraction(1, self.fps) / stream.time_base, 0
                for packet in container.demux(stream):
                    if not packet.size:
                        continue  # the demuxer's end mark
                    if packet.pts != count * step:
                        raise ValueError(f"{self.path}: picture {count} is not shown at {count}/{self.fps} s")
                    yield stream, packet
                    count += 1
        except (FFmpegError, IndexError) as error:
            raise ValueError(f"{self.path} is not a readable video ({error})") from error
        if count != self.frames:
            raise ValueError(f"{self.path} holds {count} pictures; expected {self.frames}")


class JoinedVideo:
    """An mp4 being put together from `EncodedVideo`s; `frames`, `bytes` and `append` are those of `VideoFile`."""

    def __init__(self, path: Path):
        self.path, self.frames, self.bytes = path, 0, 0
        self._container = av.open(ffmpeg_name(path), "w", options={"movflags": "faststart"})
        self._stream: Any = None
        self._header = b""

    def append(self, episode: EncodedVideo) -> int:
        """Copy an episode and return the number of its first frame in the file."""
        first = self.frames
        for source, packet in episode.packets():
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(
                    source, opaque=True
                )  # by its decoder: no encoder needed
                self._stream.time_base = source.time_base
                self._header = source.codec_context.extradata
            if source.codec_context.extradata != self._header:  # the file has one header for all its pictures
                raise ValueError(f"{episode.path} is encoded with other settings than the episodes before it")
            packet.pts = packet.dts = round(self.frames / (episode.fps * packet.time_base))
            packet.stream = self._stream
            self.bytes += packet.size
            self.frames += 1
            self._container.mux(packet)
        return first

    def close(self) -> None:
        """Write the file's index."""
        self._container.close()
