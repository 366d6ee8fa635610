"""The outer layer of ``.pt`` files: a zip archive of plain bytes, checked as a whole before anything in it is used.

The archive is ``NAME/data.pkl``, the structure, and ``NAME/data/KEY``, the bytes of one storage each. The zip format is
documented in PKWARE's APPNOTE.TXT: sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.5.3 (zip64).
"""

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mem0_jax.convert.files import Parts
from mem0_jax.convert.kinds import HEAD_BYTES, SAVE_STATE, kind
from mem0_jax.convert.stored import Checksum
from mem0_jax.errors import UserError

MAX_PICKLE_BYTES = 32 * 2**20  # a policy of 2e9 parameters with its optimizer needs less than 1 MiB
MAX_DIRECTORY_BYTES = 16 * 2**20  # the same policy: 0.2 MiB
LOCAL_HEADER = struct.Struct("<4s5HIIIHH")
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".distcp")
STREAMED, UTF8, ENCRYPTED = 1 << 3, 1 << 11, 1  # flag bits


class PtError(UserError):
    """A ``.pt`` file that cannot be read: missing, damaged, of another format, or holding more than tensors."""


@dataclass(frozen=True)
class Archive:
    """An archive whose every entry has been checked.

    Attributes:
        parts: the file.
        entries: (first byte, size, checksum) of the content, by name without the leading folder. A checksum of 0
            was not computed: torch.serialization.set_crc32_options(False).
    """

    parts: Parts
    entries: Mapping[str, tuple[int, int, int]]

    @staticmethod
    def open(parts: Parts) -> "Archive":
        """Reads the directory and all local headers, so that parts which are out of order are found here.

        Raises:
            PtError: what is wrong, and where the file has parts, in which one.
        """
        _check_format(parts)
        infos = _directory(parts)
        names = [info.filename for info in infos]
        roots = {name.split("/")[0] for name in names if name.endswith("/data.pkl")}
        if len(roots) != 1:
            raise PtError(f"expected one NAME/data.pkl in the archive, found {len(roots)}: {_what_zip(names)}")
        prefix = roots.pop() + "/"
        entries, end = {}, 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            start = _locate(parts, info, end)
            end = start + info.file_size
            if info.filename.startswith(prefix):
                entries[info.filename.removeprefix(prefix)] = start, info.file_size, info.CRC
        if len(entries) != len(infos):
            raise PtError("the archive has repeated or stray entries: not a file of torch.save")
        if "constants.pkl" in entries:
            raise PtError(f"it is a TorchScript archive (torch.jit.save); load it with torch.jit.load and {SAVE_STATE}")
        archive = Archive(parts, entries)
        order = archive.content("byteorder", 16) if "byteorder" in entries else b"little"
        if order != b"little":
            raise PtError(f"byte order is {order!r}, only b'little' is supported: save it again on x86 or ARM")
        return archive

    def find(self, name: str) -> tuple[int, int]:
        """(first byte, size) of an entry's content."""
        if name not in self.entries:
            raise PtError(f"entry {name!r:.100} is missing from the archive: damaged, or not a file of torch.save")
        return self.entries[name][:2]

    def content(self, name: str, limit: int) -> bytes:
        """A copy of an entry of at most `limit` bytes, compared with its checksum."""
        start, size = self.find(name)
        if size > limit:
            raise PtError(f"{name} has {size} bytes, at most {limit} are accepted")
        if (checksum := self.checksum(name)) and (problem := checksum.problem()):
            raise PtError(problem)
        return self.parts.read(start, size).tobytes()

    def checksum(self, name: str) -> Checksum | None:
        """That of an entry's content, to be compared when it is read; None if it was not computed."""
        start, size, expected = self.entries[name]
        return Checksum(self.parts, start, size, expected, name) if expected else None


def _check_format(parts: Parts) -> None:
    """Refuses what is no zip file, saying what it is where that can be told from its first bytes."""
    head = parts.read(0, min(HEAD_BYTES, parts.size)).tobytes()
    if head.startswith(b"PK\x03\x04"):
        return
    if said := kind(head):
        raise PtError(f"it {said}")
    what = "the first part is missing or another one" if parts.cut else "not a file of torch.save"
    raise PtError(f"{what}: {parts.paths[0].name} starts with {head[:8]!r} instead of a zip header")


