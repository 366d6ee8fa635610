"""Files that appear whole, names that are safe, and disks that refuse: full, read-only, failing, out of files."""

import errno
import json
import logging
import os
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mem0_jax.errors import UserError

# What a disk may refuse for, and what helps. Nothing here can come of a fault of the program's own.
FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have your quota raised",
    errno.EROFS: "name a folder on a disk that can be written",
    errno.EACCES: "check the permissions, or name another place",
    errno.EPERM: "check the permissions, or name another place",
    errno.EIO: "the disk or the way to it fails: see the system's log",
    errno.ESTALE: "the network disk went away: mount it again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit on open files",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or name a place on another file system",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file stands where a folder is needed: name another place",
    errno.EISDIR: "a folder stands where a file is needed: name another place",
    errno.EEXIST: "it is in the way: move it, or name another place",
    errno.ENOTEMPTY: "it is in the way: move it, or name another place",
    errno.ELOOP: "a link is in the way: remove it",
}
# Libraries that are not Python's give the number, or only the words, in their message.
_NUMBER = re.compile(r"(?:errno |os error |os_error_code=')(\d+)", re.IGNORECASE)
_HARD = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EFBIG}
_WORDS = {os.strerror(number): number for number in _HARD}
_OPEN = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
_STANDARD = {"stdout": 1, "stderr": 2}
_PATH = re.compile(r"""["'](/[^"']+)["']""")


class DiskError(UserError):
    """A disk refused; the message names the file or folder, the reason, what is kept and the fix."""


def explained(error: BaseException, place: str | Path = "", kept: str = "") -> DiskError | None:
    """The error to raise in place of `error`, if that, or what it came of, says that a disk refused.

    Args:
        error: of any library.
        place: what was being written; the file that the error names is added where that is another.
        kept: what is not lost, as a sentence's part.
    """
    seen: BaseException | None = error
    numbers = set(FIXES)
    while seen is not None:
        if (found := _refusal(seen)) is not None and found[0] in numbers:
            number, path = found
            told = f"{place or path or 'a file or standard output'}: {os.strerror(number)}"
            if place and path and path not in str(place) and f"/.{Path(place).name}." not in path:
                told += f" ({path})"
            return DiskError("; ".join(part for part in (told, kept, FIXES[number]) if part))
        if seen.__cause__ is None:
            numbers = _HARD  # what was merely being handled, such as a file that was there already, may be harmless
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _refusal(error: BaseException) -> tuple[int, str] | None:
    """(number, path if it is known) of a refusal."""
    number = getattr(error, "errno", None)
    if number in FIXES:
        name = getattr(error, "filename", None)
        return number, os.fsdecode(name) if isinstance(name, str | bytes) else ""
    text = str(error)
    numbers = [int(match) for match in _NUMBER.findall(text)] + [n for words, n in _WORDS.items() if words in text]
    path = _PATH.search(text)
    return next(((n, path[1] if path else "") for n in numbers if n in FIXES), None)


@contextmanager
def disk_told(place: str | Path, kept: str = "") -> Iterator[None]:
    """Raises DiskError for what a disk refuses within; see `explained`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (told := explained(error, place, kept)) is None:
            raise
        raise told from error


def tell_once() -> None:
    """From now on a disk's refusal is told by the error that is raised, not also by each of a library's threads."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _but_late_writes


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return error is None or explained(error) is None


def _but_late_writes(unraisable: Any) -> None:
    # TensorStore's, which end after the first of them has failed.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def behind(path: Path) -> Path:
    """Where a path leads, there or not: what is put there by renaming leaves links to it what they are."""
    return Path(os.path.realpath(path))


def is_stream(path: Path) -> bool:
    """Whether nothing can take a path's place: a device, a pipe, or what this process has open."""
    return _OPEN.fullmatch(str(path)) is not None or not (path.is_file() or path.is_dir() or not path.exists())


def write_whole(path: Path, content: bytes | str) -> None:
    """Beside first, then renamed: nobody ever sees half a file. A text is written as UTF-8.

    Devices and pipes are written as they stand, and a link stays one.
    """
    content = content.encode() if isinstance(content, str) else content
    if is_stream(path):
        sys.stdout.flush()
        # What is open already is not opened anew: that would begin again at its start.
        opened = _OPEN.fullmatch(str(path))
        with open(os.dup(_STANDARD.get(path.name) or int(path.name)) if opened else path, "wb") as file:
            file.write(content)
        return
    path = behind(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        error.filename = str(path)  # a write's refusal names no file, an opening's the one beside
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, making its folder; the file appears when it is complete."""
    with disk_told(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(value, indent=1))


def safe_name(text: str) -> str:
    """A file or folder name made of `text`: what shells, URLs and other systems read otherwise becomes "_"."""
    return re.sub(r"[^\w.,=+-]+", "_", text).strip("._") or "_"
