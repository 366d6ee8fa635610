"""A command ends as it should although the machine is busy: Arrow's threads must not need Python while it ends."""

import os
import shutil
import subprocess
import sys

import pytest
from episodes import ASSETS

# Other threads than the main one get Python's lock 80 ms late, as on a machine with much to do.
SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>
int PyGILState_Ensure(void) {
    int (*real)(void) = (int (*)(void))dlsym(RTLD_NEXT, "PyGILState_Ensure");
    if (syscall(SYS_gettid) != getpid()) usleep(80000);
    return real();
}
"""


@pytest.fixture(scope="session")
def slow(tmp_path_factory) -> dict[str, str]:
    """The environment of a process on such a machine."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.c").write_text(SLOW)
    command = [compiler, "-shared", "-fPIC", "slow.c", "-o", "slow.so", "-ldl"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return os.environ | {"LD_PRELOAD": str(folder / "slow.so")}


@pytest.mark.parametrize("address", ["", "local://"])
def test_a_command_that_read_parquet_ends_with_its_own_exit_code(slow, address):
    if address:
        pytest.importorskip("fsspec")
    command = [
        sys.executable,
        "-m",
        "mem0_jax.cli",
        "data",
        "check",
        f"{address}{ASSETS / 'lerobot_v30'}",
        "--no-video",
    ]
    done = subprocess.run(command, env=slow, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 errors" in done.stdout
