"""One virtual file over one or many: a checkpoint that was cut into byte parts is read in place, without joining it.

`part_names` tells which files are parts. SHA-256 sums beside them (`NAME.sha256`, as `sha256sum` writes it) are checked
by `Digest` in a thread of its own while the file is converted.
"""

import bisect
import filecmp
import hashlib
import io
import itertools
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mem0_jax.convert.part_names import PartsError, few, find, whole_of
from mem0_jax.stand_in import stand_in

SUM_LINE = re.compile(r"(?P<sum>[0-9a-fA-F]{64})(?:[ \t]+\*?(?P<name>[^\s*].*))?")
MAX_SUM_BYTES = 2**20
BLOCK_BYTES = 2**22


class Parts:
    """A read-only file of one or many parts.

    Attributes:
        paths: the files, in order.
        size: bytes of all of them together.
        name: the name of the whole: that of the file, or of the parts without `.partNN`.
    """

    def __init__(self, name: str, paths: Sequence[Path]):
        self.name = name
        self.paths = tuple(paths)
        self._sizes = [_size(path) for path in self.paths]
        self._starts = [0, *itertools.accumulate(self._sizes)][:-1]
        self.size = sum(self._sizes)

    @staticmethod
    def open(source: str | Path) -> "Parts":
        """Finds the parts and checks that they are complete.

        Args:
            source: a file; a directory with the parts of one file; a pattern such as `X.pt.part*` (a file of that very
                name comes first); or any one part, which stands for all of them.

        Raises:
            PartsError: naming parts that are missing, there twice or cut short, or what was found instead of parts.
        """
        try:
            name, paths = find(Path(source))
            parts = Parts(name, paths)
            if parts.cut:
                parts._check_complete()
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            raise PartsError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        return parts

    def read(self, start: int, count: int) -> np.ndarray:
        """Bytes start to start + count: uint8 [count], read only.

        A memory map of just these bytes where they lie in one part: they cost no memory until they are used, and none
        once the array is gone. A copy where they cross into the next part.
        """
        if start < 0 or count < 0 or start + count > self.size:
            raise PartsError(f"{self.name}: bytes {start} to {start + count} asked of {self.size}: truncated?")
        if count == 0:
            return _frozen(np.empty(0, np.uint8))
        first = self._index(start)
        offset = start - self._starts[first]
        try:
            if offset + count <= self._sizes[first]:
                return np.asarray(np.memmap(self.paths[first], np.uint8, "r", offset, (count,)))
            data = np.empty(count, np.uint8)
            self._copy(start, data.data)
        except (OSError, ValueError) as error:  # ValueError: shorter than the map
            reason = getattr(error, "strerror", None) or error
            raise PartsError(f"{self.paths[first]}: cannot be read, was it changed meanwhile? ({reason})") from None
        return _frozen(data)

    def part_at(self, position: int) -> Path:
        """The part that holds a byte; the first or last one for a position outside."""
        return self.paths[self._index(min(max(position, 0), self.size - 1))]

    @property
    def cut(self) -> bool:
        """Whether these are byte parts, be it the first alone."""
        return self.paths[0].name != self.name

    @property
    def path(self) -> Path:
        """Where the whole would lie."""
        return self.paths[0].with_name(self.name)

    def within(self, start: int, end: int) -> str:
        """ "in X.part03, " or "in X.part03 to X.part04, ": which parts hold these bytes; "" if there is but one."""
        first, last = self.part_at(start).name, self.part_at(max(start, end - 1)).name
        if len(self.paths) == 1:
            return ""
        return f"in {first} to {last}, " if first != last else f"in {first}, "

    def reader(self) -> io.BufferedReader:
        """A seekable binary file object over the whole."""
        return io.BufferedReader(_Reader(self))

    def expected_sha256(self) -> dict[str, str]:
        """The sums in the `.sha256` files beside the parts, in lower case, by name: `name`, and names of parts.

        A line is `HEX  FILE` or `HEX *FILE`. In `NAME.sha256`, with or without the suffix of NAME, and in a `.sha256`
        of a part, a bare `HEX` or a lone line of any name speaks of the file it lies beside.

        Raises:
            PartsError: naming a line of these files that is none of this.
        """
        names = {self.name, *(path.name for path in self.paths)}
        owners = {name: name for name in names} | {Path(self.name).stem: self.name}
        sums = {}
        for path in sorted(self.paths[0].parent.glob("*.sha256"), key=lambda path: path.stem in owners):
            own = path.stem in owners
            lines = _sum_lines(path, strict=own)
            for digest, name in lines:
                base = name.replace("\\", "/").rsplit("/", 1)[-1]
                if base in names or whole_of(base) == self.name:
                    sums[base] = digest
                elif own and (not name or len(lines) == 1):
                    sums[owners[path.stem]] = digest
        return sums

    def _check_complete(self) -> None:
        listed = self.expected_sha256()
        absent = set(listed) - {self.name, *(path.name for path in self.paths)}
        if absent:
            raise PartsError(f"{self.name}: missing {few(absent)}, listed in its .sha256: download it again")
        *others, last = self._sizes
        full = max(others, default=last)
        short = [path for path, size in zip(self.paths, others) if size != full]
        for path in [*short, self.paths[-1]]:
            if path.stat().st_size and (said := stand_in(path)):
                raise PartsError(f"{path} {said}")
        if short:
            raise PartsError(
                f"{self.name}: {few(path.name for path in short)} cut short, expected {full} bytes: download it again"
            )
        if last > full or not last:
            raise PartsError(
                f"{self.name}: the last part {self.paths[-1].name} has {last} bytes, expected 1 to {full}: are all "
                "others cut short, or is it of another file?"
            )

    def _index(self, position: int) -> int:
        return bisect.bisect_right(self._starts, position) - 1

    def _copy(self, start: int, target: memoryview) -> None:
        """Fills `target` from as many parts as it takes."""
        while len(target):
            index = self._index(start)
            offset = start - self._starts[index]
            count = min(len(target), self._sizes[index] - offset)
            with self.paths[index].open("rb") as file:
                file.seek(offset)
                if file.readinto(target[:count]) != count:
                    raise OSError(f"{self.paths[index].name} ends early")
            start, target = start + count, target[count:]


