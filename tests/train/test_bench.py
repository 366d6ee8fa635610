"""The benchmark of a training step: its table and figures here, and with torch that both sides compute the same."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_train.py"


def bench(file: Path, *flags: str) -> tuple[str, dict]:
    command = [sys.executable, str(SCRIPT), "--size=tiny", "--steps=3", "--rounds=1", f"--json={file}", *flags]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout, json.loads(file.read_text())


@pytest.mark.slow
def test_table_and_figures(tmp_path):
    table, figures = bench(tmp_path / "figures.json")
    ours = figures["sides"]["jax"]
    assert 0 < ours["fastest"] <= ours["seconds"] <= ours["slowest"]
    assert ours["frames_per_second"] == pytest.approx(figures["frames"] / ours["seconds"])
    assert len(ours["losses"]) == 4  # one step that is not measured, then three
    assert ours["losses"] == sorted(ours["losses"], reverse=True)  # the same batch again and again
    assert f"{figures['frames']} frames a step" in table
    assert ("torch" in figures["sides"]) == (find_spec("torch") is not None and find_spec("transformers") is not None)


@pytest.mark.slow
@pytest.mark.torch
def test_both_sides_compute_the_same(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    table, figures = bench(tmp_path / "figures.json")
    ours, theirs = (figures["sides"][side]["losses"] for side in ("jax", "torch"))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[0] - ours[3] > 1e-3  # so that losses this near to each other say that the updates are the same
    assert "PyTorch takes" in table


@pytest.mark.slow
@pytest.mark.torch
def test_both_sides_compute_the_same_in_bfloat16_with_recomputation(tmp_path):
    """What the full size does."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    figures = bench(tmp_path / "figures.json", "--dtype=bfloat16", "--remat")[1]
    ours, theirs = (figures["sides"][side]["losses"] for side in ("jax", "torch"))
    assert ours == pytest.approx(theirs, rel=2e-4)


def test_wrong_flags_are_refused():
    run = subprocess.run([sys.executable, str(SCRIPT), "--layers=3"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "--layers even and at least 4" in run.stderr


@pytest.mark.slow
def test_the_memory_over_a_run_equals_the_walk_frame_by_frame():
    script = SCRIPT.with_name("bench_memory.py")
    command = [sys.executable, str(script), "--width=256", "--rounds=1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    found = re.search(r"ratio +[\d.]+ .* differ by ([\d.e+-]+) \(relative\)", run.stdout)
    assert found
    assert float(found[1]) < 1e-5
