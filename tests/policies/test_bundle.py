"""Self-describing policy folders."""

import dataclasses
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import mem0_bundle

from mem0_jax.data.robot import RMBENCH, rmbench
from mem0_jax.errors import UserError
from mem0_jax.eval.rollout import evaluate
from mem0_jax.inference.session import Session
from mem0_jax.policies.bundle import Bundle, BundleError, load_bundle, save_bundle
from mem0_jax.policies.inputs import Camera, Inputs

TEXTS = ["put the block back where it was", "press the button", "press the confirm button"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return mem0_bundle(TEXTS, provenance={"by": "test"})


def test_a_bundle_comes_back_equal(bundle, tmp_path):
    loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle"))
    assert loaded.config == bundle.config
    assert loaded.inputs == bundle.inputs
    assert loaded.provenance["by"] == "test"
    assert loaded.tokenizer is not None
    assert bundle.tokenizer is not None
    assert loaded.tokenizer.get_vocab() == bundle.tokenizer.get_vocab()
    jax.tree.map(np.testing.assert_array_equal, loaded.params, bundle.params)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_saving_replaces_an_older_bundle(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "bundle")
    save_bundle(dataclasses.replace(bundle, provenance={"by": "again"}), tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").provenance["by"] == "again"


def test_a_link_to_a_bundle_stays_one(bundle, tmp_path):
    (tmp_path / "latest").symlink_to("v1")
    for steps in (1, 2):
        save_bundle(dataclasses.replace(bundle, provenance={"steps": steps}), tmp_path / "latest")
        assert load_bundle(tmp_path / "v1").provenance["steps"] == steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "v1"]
    assert (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "version 99"),
        ({"policy": "other"}, "'other'"),
        ({"config": {"lambda_actoin": 1.0}}, "lambda_action"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(bundle, tmp_path, change, message):
    folder = save_bundle(bundle, tmp_path / "bundle")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_bundle(folder)


@pytest.fixture
def version_1(tmp_path):
    """A bundle as the first version wrote it, and the actions that it gave after three frames."""
    with tarfile.open(Path(__file__).parent / "assets" / "version_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "bundle", np.load(tmp_path / "actions.npy")


def test_a_bundle_of_the_first_version_acts_as_ever(version_1, tmp_path):
    folder, expected = version_1
    assert json.loads((folder / "config.json").read_text())["format_version"] == 1
    loaded = load_bundle(folder)
    wrist = Camera("observation.images.wrist", (32, 32))
    assert loaded.inputs == Inputs(cameras=(wrist,), deploy_resample="bilinear", max_length=24, robot=RMBENCH)
    again = load_bundle(save_bundle(loaded, tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["format_version"] == 2
    assert again.inputs == loaded.inputs
    session = Session(again)
    session.reset("press the button", seed=3)
    rng = np.random.default_rng(1)
    for _ in range(3):
        image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        session.observe({"observation": {"wrist": {"rgb": image}}, "joint_action": {"vector": rng.uniform(-1, 1, 14)}})
    # Recorded on another processor: sums end in other digits.
    np.testing.assert_allclose(session.act(), expected, rtol=1e-4, atol=1e-4)


def test_what_a_first_version_left_out_means_what_it_meant(version_1):
    folder, _ = version_1
    description = json.loads((folder / "config.json").read_text())
    for inputs, robot in (({}, RMBENCH), ({"normalization": "quantile"}, rmbench("quantile"))):
        (folder / "config.json").write_text(json.dumps(description | {"inputs": inputs}))
        found = load_bundle(folder).inputs
        assert found == Inputs(normalization=inputs.get("normalization", "min_max"), robot=robot)
    assert robot.state.raw == ()


def test_what_is_no_bundle_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"no config\.json"):
        load_bundle(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        load_bundle(tmp_path)


def test_the_same_seeds_give_the_same_episodes_whoever_else_plays(bundle):
    alone = evaluate(bundle, "put_back_block", [7], n_action_steps=2, sessions=1, record=1)
    together = evaluate(bundle, "put_back_block", [5, 7, 9], n_action_steps=2, sessions=3, record=3)
    assert (alone[0].success, alone[0].steps) == (together[1].success, together[1].steps)
    one, same = alone[0].recording, together[1].recording
    assert one is not None
    assert same is not None
    assert len(one.frames) == alone[0].steps
    # Batch sizes change the order of sums, and a closed loop amplifies it: only the beginning must agree to the pixel.
    for before, after in zip(one.frames[:10], same.frames[:10]):
        np.testing.assert_array_equal(before, after)
    remembered = [int((weights > 0).sum()) for weights in one.attention[:7]]
    assert remembered == [0, 1, 2, 3, 4, 4, 4]


def test_staged_tasks_move_on_when_the_classifier_says_so(bundle):
    always = dataclasses.replace(
        bundle.config, classifier=dataclasses.replace(bundle.config.classifier, threshold=1e-9)
    )
    never = dataclasses.replace(
        bundle.config, classifier=dataclasses.replace(bundle.config.classifier, threshold=1 - 1e-9)
    )
    for config, remembered in ((always, 0), (never, 4)):  # each frame after the first opens a subtask, or none
        changed = dataclasses.replace(bundle, config=config)
        recording = evaluate(changed, "press_button", [3], n_action_steps=2, sessions=1, record=1)[0].recording
        assert recording is not None
        assert max(int((weights > 0).sum()) for weights in recording.attention) == remembered


def test_execute_must_fit_the_chunk(bundle):
    with pytest.raises(UserError, match="between 1 and the policy's horizon 3"):
        evaluate(bundle, "put_back_block", [0], n_action_steps=4)
