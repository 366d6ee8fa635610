"""EVO1 from LeRobot's folder and its authors' file: the bundle acts as the original did, and goes back unchanged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mem0_jax.cli import main
from mem0_jax.convert.files import Parts
from mem0_jax.convert.hf_safetensors import read_safetensors
from mem0_jax.convert.sources import open_source
from mem0_jax.policies.bundle import load_bundle

EVO1_A = Path(__file__).parents[1] / "model" / "assets" / "evo1_a"
LEROBOT, VLM, AUTHORS = EVO1_A / "pretrained_model", EVO1_A / "vlm", EVO1_A / "upstream"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evo1") / "bundle"
    assert main(["convert", str(LEROBOT), str(out), "--backbone", str(VLM)]) == 0
    return out


def test_a_folder_of_lerobot_becomes_a_bundle_that_acts_as_it_did(bundle):
    found, golden = load_bundle(bundle), np.load(EVO1_A / "golden.npz")
    names = ["observation.images.image", "observation.images.wrist_image"]
    assert [camera.feature for camera in found.inputs.cameras] == names
    assert (found.inputs.normalization, found.inputs.max_length) == ("lerobot_min_max", 1024)
    rows = range(len(golden["batch0/task"]))
    states = golden["batch0/observation.state"]
    frames = [found.transform.recorded([golden[f"batch0/{name}"][row] for name in names], states[row]) for row in rows]
    np.testing.assert_array_equal([frame.state for frame in frames], golden["batch0/preprocessed/observation.state"])
    views = [np.stack([frame.images[view] for frame in frames]) for view in range(2)]
    observation = found.processor.prepare(views, [str(text) for text in golden["batch0/task"]])
    policy, noise = found.policy, 2 * golden["sample/noise_unit"].reshape(len(rows), 6, 8) - 1
    context, _, _ = policy.observe(found.params, (), observation)
    chunk = policy.decide(found.params, context, np.stack([frame.state for frame in frames]), noise)
    actions = np.stack([found.transform.chunk(own, frame.start) for own, frame in zip(np.asarray(chunk), frames)])
    expected = golden["sample/postprocessed_chunk"]
    assert np.linalg.norm(actions - expected) <= 2e-5 * np.linalg.norm(expected)


def test_the_way_back_gives_the_same_bytes(bundle, tmp_path):
    assert main(["convert", str(bundle), str(tmp_path / "there.pt"), "--to", "torch"]) == 0
    ours = open_source(tmp_path / "there.pt").tensors
    theirs = read_safetensors(Parts.open(LEROBOT / "model.safetensors"))
    assert {f"model.{name}" for name in ours} == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.read(), theirs[f"model.{name}"].read())


def test_the_authors_file_becomes_the_same_parameters_in_their_mode(bundle, tmp_path):
    words = ["convert", str(AUTHORS / "mp_rank_00_model_states.pt"), str(tmp_path / "authors")]
    assert main([*words, "--backbone", str(VLM), "--config", str(AUTHORS / "config.json")]) == 0
    mine, theirs = (json.loads((folder / "config.json").read_text()) for folder in (bundle, tmp_path / "authors"))
    assert (mine["config"].pop("mode"), theirs["config"].pop("mode")) == ("masked", "fa2")
    assert (mine["config"].pop("dtype"), theirs["config"].pop("dtype")) == ("float32", "bfloat16")
    assert mine["config"] == theirs["config"]
    one, other = load_bundle(bundle).params, load_bundle(tmp_path / "authors").params
    assert one.keys() == other.keys()
    np.testing.assert_array_equal(one["head"]["pool"]["kernel"], other["head"]["pool"]["kernel"])
    qkv = ("backbone", "vision_tower", "blocks", "attn", "k", "kernel")
    for key in qkv:
        one, other = one[key], other[key]
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalization_mapping": {"STATE": "MIN_MAX", "ACTION": "MEAN_STD"}}, "expected one of MIN_MAX, MEAN_STD"),
        ({"image_resolution": [56, 48]}, "image_resolution: only squares are supported"),
        ({"action_head": "diffusion"}, "action_head: only 'flowmatching' is supported, got 'diffusion'"),
        ({"input_features": 3}, "not a policy of LeRobot"),
        ({"chunk_size": 7}, "head.horizon is 6 by the tensors' shapes, but 7 in"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, capsys, change, message):
    shutil.copytree(LEROBOT, tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    path.chmod(0o600)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main(["convert", str(tmp_path / "policy"), str(tmp_path / "out"), "--backbone", str(VLM)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