def _what_zip(names: Sequence[str]) -> str:
    """What a zip archive is that torch.save has not written."""
    inner = [name for name in names if name.endswith(WEIGHTS)]
    if inner:
        return f"it is a zip archive around {inner[0]!r:.200}: unzip it first"
    if any(name.endswith(".npy") for name in names):
        return "it is an archive of NumPy arrays (.npz), not of torch.save"
    shown = ", ".join(f"{name!r:.100}" for name in names[:4])
    return f"not a file of torch.save, it holds {shown or 'nothing'}"


class _SmallReads(io.BufferedReader):
    """Refuses to read a directory that would fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its size is given as {size} bytes")
        return super().read(size)


def _directory(parts: Parts) -> list[zipfile.ZipInfo]:
    try:
        with _SmallReads(parts.reader().detach()) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, IndexError) as error:
        problem = f"the zip directory is missing or damaged ({error}): truncated? copy it again"
        if parts.cut:
            problem = f"at the end of the last part, {parts.paths[-1].name}, {problem}, or the parts behind it"
        raise PtError(problem) from None


def _locate(parts: Parts, info: zipfile.ZipInfo, earliest: int) -> int:
    """First byte of an entry's content, after comparing its local header with the directory."""
    name, position = info.orig_filename, info.header_offset

    def fail(problem: str) -> PtError:
        several = len(parts.paths) > 1
        where = (
            f" of {parts.part_at(position).name}: out of order, repeated, truncated or" if several else ": truncated or"
        )
        return PtError(f"entry {name!r:.100} {problem} at byte {position}{where} damaged, copy it again")

    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & ENCRYPTED:
        raise PtError(f"entry {name!r:.100} is compressed or encrypted, torch.save stores plain bytes: save it again")
    if not earliest <= position <= parts.size - LOCAL_HEADER.size:
        raise fail("has no header" if position >= earliest else "overlaps another one")
    header = LOCAL_HEADER.unpack(parts.read(position, LOCAL_HEADER.size).tobytes())
    signature, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = header
    start = position + LOCAL_HEADER.size + name_bytes + extra_bytes
    if signature != b"PK\x03\x04" or flags != info.flag_bits or method != info.compress_type:
        raise fail("has no header")
    if info.file_size != info.compress_size or start + info.file_size > parts.size:
        raise fail(f"claims {info.file_size} bytes beyond the end")
    tail = parts.read(position + LOCAL_HEADER.size, name_bytes + extra_bytes).tobytes()
    if tail[:name_bytes].decode("utf-8" if flags & UTF8 else "cp437", "replace") != name:
        raise fail(f"has the header of another entry, {tail[:name_bytes]!r:.100},")
    if crc != info.CRC and not (crc == 0 and flags & STREAMED):
        raise fail("has another checksum in its header")
    if flags & STREAMED:  # torch: checksum and sizes follow the content
        if not _descriptor_follows(parts, info, start):
            raise fail("does not end where it should, starting")
    elif {packed, size} != {info.file_size} and _zip64_sizes(tail[name_bytes:]) != (info.file_size, info.file_size):
        raise fail("has other sizes in its header")
    return start


def _descriptor_follows(parts: Parts, info: zipfile.ZipInfo, start: int) -> bool:
    end = start + info.file_size
    found = parts.read(end, min(24, parts.size - end)).tobytes()
    numbers = info.CRC, info.file_size, info.file_size
    forms = [struct.pack("<IQQ", *numbers)]
    if info.file_size < 2**32:
        forms.append(struct.pack("<III", *numbers))
    return any(found.startswith((form, b"PK\x07\x08" + form)) for form in forms)


def _zip64_sizes(extra: bytes) -> tuple[int, int] | None:
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == 1 and size >= 16 and len(extra) >= 20:
            return struct.unpack("<QQ", extra[4:20])
        extra = extra[4 + size :]
    return None
