"""What a check of a dataset finds, and how it is said.

Axes: N frames of an episode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from mem0_jax.data.files import AnyPath

Severity = Literal["error", "warning"]
Runs = tuple[tuple[int, int], ...]
_MAX_RUNS = 8  # said of a finding
_MAX_EPISODES = 5  # that have findings of their own though these are alike


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a dataset.

    Attributes:
        severity: "error" (reading or training goes wrong) or "warning" (suspicious).
        kind: a short name of the check, such as "missing-file".
        message: what is wrong, what was expected.
        file: path of the file.
        episode: its index, or None when it is not about one episode.
        frames: runs of frames in the episode, (first, last) each.
        feature: key of the feature, or "".
    """

    severity: Severity
    kind: str
    message: str
    file: str = ""
    episode: int | None = None
    frames: Runs = ()
    feature: str = ""

    def __str__(self) -> str:
        where = [] if self.episode is None else [f"episode {self.episode}"]
        if self.frames:
            text = ranges(self.frames)
            where.append(("frame " if text.isdigit() else "frames ") + text)
        if self.feature:
            where.append(self.feature)
        return f"{', '.join(where)}: {self.message}" if where else self.message

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict of all fields."""
        return asdict(self) | {"frames": [list(run) for run in self.frames]}


class Findings(list[Finding]):
    """A list that is written to with `error` and `warning`; `file` is the file that entries are about."""

    def __init__(self, file: AnyPath | str = ""):
        super().__init__()
        self.file = str(file)

    def error(self, kind: str, message: str, **where: Any) -> None:
        """Add an error; `where` may have file, episode, frames and feature."""
        self._add("error", kind, message, where)

    def warning(self, kind: str, message: str, **where: Any) -> None:
        """Add a warning."""
        self._add("warning", kind, message, where)

    def _add(self, severity: Severity, kind: str, message: str, where: dict[str, Any]) -> None:
        fields: dict[str, Any] = {"file": self.file} | where
        self.append(Finding(severity, kind, message, **fields))


def runs(wrong: np.ndarray) -> Runs:
    """Return the runs of True in bool [N] as (first, last) pairs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wrong, [False]]).astype(np.int8)))
    return tuple((int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2]))


def ranges(found: Runs) -> str:
    """Say runs as 3, 5-9, ...; of many only the first and how many numbers there are in all."""
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found[:_MAX_RUNS])
    if len(found) <= _MAX_RUNS:
        return text
    return f"{text}, ... {found[-1][1]} ({sum(b - a + 1 for a, b in found)} in all)"


def by_cause(causes: Mapping[int, str]) -> list[tuple[str, Runs]]:
    """Group frames of an episode by what is wrong with them: one message and its runs a cause.

    Args:
        causes: what is wrong, by frame. Messages that differ in their numbers only are one cause, told by the first.
    """
    groups: dict[str, list[int]] = {}
    for frame, cause in causes.items():
        groups.setdefault(re.sub(r"\d+", "0", cause), []).append(frame)
    return [(causes[frames[0]], runs(np.isin(np.arange(max(frames) + 1), frames))) for frames in groups.values()]


def once_a_cause(findings: Iterable[Finding]) -> list[Finding]:
    """Join findings that differ in the file only, and those of many episodes that differ in the episode only.

    The first stands for all, and counts them. Numbers in messages and frames do not tell causes apart.
    """
    groups: dict[Finding, list[Finding]] = {}
    for finding in findings:
        message = re.sub(r"\d+", "0", finding.message)
        key = replace(finding, file="", episode=None, frames=(), message=message)
        groups.setdefault(key, []).append(finding)
    return [finding for same in groups.values() for finding in _joined(same)]


def _joined(same: list[Finding]) -> list[Finding]:
    first, files = same[0], {finding.file for finding in same}
    episodes = sorted({finding.episode for finding in same if finding.episode is not None})
    more = ""
    if 1 < len(episodes) <= _MAX_EPISODES or (len(episodes) == 1 and first.frames):
        return same
    if len(episodes) > 1:
        first = next(finding for finding in same if finding.episode == episodes[0])
        more = f" (in {len(episodes)} episodes: {ranges(runs(np.isin(np.arange(episodes[-1] + 1), episodes)))})"
    elif len(files) > 1:
        more = f" (in {len(files)} files, the first is {first.file})"
    return [replace(first, message=first.message + more)]
