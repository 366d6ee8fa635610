"""The scripts that measure: how fast a planner is, and what it is worth."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_the_benchmark_counts_tokens_of_prompt_and_answer(tmp_path):
    small = "--size=tiny --layers=2 --images=1 --text=20 --new=8 --rounds=1 --batch=2"
    flags = [*small.split(" "), "--json"]
    command = [sys.executable, str(SCRIPTS / "bench_planner.py"), *flags, str(tmp_path / "figures.json")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["prompt_tokens"] == 20 + 2 + 8 * 10  # words, marks, and the tokens of an image of 320x240
    sides = ["mem0_jax", "transformers"][: 1 + all(map(importlib.util.find_spec, ("torch", "transformers")))]
    assert list(figures["rates"]) == sides
    assert all(rate > 0 for rates in figures["rates"].values() for rate in rates.values())
    assert ("ratios" in figures) == (len(sides) == 2)
    assert run.stdout.startswith("mem0_jax")


def test_the_proof_counts_successes_with_their_intervals():
    spec = importlib.util.spec_from_file_location("plan_proof", SCRIPTS / "plan_proof.py")
    assert spec is not None
    assert spec.loader is not None
    proof = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(proof)
    results = {
        name: [{"seed": i, "success": i < right, "steps": 9} for i in range(100)]
        for name, right in (("planner", 98), ("oracle", 90), ("alone", 28))
    }
    report = proof.summary(results)
    low, high = report["success"]["planner"]["interval"]
    assert (low, high) == pytest.approx((0.92999, 0.99450), abs=1e-5)  # Wilson, of 98 of 100
    assert report["lead"]["rate"] == pytest.approx(0.7)
    assert report["lead"]["interval"] == pytest.approx((0.5927, 0.7799), abs=1e-4)  # Newcombe
    table = proof.table(report | {"seconds": {"play": 2.0}})
    assert "best without memory 15%" in table
    assert "98 of 100 (93% to 99%)" in table
    assert "lead over the policy alone +70% (+59% to +78%)" in table
