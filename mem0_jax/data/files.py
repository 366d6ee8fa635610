"""Files of a dataset, on this machine or behind any fsspec address (gs://, hf://, s3://, memory://, ...).

A dataset comes from a stranger: what it claims about itself must not make us read outside its folder or fill memory.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import os
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, cast

from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install
from mem0_jax.stand_in import HEAD_BYTES, stand_in

MAX_JSON_BYTES = 512 * 2**20
_MAX_TEMPLATE = 1024
_FIELDS = ("episode_chunk", "episode_index", "chunk_index", "file_index", "video_key")


class DatasetError(UserError, ValueError):
    """A dataset folder that is damaged, incomplete or of an unknown kind."""


class MissingFile(UserError, FileNotFoundError):  # noqa: N818
    """A file that a dataset needs is not there."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder behind an fsspec address. Offers what the reader needs of `pathlib.Path`; can be pickled."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The part behind the last slash."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    def open(self, mode: str = "rb") -> Any:
        """Open for reading; the file can seek and fetches what is read, not the whole."""
        with _named(self.url):
            system, path = self._place()
            return _RemoteFile(system.open(path, mode), self.url)

    def is_file(self) -> bool:
        """Whether it exists and is a file."""
        with _named(self.url):
            system, path = self._place()
            return system.isfile(path)

    def size(self) -> int:
        """Bytes."""
        with _named(self.url):
            system, path = self._place()
            return int(system.size(path) or 0)

    def find(self) -> list[str]:
        """Names of all files below, relative to this folder."""
        with _named(self.url):
            system, path = self._place()
            prefix = path.rstrip("/") + "/"
            try:
                found = system.find(path)
            except FileNotFoundError:
                return []
        return sorted(name[len(prefix) :] for name in found if name.startswith(prefix))

    def _place(self) -> tuple[Any, str]:
        scheme = self.url.split("://", 1)[0]
        hint = f"{self.url}: reading {scheme}:// needs a package that is missing: {how_to_install('remote')}"
        try:
            import fsspec

            return fsspec.url_to_fs(self.url)  # file systems are cached by fsspec
        except ImportError as error:
            raise UserError(f"{hint} ({error})") from error
        except ValueError as error:
            raise UserError(
                f"{self.url}: {error}; expected a folder or an address such as gs://bucket/folder"
            ) from error


class RemoteError(DatasetError, OSError):
    """A remote file system that does not answer as expected."""


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    """Make one error of the many that libraries of remote file systems raise."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RemoteError(f"{url} cannot be read ({reason}); check the address, the network and your login") from error


class _RemoteFile(io.RawIOBase):
    """A remote file opened for reading whose errors are `RemoteError`."""

    def __init__(self, file: Any, url: str):
        super().__init__()
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        with _named(self._url):
            return self._file.read(-1 if size is None else size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


AnyPath = Path | RemotePath


def dataset_path(root: str | Path | RemotePath) -> AnyPath:
    """Return the folder `root` as a local path, or as a remote one when it is an address with "://"."""
    if isinstance(root, str) and "://" in root:
        return Path(root[len("file://") :]) if root.startswith("file://") else RemotePath(root.rstrip("/"))
    return root if isinstance(root, RemotePath) else Path(root)


def ffmpeg_name(path: Path) -> str:
    """Return what FFmpeg calls a local file: of a bare name it takes what comes before a colon for a protocol."""
    return f"file:{path}"


def open_binary(path: AnyPath) -> BinaryIO:
    """Open a file for reading bytes; it can seek."""
    return cast(BinaryIO, path.open("rb"))


def size_of(path: AnyPath) -> int:
    """Return a file's size in bytes."""
    return path.stat().st_size if isinstance(path, Path) else path.size()


def find(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Return the files below `folder` whose relative name matches the shell pattern, sorted."""
    if isinstance(folder, Path):
        names = sorted(p.relative_to(folder).as_posix() for p in _walk(folder) if p.is_file())
    else:
        names = folder.find()
    return [folder / name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _walk(folder: Path) -> Iterator[Path]:
    """The names below a folder, those behind linked folders too, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(place, name) for name in names)


