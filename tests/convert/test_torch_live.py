"""What we export, loaded by torch and transformers themselves."""

from pathlib import Path

import numpy as np
import pytest

from mem0_jax.cli import main
from mem0_jax.convert.sources import open_source

GOLDEN = Path(__file__).parents[1] / "model" / "assets" / "tiny_a"

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    assert main(["convert", str(GOLDEN / "initial.pt"), str(out), "--config", str(GOLDEN / "config.json")]) == 0
    return out


def test_a_state_dict_that_loads_strictly(bundle, tmp_path):
    torch = pytest.importorskip("torch")
    assert main(["convert", str(bundle), str(tmp_path / "back.pt"), "--to", "torch"]) == 0
    ours = torch.load(tmp_path / "back.pt", weights_only=True)["model_state_dict"]
    theirs = torch.load(GOLDEN / "initial.pt", weights_only=False)["model_state_dict"]
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name
    table = "qwen_model.model.model.language_model.embed_tokens.weight"
    assert ours["qwen_model.model.lm_head.weight"].data_ptr() == ours[table].data_ptr()


def test_a_folder_that_transformers_loads(bundle, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    assert main(["convert", str(bundle), str(tmp_path / "hf"), "--to", "safetensors"]) == 0
    model, notes = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    source = open_source(GOLDEN / "initial.pt").tensors
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), source[f"qwen_model.model.{name}"].read(), err_msg=name)
