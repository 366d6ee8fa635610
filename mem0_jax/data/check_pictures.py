"""Check of the pictures in one mp4 or image column: every frame is decoded.

Axes: M frames of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mem0_jax.data.camera_shape import is_depth_map, other_size, picture_shape
from mem0_jax.data.check_columns import TIME_TOLERANCE
from mem0_jax.data.check_meta import Metadata
from mem0_jax.data.files import AnyPath, DatasetError, MissingFile
from mem0_jax.data.findings import Findings, by_cause, runs
from mem0_jax.data.images import EpisodeImages, ImageError
from mem0_jax.data.lerobot_meta import Episode
from mem0_jax.data.video import DECODE_ERRORS, VideoError, frames_per_period, open_video_file

_SAMPLES = 20  # pictures of an episode whose brightness is measured
_RATE_TOLERANCE = 1e-3


@dataclass
class PictureReport:
    """Findings of one file, and the mean colour in [0, 1], float64 [3], of each episode in it."""

    findings: Findings
    means: dict[int, np.ndarray] = field(default_factory=dict)


def check_video_file(
    meta: Metadata, camera: str, path: AnyPath, episodes: Sequence[Episode], decode: bool
) -> PictureReport:
    """Check one mp4 with the pictures of `episodes`; without `decode`, or of depths, only that it is there."""
    report = PictureReport(Findings(path))
    found = report.findings
    try:
        if not decode or is_depth_map(meta.info.features[camera]):
            if not path.is_file():
                raise MissingFile(f"video file {path} is missing")
            return report
        _, stream, opened = open_video_file(path, camera)
    except (VideoError, MissingFile) as error:
        kind = "missing-file" if isinstance(error, MissingFile) else "unreadable-file"
        for episode in episodes:
            found.error(kind, str(error).removeprefix(f"{camera}: "), episode=episode.index, feature=camera)
        return report
    with opened:
        _check_stream(meta, camera, stream, found)
        if (stream.height, stream.width) != _declared_size(meta.info.features[camera]):
            return report
        frames = _decode(stream, meta.info.fps, camera, episodes, report)
    for episode in episodes:
        _check_span(frames, episode, camera, found)
    used = max(episode.videos[camera].first_frame + episode.length for episode in episodes)
    if len(frames.counts) > used:
        message = f"holds {len(frames.counts)} frames, of which the episodes use {used}"
        found.warning("frame-count", message, feature=camera)
    return report


def check_images(meta: Metadata, camera: str, path: AnyPath, episodes: Sequence[Episode]) -> PictureReport:
    """Decode the image column of one parquet file, unless it holds depths."""
    report, feature = PictureReport(Findings(path)), meta.info.features[camera]
    shape = _declared_size(feature)
    if shape is None or is_depth_map(feature):
        return report
    for episode in episodes:
        images = EpisodeImages(
            path, key=camera, root=meta.root, first_row=episode.data_row, length=episode.length,
            shape=shape, name=f"{episode.name} ({camera})",
        )  # fmt: skip
        try:
            _decode_images(images, episode, camera, report)
        finally:
            images.close()
    return report


def _decode_images(images: EpisodeImages, episode: Episode, camera: str, report: PictureReport) -> None:
    sampled, colors, wrong = _sampled(episode), [], {}
    for i in range(episode.length):
        try:
            picture = images.read(i, 1)[0]
        except MissingFile:
            return  # reported with the columns of the file
        except ImageError as error:
            wrong[i] = error.cause
        except DatasetError:
            return  # likewise
        else:
            if i in sampled:
                colors.append(picture.mean((0, 1)) / 255)
    for cause, frames in by_cause(wrong):
        report.findings.error("picture", cause, frames=frames, episode=episode.index, feature=camera)
    if colors:
        report.means[episode.index] = np.mean(colors, 0)


def _declared_size(feature: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        return picture_shape(feature)
    except DatasetError:
        return None  # reported with the metadata


def _sampled(episode: Episode) -> set[int]:
    return set(np.linspace(0, episode.length - 1, _SAMPLES).round().astype(int).tolist())


def _check_stream(meta: Metadata, camera: str, stream: VideoStream, found: Findings) -> None:
    feature, info, size = meta.info.features[camera], meta.info, (stream.height, stream.width)
    expected = _declared_size(feature)
    if expected and size != expected:
        found.error("shape", f"pictures are {other_size(size, expected)}", feature=camera)
    declared = feature.get("info") or feature.get("video_info") or {}
    codec = declared.get("video.codec") if isinstance(declared, dict) else None
    if codec not in (None, stream.codec.canonical_name):
        found.warning("codec", f"is {stream.codec.canonical_name}, info.json declares {codec}", feature=camera)
    begin = float((stream.start_time or 0) * (stream.time_base or 0))
    if begin > TIME_TOLERANCE:
        message = f"starts at {begin:g} s; LeRobot, which counts from 0, refuses that"
        found.warning("video-times", message, feature=camera)
    multiple = frames_per_period(stream, info.fps)
    # The average is off when a frame is lost, the base rate (that of the time stamps) when their steps vary.
    rate, base = float(stream.average_rate or 0), float(stream.base_rate or 0)
    if min(abs(value / multiple - info.fps) for value in (rate, base)) > _RATE_TOLERANCE * info.fps:
        found.error("fps", f"has {rate:g} frames a second, the dataset {info.fps:g}", feature=camera)
    elif multiple > 1:
        found.warning("fps", f"has {rate:g} frames a second; one in {multiple} is shown at a time step", feature=camera)


@dataclass
class _Frames:
    """By number of frame in periods of the dataset, [M]: how often it comes, whether damaged, whether off its time."""

    counts: np.ndarray
    damaged: np.ndarray
    shifted: np.ndarray


def _decode(
    stream: VideoStream, fps: float, camera: str, episodes: Sequence[Episode], report: PictureReport
) -> _Frames:
    """Decode the whole file, going on behind damaged packets."""
    assert stream.time_base is not None  # every demuxed stream has one
    start, per_tick = stream.start_time or 0, Fraction(fps).limit_denominator(1_000_000) * stream.time_base
    multiple = frames_per_period(stream, fps)
    sampled = {e.videos[camera].first_frame + i: e.index for e in episodes for i in _sampled(e)}
    colors: dict[int, list[np.ndarray]] = {}
    reformatter, shape = VideoReformatter(), (stream.height, stream.width)
    seen: list[tuple[int, bool, bool]] = []
    for frame in _all_frames(stream, report.findings, camera):
        if frame.pts is None:
            continue
        at = (frame.pts - start) * per_tick
        number = round(at)
        if multiple > 1 and abs(at - number) >= Fraction(1, 2 * multiple):
            continue  # between two frames of the dataset
        damaged = frame.is_corrupt or (frame.height, frame.width) != shape
        if frame.rotation and not seen:
            message = f"asks to be shown turned by {frame.rotation} degrees; the pictures are read as they are stored"
            report.findings.warning("turned", message, feature=camera)
        seen.append((number, damaged, abs(at - number) > Fraction(TIME_TOLERANCE) * Fraction(fps)))
        if number in sampled and not damaged:
            picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
            colors.setdefault(sampled[number], []).append(picture[::4, ::4].mean((0, 1)) / 255)
    report.means |= {episode: np.mean(values, 0) for episode, values in colors.items()}
    numbers = np.array([number for number, _, _ in seen if number >= 0], np.int64)
    flags = np.array([(damaged, shifted) for number, damaged, shifted in seen if number >= 0], bool).reshape(-1, 2)
    # A hostile file may give a frame any time; beyond what its frames can fill nothing is of interest.
    near = numbers < 2 * len(seen) + 1
    counts = np.bincount(numbers[near])
    marks = np.zeros((len(counts), 2), bool)
    np.logical_or.at(marks, numbers[near], flags[near])
    return _Frames(counts, marks[:, 0], marks[:, 1])


def _all_frames(stream: VideoStream, found: Findings, camera: str) -> Any:
    packets = stream.container.demux(stream)  # pyright: ignore[reportAttributeAccessIssue]
    while True:
        try:
            packet = next(packets, None)
        except DECODE_ERRORS as error:
            found.error("unreadable-file", f"cannot be read to its end ({error})", feature=camera)
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except DECODE_ERRORS:
            continue  # its frame is missing, which is told by episode and frame below


def _check_span(frames: _Frames, episode: Episode, camera: str, found: Findings) -> None:
    first = episode.videos[camera].first_frame
    where: dict[str, Any] = {"episode": episode.index, "feature": camera}

    def mine(values: np.ndarray) -> np.ndarray:
        out = np.zeros(episode.length, values.dtype)
        held = values[first : first + episode.length]
        out[: len(held)] = held
        return out

    counts = mine(frames.counts)
    if (counts == 0).any():
        held = int((counts > 0).sum())
        message = f"the video lacks pictures: {held} of {episode.length} can be decoded"
        found.error("frame-count", message, frames=runs(counts == 0), **where)
    if (counts > 1).any():
        found.error("video-times", "more than one picture at one time", frames=runs(counts > 1), **where)
    if mine(frames.damaged).any():
        found.error("picture", "the picture is damaged", frames=runs(mine(frames.damaged)), **where)
    if mine(frames.shifted).any():
        message = f"the picture is more than {TIME_TOLERANCE} s off its time; LeRobot refuses that"
        found.warning("video-times", message, frames=runs(mine(frames.shifted)), **where)