def inside(root: AnyPath, name: str, where: str) -> AnyPath:
    """Return the file `name` of the dataset `root`; a name that leads outside is refused.

    Links are followed: a download cache links every file of a dataset to a place of its own. An absolute name
    of a file in the dataset's folder is as good as a relative one.
    """
    if re.search("[\0\ud800-\udfff]", name):
        raise DatasetError(f"{where}: {name!r} is no name of a file")
    name = _shortened(root, name)
    drive, chained = PureWindowsPath(name).drive, isinstance(root, RemotePath) and "::" in name
    if name.startswith(("/", "\\")) or drive or chained or ".." in name.replace("\\", "/").split("/"):
        raise DatasetError(f"{where}: {name!r} leads outside the dataset {root}")
    return root / name


def _shortened(root: AnyPath, name: str) -> str:
    """An absolute name of a file inside `root` as the name that it has there; any other name as it is."""
    if isinstance(root, RemotePath):
        return name.removeprefix(f"{root.url.rstrip('/')}/")
    if os.path.isabs(name) and ".." not in Path(name).parts:
        for inner, outer in ((name, os.path.abspath(root)), (os.path.realpath(name), os.path.realpath(root))):
            if Path(inner).is_relative_to(outer):
                return Path(inner).relative_to(outer).as_posix()
    return name


def checked_template(template: Any, where: str) -> str:
    """Let through only plain integer and name fields: a format string from a file could otherwise ask for gigabytes."""
    if not isinstance(template, str) or len(template) > _MAX_TEMPLATE:
        raise DatasetError(
            f"{where}: path template {str(template)[:80]!r} is not a text of up to {_MAX_TEMPLATE} letters"
        )
    try:
        fields = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise DatasetError(f"{where}: path template {template!r} is malformed ({error})") from error
    for field, spec, conversion in fields:
        if field not in _FIELDS or conversion or not re.fullmatch(r"0?[0-9]{0,2}d?", spec or ""):
            raise DatasetError(f"{where}: path template {template!r} has the unexpected field {field!r}:{spec!r}")
    return template


def read_json(path: AnyPath) -> dict[str, Any]:
    """Return the JSON object in a file."""
    value = _parse(_read_text(path), path)
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: expected a JSON object")
    return value


def read_json_lines(path: AnyPath) -> list[dict[str, Any]]:
    """Return the JSON objects of a file with one a line."""
    lines = [(i, line) for i, line in enumerate(_read_text(path).split("\n"), 1) if line.strip()]
    rows = [_parse(line, f"{path}, line {i}") for i, line in lines]
    for (i, _), row in zip(lines, rows):
        if not isinstance(row, dict):
            raise DatasetError(f"{path}, line {i}: expected a JSON object")
    return rows


def check_fits(size: int, where: str) -> None:
    """Refuse what would not fit into half of this machine's memory; `size` in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**34
    if size > memory // 2:
        raise DatasetError(
            f"{where} would need {size / 2**30:.1f} GiB of memory; this machine has {memory / 2**30:.1f} GiB. "
            "Is the file damaged? Otherwise read it on a larger machine"
        )


def _read_text(path: AnyPath) -> str:
    try:
        if (size := size_of(path)) > MAX_JSON_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_JSON_BYTES / 2**20:.0f} MiB; no LeRobot metadata is")
        with open_binary(path) as file:
            data = file.read(size)
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing; is its dataset complete, and the folder its root?") from error
    except RemoteError:
        raise
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error})") from error
    try:
        return data.decode("utf-8-sig")  # editors on Windows begin with a mark
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def _parse(text: str, where: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = stand_in(text.encode()[:HEAD_BYTES]) or f"is not valid JSON: {error}"
        raise DatasetError(f"{where} {said}") from error
