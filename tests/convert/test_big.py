"""The released size, 15.3 GB with the optimizer: memory, and speed beside `cp`. Needs a folder with 50 GB to spare.

Run it as `MEM0_BIG=/big/disk pytest tests/convert/test_big.py -s`; with MEM0_BIG_SLIM=1 it takes 5 GB, no optimizer.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mem0_jax.convert.sources import open_source

ROOT = Path(__file__).parents[2]
BIG, SLIM = os.environ.get("MEM0_BIG"), bool(os.environ.get("MEM0_BIG_SLIM"))
GIB = 2**30

pytestmark = [pytest.mark.big, pytest.mark.skipif(not BIG, reason="MEM0_BIG names no folder with 50 GB to spare")]


@pytest.fixture(scope="module")
def parts():
    folder = Path(str(BIG)) / "mem0_big"
    flags = ["--slim"] if SLIM else []
    script = [sys.executable, ROOT / "scripts" / "make_checkpoint.py", folder / "parts" / "m1_mix.pt"]
    subprocess.run([*script, "--parts", "9", *flags], check=True)
    yield folder / "parts"
    shutil.rmtree(folder)


def interpreter_bytes() -> int:
    """Peak memory of a process that imports what conversion imports and converts nothing."""
    code = "import resource, mem0_jax.convert.importer; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    return 1024 * int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def test_memory_and_speed(parts):
    copy, out, report = parts.parent / "copy", parts.parent / "bundle", parts.parent / "report.json"
    command = [sys.executable, "-m", "mem0_jax.cli", "convert", parts, out, "--report", report]
    ratios = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(["cp", "-r", parts, copy], check=True)
        copying = time.perf_counter() - start
        shutil.rmtree(copy)
        start = time.perf_counter()
        subprocess.run(command if SLIM else [*command, "--with-optimizer"], check=True)
        ratios.append(copying / (time.perf_counter() - start))
        figures = json.loads(report.read_text())
        above = figures["peak_rss_bytes"] - interpreter_bytes()
        print(f"\ncp {copying:.1f} s, rate {ratios[-1]:.2f} of it, {above / GIB:.2f} GiB above the interpreter")
        assert (figures["consumed"], figures["unmapped"], figures["unfilled"]) == (910, [], [])
        assert above < 2.5 * GIB
    source, bundle = open_source(parts), open_source(out)
    assert set(source.tensors) == set(bundle.tensors)
    for name in list(source.tensors)[::41]:
        assert source.tensors[name].read().tobytes() == bundle.tensors[name].read().tobytes(), name
