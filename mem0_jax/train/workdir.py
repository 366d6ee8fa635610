"""The folder of a run belongs to one run at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mem0_jax.errors import UserError
from mem0_jax.lock import LockedError, hold_folder

_MOST_BYTES = 1024  # of what process 0 tells the others


@contextmanager
def only_run(workdir: Path) -> Iterator[Callable[[], None]]:
    """Makes `workdir` and holds it while the block runs; of several processes the first one does, for all.

    Gives a function that raises LockedError once another machine has taken the folder over.

    Raises:
        LockedError: another run holds it, or it cannot be written; every process of this run raises.
    """
    with ExitStack() as stack:
        check, told = _nothing, ""
        if jax.process_index() == 0:
            try:
                check = stack.enter_context(hold_folder(workdir))
            except UserError as error:
                told = str(error)
        if jax.process_count() > 1:
            told = _of_the_first(told)
        if told:
            raise LockedError(told)
        yield check


def _nothing() -> None:
    pass


def _of_the_first(text: str) -> str:
    """What process 0 calls this with."""
    padded = text.encode()[:_MOST_BYTES].ljust(_MOST_BYTES, b"\0")
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
    return bytes(np.asarray(told, np.uint8)).rstrip(b"\0").decode(errors="replace")
