"""The notebook runs from its first cell to its last, as on a fresh runtime, with a bundle of untrained weights."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "scripts" / "colab_inference.ipynb"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    import jax
    import numpy as np

    from mem0_jax.backbones.qwen3_vl.processor import word_tokenizer
    from mem0_jax.configs.demo import get_config
    from mem0_jax.data.normalize import NormStats
    from mem0_jax.demo.side import policy_config
    from mem0_jax.envs import make
    from mem0_jax.family import policy_family_of
    from mem0_jax.policies.bundle import Bundle, save_bundle
    from mem0_jax.policies.inputs import Camera, Inputs
    from mem0_jax.policies.mem0 import Mem0

    tokenizer = word_tokenizer([make("put_back_block").instruction])
    plain = policy_config(get_config().to_dict(), ("window", "anchor"))
    config = policy_family_of(plain).completed(plain, tokenizer, tokenizer.get_vocab_size(), plain.dtype)
    limits = {"min": np.full(16, -1.0), "max": np.ones(16)}
    inputs = Inputs(cameras=(Camera(size=(64, 64)),), deploy_resample="bilinear", max_length=18)
    params = Mem0(config).init(jax.random.key(0))
    made = Bundle(config, params, NormStats(limits, limits), tokenizer, inputs, {"task": "put_back_block"})
    return save_bundle(made, tmp_path_factory.mktemp("notebook") / "bundle")


def test_the_notebook_holds_no_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
def test_it_runs_and_shows_what_it_promises(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("MEM0_BUNDLE", str(bundle))
    monkeypatch.setenv("MEM0_EPISODES", "2")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # another one would show no pictures
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2  # the action chunk, the attention
    videos = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(videos) == 1
    assert "data:video/mp4;base64," in videos[0]
    text = "".join(output.get("text", "") for output in outputs)
    assert "with memory  solved" in text
    assert "memory cut   solved" in text
