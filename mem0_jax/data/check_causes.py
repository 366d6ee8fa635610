"""Which findings of a check are causes: what only follows from a wrong number of frames, or a second, is not told."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from mem0_jax.data.findings import Finding

_ELSEWHERE = ("index", "totals", "statistics", "video-times")  # in other episodes, too, errors follow from a length
_THERE = ("frame-index", "timestamp", "frame-count")
_OF_VIDEOS = ("frame-count", "video-times")


def causes(findings: Iterable[Finding], readable: Collection[int]) -> list[Finding]:
    """Return the findings that follow from no other, the causes first.

    Args:
        findings: of a whole dataset.
        readable: the episodes that the episode table gives.
    """
    found = list(findings)
    rates = _rates([finding for finding in found if _of_rate(finding)])
    cameras = {finding.feature for finding in found if _of_rate(finding)}
    lengths = [finding for finding in found if _of_length(finding, readable)]
    wrong = {finding.episode for finding in lengths}

    def follows(finding: Finding) -> bool:
        if cameras and finding.kind == "timestamp":
            return True
        if finding.feature in cameras and finding.kind in _OF_VIDEOS:
            return True
        if not wrong or finding.severity != "error":
            return False
        placed = finding.kind == "episode-table" and finding.message.startswith("dataset_")
        return placed or finding.kind in _ELSEWHERE or (finding.kind in _THERE and finding.episode in wrong)

    others = [f for f in found if not (_of_rate(f) or f in lengths or follows(f))]
    return [*rates, *lengths, *others]


def is_cause(finding: Finding, readable: Collection[int]) -> bool:
    """Whether others follow from it."""
    return _of_rate(finding) or _of_length(finding, readable)


def _of_rate(finding: Finding) -> bool:
    return finding.kind == "fps" and finding.severity == "error"


def _of_length(finding: Finding, readable: Collection[int]) -> bool:
    """Whether it says that an episode has another number of rows than the table says, or none that can be read."""
    unread = finding.kind == "episode-table" and finding.episode not in readable
    return unread or (finding.kind == "frame-count" and not finding.feature)


def _rates(findings: list[Finding]) -> list[Finding]:
    """One of those that say the same rate: of info.json, a video or the time stamps."""
    groups: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: (f.episode is not None, not f.file.endswith("info.json"))):
        groups.setdefault(re.findall(r"\d+(?:\.\d+)?", finding.message)[0], []).append(finding)
    told = []
    for first, *others in groups.values():
        alike = [f for f in others if (f.message, f.feature) == (first.message, first.feature)]
        episode = first.episode if {f.episode for f in alike} <= {first.episode} else None
        told += [replace(f, episode=episode) for f in (first, *alike)]
    return told
