"""One process at a time in a folder: a lock that ends with its holder, however that ends, and says who holds it.

The system's own lock (flock) decides among the processes of a machine, containers included, and among machines whose
shared disk passes it on. Not all do (NFS with local locks, Lustre without flock, buckets by FUSE). So the file's time
is moved on while its holder lives, too: what another machine holds and touched of late is respected, whatever flock
says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from mem0_jax.disk import behind, disk_told
from mem0_jax.errors import UserError

BEAT, STALE = 15.0, 120.0  # seconds: between signs of life; after which another machine's holder counts as gone
TAKE_OVER = "MEM0_TAKE_OVER"
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_MOST_BYTES = 4096
_log = logging.getLogger(__name__)
# Of this thread of work: what it holds it may hold once more. A process forked from it inherits that.
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
_descriptors: set[int] = set()


class LockedError(UserError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class Holder:
    """What a lock file says.

    Attributes:
        process, host, user, since: for people.
        boot: of the machine's kernel, which containers share. processes: the namespace that `process` is a number of.
        born: when the process began, in the kernel's ticks. disk: device number of the file, as the holder saw it.
        token: of this very lock.
    """

    process: int
    host: str
    user: str
    since: str
    boot: str
    processes: str
    born: str
    disk: int
    token: str

    def __str__(self) -> str:
        return f"process {self.process} of {self.user} on {self.host} since {self.since}"


@contextmanager
def hold_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """This process alone works in `folder`, which is made, while the block runs; gives what `_hold` does."""
    with disk_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _hold(folder.resolve() / ".lock", folder) as check:
        yield check


@contextmanager
def hold_output(out: Path) -> Iterator[Callable[[], None]]:
    """This process alone makes the file or folder `out` while the block runs; gives what `_hold` does."""
    place = behind(out)  # a link to it is the same place
    with disk_told(out):
        place.parent.mkdir(parents=True, exist_ok=True)
    with _hold(place.with_name(f".{place.name}.lock"), out) as check:
        yield check


@contextmanager
def _hold(path: Path, what: Path) -> Iterator[Callable[[], None]]:
    """Holds a lock file for `what`; gives a function that raises LockedError once another machine took it over.

    Raises:
        LockedError: another process holds it. DiskError: the file cannot be written.
    """
    if path in _held.get():
        yield lambda: None
        return
    with disk_told(path):
        file, mine = _acquire(path, what)
    ended, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_beat, args=(path, file, mine, ended, lost), daemon=True)
    thread.start()
    before = _held.set(_held.get() | {path})

    def check() -> None:
        if lost.is_set():
            raise LockedError(f"{what} was taken over by {_read(path) or 'another process'}: this process stops")

    try:
        yield check
    finally:
        _held.reset(before)
        if os.getpid() == mine.process:  # not in a process forked meanwhile
            ended.set()
            thread.join(1.0)
            with contextlib.suppress(OSError):
                if _read(path) == mine:
                    path.unlink()
            _close(file)


def _acquire(path: Path, what: Path) -> tuple[int, Holder]:
    """The open lock file, and what stands in it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        _descriptors.add(file)
        try:
            if (mine := _try(file, path, what)) is not None:
                return file, mine
        except BaseException as error:
            if isinstance(error, OSError) and not os.fstat(file).st_size:  # ours, and the disk is full
                path.unlink(missing_ok=True)
            _close(file)
            raise
        _close(file)


def _try(file: int, path: Path, what: Path) -> Holder | None:
    """Takes the open lock file; None where it was removed meanwhile, so that another has to be made."""
    certain = True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(path)
        # A child that a library forked may keep its dead parent's lock, a disk's server that of a machine that is gone.
        gone = holder is not None and (_dead(holder) or (holder.boot != _boot() and _told_to_take_over()))
        if not gone:
            raise _refused(what, holder, None) from None
        path.unlink(missing_ok=True)
        return None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        certain = False
    if not _same(file, path):
        return None
    holder = _read(path)
    shared = not certain
    ours = certain and holder is not None and (holder.boot, holder.disk) == (_boot(), os.fstat(file).st_dev)
    if holder is not None and not ours and not _dead(holder):  # ours: the kernel would not have given us a living one's
        age, shared = _age(path), True
        if age < STALE and not _told_to_take_over():
            raise _refused(what, holder, age)
        _log.warning("%s: taken over from %s, which gave no sign of life for %.0f s", what, holder, age)
    mine = _myself(file)
    content = json.dumps(asdict(mine), indent=1).encode()
    os.ftruncate(file, 0)
    os.pwrite(file, content, 0)
    os.fsync(file)
    if shared:  # two may have come at once: the later word counts
        time.sleep(1.0)
        if (holder := _read(path)) != mine:
            raise _refused(what, holder, 0.0)
    return mine


def _dead(holder: Holder) -> bool:
    """Whether this machine's kernel knows no such process; its number may be another's by now."""
    return (holder.boot, holder.processes) == (_boot(), _processes()) and _born(holder.process) != holder.born


def _refused(what: Path, holder: Holder | None, age: float | None) -> LockedError:
    if holder is None or holder.boot == _boot():
        stop = f", stop it (kill {holder.process})" if holder and holder.processes == _processes() else ""
        return LockedError(f"{what} is in use by {holder or 'another process'}: wait for it{stop} or name another")
    sign = "" if age is None else f", and its last sign of life is {max(age, 0):.0f} s old"
    return LockedError(
        f"{what} is in use by {holder}{sign}: wait for it, stop it there, or name another; if it is gone for sure, "
        f"{TAKE_OVER}=1 takes over" + ("" if age is None else f", as does waiting until that is {STALE:.0f} s old")
    )


def _beat(path: Path, file: int, mine: Holder, ended: threading.Event, lost: threading.Event) -> None:
    """Signs of life, until the end or until the lock is another's."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a disk that fails for a while
            if _read(path) not in (mine, None):
                lost.set()
                return
            os.utime(file)


def _told_to_take_over() -> bool:
    return os.environ.get(TAKE_OVER, "0") not in ("", "0")


def _read(path: Path) -> Holder | None:
    """What the file says; None where it is absent, empty or says nothing of the kind."""
    try:
        with path.open("rb") as file:
            entries = json.loads(file.read(_MOST_BYTES))
        if {name: type(entry).__name__ for name, entry in entries.items()} != {f.name: f.type for f in fields(Holder)}:
            return None
        return Holder(**entries)
    except (FileNotFoundError, ValueError, AttributeError, RecursionError):
        return None


def _age(path: Path) -> float:
    """Seconds since the last sign of life, by the clock of the disk, which may be another machine's."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _close(file: int) -> None:
    _descriptors.discard(file)
    os.close(file)


def _myself(file: int) -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"user {os.getuid()}"
    return Holder(
        process=os.getpid(),
        host=socket.gethostname(),
        user=user,
        since=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        boot=_boot(),
        processes=_processes(),
        born=_born(os.getpid()),
        disk=os.fstat(file).st_dev,
        token=uuid.uuid4().hex,
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _processes() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(process: int) -> str:
    """When a process began; "" where it does not live, or the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _let_go() -> None:
    """In a forked process: its copies would keep the locks after their holder's end."""
    for file in _descriptors:
        with contextlib.suppress(OSError):
            os.close(file)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go)
