"""A model that an installed package brings: its checkpoints are found, converted there and back, and named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mem0_jax.convert.torch_pt_write import write_pt

LAB = Path(__file__).parent / "lab"  # on the path of the processes below: what an installation puts there


def run(folder: Path, *commands: str) -> tuple[list[int], str]:
    """Exit codes of `mem0-jax convert` for commands in one process, and what it says."""
    calls = ", ".join(f"main(['convert', *{command.split()}])" for command in commands)
    program = f"import json, pathlib\nfrom mem0_jax.cli import main\ncodes = [{calls}]\n"
    program += "pathlib.Path('codes.json').write_text(json.dumps(codes))"
    path = os.pathsep.join([str(LAB), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "codes.json").read_text()), done.stdout + done.stderr


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (6, 4)} | {f"layers.{n}.weight": (8, 4) for n in range(3)}
    shapes |= {f"layers.{n}.bias": (8,) for n in range(3)}
    tensors = {f"module.encoder.{name}": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    write_pt(
        tmp_path / "a.pt", {"model_state_dict": tensors | {"module.encoder.temperature": np.array(0.5, np.float32)}}
    )
    (tmp_path / "lab.json").write_text(json.dumps({"lab": {"looks_back": 5}}))
    return tmp_path


def test_there_and_back(checkpoint):
    codes, said = run(
        checkpoint,
        "a.pt bundle --config lab.json",
        "bundle b.pt --to torch",
        "inspect b.pt --json found.json",
        "diff a.pt b.pt",
        "a.pt second --config bundle/config.json",  # a bundle's settings are settings
        "diff bundle second",
    )
    assert codes == [0] * 6
    assert said.count("8 tensors: 8 identical in every byte") == 2
    assert "lab.json: of the lab" in said
    described = json.loads((checkpoint / "bundle" / "config.json").read_text())
    assert described["policy"] == "tiny_lab"
    assert described["config"] == {
        "width": 4,
        "vocabulary": 6,
        "temperature": 0.5,
        "stack": {"layers": 3, "reach": 5},
    }
    assert "inputs" not in described
    assert json.loads((checkpoint / "second" / "config.json").read_text())["config"] == described["config"]
    assert json.loads((checkpoint / "found.json").read_text())["model"] == "tiny_lab"


CANNOT = {
    "a.pt out": "TinyLab: the shapes do not tell stack.reach",
    "a.pt out --config lab.json --with-optimizer": "a.pt is a TinyLab, which has no optimizer that is known here",
    "a.pt out --config other.json": "other.json: not a TinyLab configuration: expected a mapping called lab",
    "a.pt out --config bundle.json": "bundle.json: the configuration of 'mem0', not of 'tiny_lab'",
    "both.pt out": "holds tensors of Qwen3-VL and of TinyLab in one: save them apart",
    "none.pt out": "Qwen3-VL (model.visual....), TinyLab (encoder....)",
    "bundle hf --to safetensors": "bundle is a TinyLab, which has no Hugging Face folder",
}


def test_what_cannot_be_is_named(checkpoint):
    (checkpoint / "other.json").write_text("{}")
    (checkpoint / "bundle.json").write_text(json.dumps({"format_version": 1, "policy": "mem0", "config": {}}))
    number = np.zeros(2, np.float32)
    write_pt(checkpoint / "both.pt", {"state_dict": {"encoder.a": number, "model.visual.b": number}})
    write_pt(checkpoint / "none.pt", {"state_dict": {"resnet.a": number}})
    codes, said = run(checkpoint, "a.pt bundle --config lab.json", *CANNOT)
    assert codes == [0] + [1] * len(CANNOT)
    assert [message for message in CANNOT.values() if message not in said] == []
    assert not (checkpoint / "out").exists()
    assert not (checkpoint / "hf").exists()
