"""Settings of every test run."""

import atexit
import gc
import os
import shutil
import sys
import tempfile

# Before jax is first imported: the tests run on the CPU even where an accelerator is installed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What servers compile is kept for the next one, of this run only.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mem0-jax-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_runtest_teardown(item, nextitem) -> None:
    """Compiled programs of one folder's tests are of no use in the next, and are gigabytes in the end."""
    if nextitem is not None and nextitem.path.parent != item.path.parent and (jax := sys.modules.get("jax")):
        jax.clear_caches()
        gc.collect()
