"""What the terminal, or the file that it is sent to, shows of a run beside the loop's progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
from tqdm import tqdm

from mem0_jax.progress import duration

_log = logging.getLogger(__name__)


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a log on a full disk must not end the run
            tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def told(steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """While open, what this package logs goes to stderr: everything of process 0, warnings of the others.

    Gives the function to call with each row of the metrics log of a run of `steps` (0: not known): where stderr is no
    terminal, and so no bar is shown, it writes a line.
    """
    logger, handler = logging.getLogger("mem0_jax"), _AboveTheBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if jax.process_index() else logging.INFO)
    logger.propagate = False  # some libraries give the root logger a handler, which would say all of it again

    def progress(row: dict[str, Any]) -> None:
        if not sys.stderr.isatty():
            _log.info("%s", row_line(row, steps))

    try:
        yield progress
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def row_line(row: dict[str, Any], steps: int) -> str:
    """A row of the metrics log for a person: `"step 300 of 17000, loss 0.4081, 564 frames/s, 12 min 3 s left"`."""
    parts = [f"step {row['step']}" + (f" of {steps}" if steps else ""), f"loss {number(row.get('loss'))}"]
    if row.get("skipped"):
        parts.append(f"{row['skipped']} updates skipped")
    if row.get("frames_per_second"):
        parts.append(f"{number(row['frames_per_second'])} frames/s")
    if row.get("mfu"):
        parts.append(f"MFU {100 * row['mfu']:.0f} %")
    if row.get("eta_seconds"):
        parts.append(f"{duration(row['eta_seconds'])} left")
    return ", ".join(parts)


def number(value: float | None) -> str:
    """Four digits of it; None is a mean over nothing that was finite."""
    return "not finite" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
