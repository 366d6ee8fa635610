"""What XLA compiled for this user, kept on disk: the next start of a server, a run or an evaluation reads it.

A kept program is machine code that is executed as it is read, so the folder must be the user's own and nobody else may
write to it. XLA's own key tells programs of other machines, versions and settings apart.
"""

import contextlib
import importlib.util
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

from mem0_jax.errors import UserError

MOST_BYTES = 4 * 2**30  # what was not used for the longest time goes first
ENVIRONMENT = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def keep_compiled() -> Path | None:
    """Keeps compiled programs in mem0_jax/compiled of $XDG_CACHE_HOME, by default ~/.cache, from now on.

    Where one of JAX's own variables is set (`ENVIRONMENT`), its word counts and nothing is done.

    Returns:
        The folder, None where JAX's variables decide.

    Raises:
        UserError: the folder cannot be made, or others own it or can write to it.
    """
    if any(name in os.environ for name in ENVIRONMENT):
        return None
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "mem0_jax" / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise UserError(f"compiled programs cannot be kept in {folder}: {error.strerror}") from None
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise UserError(
            f"compiled programs are not kept in {folder}: others own it or can write to it, and what is read there is "
            f"executed. chmod 700 it, or name another place by XDG_CACHE_HOME"
        )
    _remove_unfinished(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if importlib.util.find_spec("filelock"):  # without it JAX knows no limit
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    return folder


def keep_compiled_if_possible() -> None:
    """`keep_compiled`; where the disk or the folder is in the way, a line says so once, and all is compiled anew.

    A run of several processes keeps nothing: its processes would share the folder, and each needs programs of its own.
    """
    if jax.process_count() > 1:
        return
    try:
        keep_compiled()
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        return
    show, said = warnings.showwarning, []

    def once(message: Any, *where: Any, **more: Any) -> None:
        if not re.match("Error (reading|writing) persistent compilation cache entry", str(message)):
            show(message, *where, **more)
        elif not said:
            said.append(message)
            reason = str(message).partition("': ")[2].splitlines()[0]
            print(f"warning: some compiled programs are not kept: {reason}", file=sys.stderr)

    warnings.showwarning = once


def _remove_unfinished(folder: Path) -> None:
    """What a full disk or a killed process left, which JAX would never replace, and which ends its counting of bytes.

    JAX writes a program, then, beside it, when it was used.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            with contextlib.suppress(OSError):
                program.unlink()