class _Reader(io.RawIOBase):
    def __init__(self, parts: Parts):
        self._parts = parts
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._parts.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self._parts.size - self._position))
        self._parts._copy(self._position, target[:count])
        self._position += count
        return count


class Digest:
    """Computes the SHA-256 of a file in a background thread that starts at once.

    Sums of single parts are computed only where that of the whole is unknown or wrong: half the work otherwise.
    """

    def __init__(self, parts: Parts, on_bytes: Callable[[int], object] | None = None):
        """`on_bytes`, if given, is called from that thread with the number of bytes of each block."""
        self._parts = parts
        self._expected = parts.expected_sha256()
        self._on_bytes = on_bytes
        self._stop = threading.Event()
        self._sum = ""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Stops the thread; `result` raises from now on."""
        self._stop.set()
        self._thread.join()

    def result(self) -> str:
        """Waits, and returns the SHA-256 of the whole file in hexadecimal.

        Raises:
            PartsError: naming the parts that differ from their sums or repeat another part.
            RuntimeError: after `cancel`.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        if not self._sum:
            raise RuntimeError(f"hashing {self._parts.name} was cancelled")
        return self._sum

    def _run(self) -> None:
        try:
            name, whole_known = self._parts.name, self._parts.name in self._expected
            sums = self._hash(each=not whole_known)
            if sums and whole_known and sums[name] != self._expected[name] and len(self._expected) > 1:
                sums = self._hash(each=True)  # once more, to find the part that is wrong
            if sums:
                self._check(sums)
                self._sum = sums[name]
        except OSError as error:
            self._error = PartsError(f"{error.filename or self._parts.name}: cannot be read: {error.strerror}")
        except Exception as error:  # whatever on_bytes raises is the caller's: `result` hands it over
            self._error = error

    def _check(self, sums: dict[str, str]) -> None:
        name = self._parts.name
        wrong = {key for key, value in self._expected.items() if sums.get(key, value) != value}
        problems = [
            f"{key} has SHA-256 {sums[key]}, but its .sha256 says {self._expected[key]}"
            for key in sorted(wrong - {name} or wrong)  # the whole only where no part is known to be the reason
        ]
        if name in wrong or name not in self._expected:  # else the whole is proved right, though parts be equal
            pairs = itertools.combinations(self._parts.paths, 2)
            problems += [f"{b.name} repeats {a.name}" for a, b in pairs if filecmp.cmp(a, b, shallow=False)]
        if problems:
            raise PartsError("damaged, download again:\n  " + "\n  ".join(problems))

    def _hash(self, each: bool) -> dict[str, str]:
        """The sum of the whole, and with `each` those of parts that have one to compare; none if stopped."""
        whole, sums = hashlib.sha256(), {}
        # Plain reads into one buffer: a memory map would count every page it has touched as memory in use.
        buffer = memoryview(bytearray(BLOCK_BYTES))
        for path in self._parts.paths:
            alone = hashlib.sha256() if each and path.name in self._expected.keys() - {self._parts.name} else None
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    if self._stop.is_set():
                        return {}
                    whole.update(buffer[:count])
                    if alone:
                        alone.update(buffer[:count])
                    if self._on_bytes:
                        self._on_bytes(count)
            if alone:
                sums[path.name] = alone.hexdigest()
        return sums | {self._parts.name: whole.hexdigest()}


def _sum_lines(path: Path, strict: bool) -> list[tuple[str, str]]:
    """(sum, file name or "") of every line of a `.sha256` file; not strict: of those that can be read."""
    with path.open("rb") as file:
        content = file.read(MAX_SUM_BYTES).decode("utf-8-sig", "replace")
    lines = []
    for number, line in enumerate(content.splitlines(), 1):
        match = SUM_LINE.fullmatch(line.strip())
        if match:
            lines.append((match["sum"].lower(), match["name"] or ""))
        elif strict and line.strip():
            raise PartsError(
                f"{path}, line {number}: expected `HEX  FILE` with 64 hexadecimal digits, got {line[:80]!r}"
            )
    return lines


def _size(path: Path) -> int:
    if not path.is_file():
        raise PartsError(f"{path}: not a regular file")
    return path.stat().st_size


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
