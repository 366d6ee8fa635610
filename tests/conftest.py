"""Settings of every test run."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before jax is first imported: the tests run on the CPU even where an accelerator is installed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Processes that tests start find what lies beside this file as well.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))

# Most of the time goes into compiling small programs: XLA takes little care with them, and what one process of this run
# compiled, the others read, however small it is.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mem0-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["XDG_CACHE_HOME"], "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Examples have no time limit: a machine that is busy with something else is not a fault.
settings.register_profile("mem0_jax", deadline=None)
settings.load_profile("mem0_jax")


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Names of what XLA compiles in this process, as it does, kept programs that it reads included."""
    import jax

    names: list[str] = []

    def hear(event: str, duration_secs: float, **about: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(str(about.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(hear)
    jax.jit(lambda x: x + 1)(3)
    assert names, "the listener hears of compilations"
    yield names
    jax.monitoring.clear_event_listeners()
