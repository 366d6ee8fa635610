"""Encoding of many episodes into one AV1 mp4, as LeRobot stores them.

Axes: N frames, H height, W width.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from mem0_jax.data.files import ffmpeg_name

GOP, CRF = 2, 30  # LeRobot's values: every second frame is a keyframe, so random access stays cheap
# LeRobot uses 12, which leaves out small changes between a keyframe and the next frame: in 3 % of 64x96 pictures with
# blinking cells of 12x16 pixels a cell showed the frame before. At 10 none did, for at most a quarter more time.
PRESET = 10
CODEC, PIXEL_FORMAT = "libsvtav1", "yuv420p"
# One thread for every stage of the encoder, so that no picture is overtaken by many. SVT-AV1 (seen with 4.1) keeps
# finished pictures in an unchecked ring: on a busy machine one that 42 others overtook is overwritten, and `close`
# fails or never returns. That befell one file of 81 pictures in 500 to 3 000, and with one thread none in 13 000; the
# bytes are the same.
ONE_THREAD_A_STAGE = "lp=1"

os.environ.setdefault("SVT_LOG", "1")  # the encoder otherwise prints its settings for every file; errors still show


class VideoFile:
    """An mp4 being written. Frame k of the file is shown at k / fps seconds, and every episode starts on a keyframe.

    `frames` and `bytes` count what has been appended and what the encoder has given out.

    Args:
        path: the file to write; its folder must exist.
        fps: frames per second.
        height, width: size of every picture.
    """

    def __init__(self, path: Path, *, fps: int, height: int, width: int):
        self.frames, self.bytes = 0, 0
        # faststart puts the index first, which lets a reader open the file without seeking to its end.
        self._container = av.open(ffmpeg_name(path), "w", options={"movflags": "faststart"})
        options = {"g": str(GOP), "crf": str(CRF), "preset": str(PRESET), "svtav1-params": ONE_THREAD_A_STAGE}
        self._stream = cast(Any, self._container.add_stream(CODEC, rate=Fraction(fps), options=options))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, PIXEL_FORMAT
        self._stream.codec_context.time_base = Fraction(1, fps)
        self._reformatter = VideoReformatter()
        with same_scheduling():
            self._stream.codec_context.open()

    def append(self, pictures: Iterable[np.ndarray]) -> int:
        """Encode an episode, uint8 [N, H, W, 3] RGB (or its pictures one by one): returns its first frame's number."""
        first = self.frames
        for i, picture in enumerate(pictures):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = self._reformatter.reformat(rgb, format=PIXEL_FORMAT)
            frame.pts, frame.time_base = self.frames, self._stream.codec_context.time_base
            frame.pict_type = PictureType.I if i == 0 else PictureType.NONE
            self._mux(self._stream.encode(frame))
            self.frames += 1
        return first

    def close(self) -> None:
        """Flush the encoder and write the file's index."""
        if self.frames:
            self._mux(self._stream.encode())
        self._container.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        # Counted here because the file itself lags behind: the encoder looks ahead and the muxer buffers.
        self.bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Undo that SVT-AV1, run by root on Linux, makes its threads and the one that opens it real-time (FIFO, 99).

    They, and all threads and processes which that thread starts later, would starve everything else on the machine.
    """
    if sys.platform != "linux":
        yield
        return
    tasks, policy, parameters = Path("/proc/self/task"), os.sched_getscheduler(0), os.sched_getparam(0)
    others = {task.name for task in tasks.iterdir()} - {str(threading.get_native_id())}
    try:
        yield
    finally:
        for task in tasks.iterdir():
            with suppress(ProcessLookupError):  # a thread that ended meanwhile
                if task.name not in others and os.sched_getscheduler(int(task.name)) != policy:
                    os.sched_setscheduler(int(task.name), policy, parameters)


def lerobot_video_info(fps: int, height: int, width: int) -> dict[str, Any]:
    """Return the `info` entry that info.json carries for a camera encoded here."""
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": "av1",
        "video.pix_fmt": PIXEL_FORMAT,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": GOP,
        "video.crf": CRF,
        "video.preset": PRESET,
    }
