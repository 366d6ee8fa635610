"""Self-describing policy folders."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny import mem0_bundle

from mem0_jax.errors import UserError
from mem0_jax.eval.rollout import evaluate
from mem0_jax.policies.bundle import Bundle, BundleError, load_bundle, save_bundle

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


def test_bundles_from_before_cameras_were_recorded_mean_the_head_camera(bundle, tmp_path):
    folder = save_bundle(bundle, tmp_path / "bundle")
    description = json.loads((folder / "config.json").read_text())
    assert description["inputs"].pop("camera") == "observation.image.head_camera"
    (folder / "config.json").write_text(json.dumps(description))
    assert load_bundle(folder).inputs == bundle.inputs
    assert load_bundle(folder).inputs.camera == "observation.image.head_camera"


def test_what_is_no_bundle_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"no config\.json"):
        load_bundle(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        load_bundle(tmp_path)


def test_the_same_seeds_give_the_same_episodes_whoever_else_plays(bundle):
    alone = evaluate(bundle, "put_back_block", [7], execute=2, sessions=1, record=1)
    together = evaluate(bundle, "put_back_block", [5, 7, 9], execute=2, sessions=3, record=3)
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
        recording = evaluate(changed, "press_button", [3], execute=2, sessions=1, record=1)[0].recording
        assert recording is not None
        assert max(int((weights > 0).sum()) for weights in recording.attention) == remembered


def test_execute_must_fit_the_chunk(bundle):
    with pytest.raises(UserError, match="between 1 and the policy's horizon 3"):
        evaluate(bundle, "put_back_block", [0], execute=4)
