"""Files that lie where others should: Git LFS and git-annex pointers, error pages saved as downloads, empty files."""

import re
from pathlib import Path

HEAD_BYTES = 1024  # a Git LFS pointer has fewer, by its specification
LFS = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v\d")
LFS_SIZE = re.compile(rb"^size (\d{1,20})\r?$", re.MULTILINE)
ANNEX = re.compile(rb"\S*/annex/objects/\S+\s*")
ANNEX_SIZE = re.compile(rb"-s(\d{1,20})-")
PAGE = re.compile(rb"\s*<(?:!--|!doctype html|html\b|head\b|body\b|\?xml|error\b)", re.IGNORECASE)
# What servers answer without a page, and downloads without a check save.
ANSWER = re.compile(
    rb"\s*(?:(?:\d{3}:? )?not found|(?:entry|file|page|repository|revision) not found|access to|access denied|forbidden"
    rb"|unauthorized|bad gateway|service unavailable|too many requests|invalid (?:username|credentials)"
    rb"|\{\s*\"errors?\"\s*:|\{\s*\"message\"\s*:\s*\"(?:not found|bad credentials|api rate))",
    re.IGNORECASE,
)


def stand_in(file: Path | bytes) -> str:
    """What to say of a file that is not what it is called, to follow its name; "" for all others.

    Args:
        file: a path, or the first `HEAD_BYTES` of a file. One that cannot be opened is left to its reader: "".
    """
    if isinstance(file, bytes):
        return _described(file)
    try:
        with file.open("rb") as opened:
            return _described(opened.read(HEAD_BYTES))
    except (OSError, ValueError):  # ValueError: a path with a null character
        return ""


def _described(head: bytes) -> str:
    if not head:
        return "is empty: download it again, or copy it once more"
    head = head.removeprefix(b"\xef\xbb\xbf")  # editors and web servers begin UTF-8 with it
    if LFS.match(head):
        return f"is a Git LFS pointer{_elsewhere(LFS_SIZE, head)}: git lfs pull, or download it again"
    if ANNEX.fullmatch(head):
        return f"is a git-annex pointer{_elsewhere(ANNEX_SIZE, head)}: git annex get, or download it again"
    if PAGE.match(head) or ANSWER.match(head):
        return "is a web page or a server's error message: the download failed, download it again"
    return ""


def _elsewhere(size: re.Pattern[bytes], head: bytes) -> str:
    found = size.search(head)
    return f" ({int(found[1])} bytes are elsewhere)" if found else ""
