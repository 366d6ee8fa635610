"""How far long work is, on stderr: a bar on a terminal; elsewhere, as in a log, a line now and then.

Work that is over within two seconds leaves no trace in a log. Anything longer says what it is, how far it is twice a
minute, though it may be one long step such as a compilation, and at its end how long it took.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

T = TypeVar("T")
FIRST, EVERY = 2.0, 30.0  # seconds from the start to the first line of a log, and from line to line
_PER = {"s": 1, "min": 60, "h": 3600}  # what a rate is told of: seconds, or more where less than a tenth is done in one
REDRAWN = 1.0  # seconds after which a bar is drawn again, so that its clock goes on


class Progress:
    """Long work, while it is entered. Threads may share it.

    Args:
        title: what is done, such as "packing".
        total: how much there is of it; None: not known.
        unit: of `total`, in the singular, such as "frame"; "B" is shown in kB, MB, ...; "" where nothing is counted.
        done: how much of it was done before.
        row: of the terminal, where several bars are shown at once.
        shown: False says nothing, as in all processes of several but one.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        row: int | None = None,
        shown: bool = True,
    ):
        self.title, self.total, self.unit, self.done, self._before = title, total, unit, done, done
        self._row, self._note, self._bar, self._told = row, "", None, False
        self._shown, self._lock, self._over = shown and sys.stderr is not None, threading.Lock(), threading.Event()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._shown:
            if sys.stderr.isatty():
                self._bar = self._open_bar()
            self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if not self._shown:
            return
        self._thread.join()
        if self._bar is not None:
            self._bar.close()
        elif self._told and kind is None:
            self._say(f"{self._count(self.done) or 'done'} in {duration(self._seconds)}")

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        with self._lock:
            self.done += count
            if self._bar is not None:
                self._bar.update(count)

    def reach(self, done: int, total: int) -> None:
        """So much is done now, of what turned out to be `total`."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total
        self.advance(done - self.done)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Gives the items, each of them one of what is counted."""
        for item in items:
            yield item
            self.advance()

    def note(self, text: str) -> None:
        """A figure to show with it, such as "loss 0.41"."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _open_bar(self) -> Any:
        from tqdm import tqdm

        # One bar stays when it is over; those that were opened while it was shown vanish.
        given = {"desc": self.title, "total": self.total, "initial": self.done, "position": self._row}
        given |= {"leave": None if self._row is None else True}
        if not self.unit:
            return tqdm(**given, bar_format="{desc} [{elapsed}]")
        return tqdm(**given, unit=self.unit, unit_scale=self.unit == "B", dynamic_ncols=True)

    def _watch(self) -> None:
        if self._bar is not None:
            while not self._over.wait(REDRAWN):
                self._bar.refresh()
            return
        pause = FIRST
        while not self._over.wait(pause):
            self._say(self._state())
            self._told, pause = True, EVERY

    def _state(self) -> str:
        """`"300 of 1200 frames, 25.1 frames/s, 36 s left"`."""
        done, total, seconds = self.done, self.total, self._seconds
        rate = (done - self._before) / seconds
        parts = [self._count(done, total), self._note]
        if rate:
            per = next((per for per in _PER if rate * _PER[per] >= 0.1), "h")
            parts.insert(1, f"{self._count(rate * _PER[per])}/{per}")
            if total and total > done:
                parts.insert(2, f"{duration((total - done) / rate)} left")
        elif self._told:
            parts.append(f"{duration(seconds)} so far")
        return ", ".join(filter(None, parts))

    def _count(self, amount: float, total: int | None = None) -> str:
        """`"300 of 1200 frames"`, `"1.3 of 15.3 GB"`; nothing where nothing is counted."""
        if not self.unit:
            return ""
        one = (amount if total is None else total) == 1
        digits, scale, unit = 0 if amount >= 100 else 1, 1.0, self.unit if one else f"{self.unit}s"
        if self.unit == "B":
            power = min(int(math.log(max(amount, total or 1, 1), 1000)), 4)
            digits, scale, unit = min(power, 1), 1000.0**power, f"{' kMGT'[power].strip()}B"
        shown = [f"{part / scale:.{digits}f}".removesuffix(".0") for part in (amount, total) if part is not None]
        return f"{' of '.join(shown)} {unit}"

    def _say(self, text: str) -> None:
        words = [time.strftime("%H:%M:%S"), ": ".join(filter(None, (self.title.strip(), text)))]
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more: no reason to end the work
            print(*words, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`"45 s"`, `"12 min 3 s"` or `"18 h 5 min"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
