"""Weights spread over a mesh give the same answers. Runs as a program of its own, on virtual devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import random_models

from mem0_jax.backbones.qwen3_vl.generate import Settings

HERE = Path(__file__).parent


def test_answers_with_weights_over_four_devices(tmp_path):
    golden = np.load(HERE / "assets" / "generation.npz")
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, str(HERE / "sharded.py"), str(tmp_path / "bundle"), "fsdp=2,tensor=2"]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["shard"] == [24, 32]
    assert result["late"] == [], "compiled after the warm-up"
    small = random_models.generator("untied", 1, int8=True)
    asked = random_models.prompts(1)[2:3]
    assert result["int8"] == list(small.generate(asked, Settings(max_tokens=8))[0].tokens)
    assert result["answers"] == [golden[f"untied/answer_{i}"].tolist() for i in range(4)]
