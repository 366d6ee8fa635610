"""Open-loop evaluation: numbers by hand, and a tiny policy over small recorded datasets."""

import dataclasses
import json
import shutil
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.cli import main
from mem0_jax.commands.eval_openloop import table
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.robot import RMBENCH
from mem0_jax.data.subset import hold_out
from mem0_jax.data.transforms import action_chunk
from mem0_jax.errors import UserError
from mem0_jax.eval.openloop import Replay, classifier, measure, replay
from mem0_jax.eval.openloop_html import page
from mem0_jax.policies.bundle import save_bundle
from mem0_jax.policies.inputs import Camera

CAMERA, LENGTHS = "observation.image.head_camera", (6, 4, 7, 5)
TEXTS = ("press the button", "press the confirm button")


def write(root, *, labels=True, null=(), camera=CAMERA):
    """Four episodes of two subtasks each; the second subtask begins in the middle."""
    features = staged_features(48, 64, camera=camera)
    if not labels:
        del features["subtask_end"]
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, 10, features, "planar") as writer:
        for episode, length in enumerate(LENGTHS):
            t = np.arange(length)
            state = np.sin(0.4 * t[:, None] + np.arange(16) + episode).astype(np.float32)
            state[:, 6] = 0.5  # one that never moves
            frames = {
                "observation.state": state,
                "action": np.concatenate([state[1:], state[-1:]]),
                camera: rng.integers(0, 256, (length, 48, 64, 3), np.uint8),
                "subtask": ["null" if (episode, i) in null else TEXTS[int(i >= length // 2)] for i in t.tolist()],
                "episode_id": np.full(length, episode, np.int32),
            }
            if labels:
                frames["subtask_end"] = ((t == length // 2 - 1) | (t == length - 1)).astype(np.int32)
            writer.add_episode(frames, "press as often as shown, then confirm")
    return root


def to_columns(root):
    """Moves a dataset's pictures from the films into a column of PNG files."""
    dataset = LeRobotDataset(root)
    films = [dataset.open_video(episode, CAMERA).read(0, episode.length) for episode in dataset.episodes]
    coded = [cv2.imencode(".png", picture[..., ::-1])[1].tobytes() for film in films for picture in film]
    pictures = [{"bytes": data, "path": None} for data in coded]
    [path] = (root / "data").rglob("*.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pq.read_table(path).append_column(CAMERA, pa.array(pictures, kind)), path)
    shutil.rmtree(root / "videos")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][CAMERA] = {"dtype": "image", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    (root / "meta/info.json").write_text(json.dumps(info | {"video_path": None}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("openloop") / "dataset")


@pytest.fixture(scope="module")
def shown(bundle, folder):
    """All episodes, two at a time, a chunk at every second frame."""
    dataset = LeRobotDataset(folder)
    return replay(bundle, dataset, dataset.episodes, every=2, parallel=2)


def by_place(found):
    return {(e, f): chunk for e, f, chunk in zip(found.episode, found.frame, found.predicted, strict=True)}


def chunks(values, dim=0):
    """[K, C, 16] that is 0 but for one dimension."""
    out = np.zeros((*np.shape(values), 16), np.float32)
    out[..., dim] = values
    return [np.asarray(chunk) for chunk in out]


def test_errors_by_hand():
    found = Replay(
        predicted=chunks([[1.0, 3.0, 9.0], [2.0, 9.0, 9.0]]),
        recorded=chunks([[1.5, 2.0, 0.0], [1.0, 0.0, 0.0]]),
        is_pad=[np.array([False, False, True]), np.array([False, True, True])],
        state=list(np.full((2, 16), 1.0, np.float32) * (np.arange(16) == 0)),
        episode=[4, 7],
        frame=[0, 0],
        probability=[0.5, 0.5],
    )
    result = measure(found, 0.5)
    [joint] = result["joints"]
    assert joint["name"] == RMBENCH.action.names[0]
    assert joint["mae_by_offset"] == [0.75, 1.0, None]  # (0.5 + 1) / 2; 1; the episodes had ended
    assert joint["mae_hold_by_offset"] == [0.25, 1.0, None]
    assert (joint["mae"], joint["mae_hold"]) == (pytest.approx(2.5 / 3), pytest.approx(0.5))
    assert (result["mae"], result["mae_hold"]) == (joint["mae"], joint["mae_hold"])
    assert result["episodes"] == [{"index": 4, "chunks": 1, "mae": 0.75}, {"index": 7, "chunks": 1, "mae": 1.0}]
    assert result["classifier"] is None
    assert result["broken"] == ""


def test_what_is_not_finite_is_told_and_not_shown(tmp_path):
    values = np.array([[1.0, 3.0], [np.nan, 2.0], [1.0, -np.inf]])
    found = Replay(
        predicted=chunks(values),
        recorded=chunks(np.arange(6.0).reshape(3, 2)),
        is_pad=[np.zeros(2, bool)] * 3,
        state=[np.zeros(16, np.float32)] * 3,
        episode=[4] * 3,
        frame=[0, 1, 2],
        probability=[0.5, np.nan, 0.1],
        label=[0, 1, 0],
    )
    about = {"dataset": "d", "policy": {"bundle": "b", "sha256": "", "provenance": {}}, "settings": {}, "versions": {}}
    result: dict[str, Any] = measure(found, 0.5) | about | {"command": []}
    assert result["broken"].startswith("NaN or infinite: 2 of 3 sampled chunks and 1 of 3 judged frames;")
    html = page(result, found)
    assert result["broken"] in html
    assert ">nan" not in html
    assert "1 episode, 3 frames, 3 chunks" in html
    assert result["broken"] in table(result)
    assert "1 episode, 3 chunks" in table(result)


def test_precision_and_recall_by_hand():
    probability = np.array([0.9, 0.8, 0.8, 0.4, 0.1])
    quality = classifier(probability, np.array([1, 0, 1, 1, 0]), 0.6)
    assert quality is not None
    at = quality["at_threshold"]
    assert (at["precision"], at["recall"], at["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    # Steps at 0.9, 0.8 (two frames at once) and 0.4: precision 1, 2/3, 3/4; recall grows by a third each.
    assert quality["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (quality["positives"], quality["frames"]) == (3, 5)
    last = quality["curve"][-1]
    assert (last["threshold"], last["precision"], last["recall"], last["f1"]) == (0.95, None, 0, 0)
    assert classifier(probability, np.zeros(5, int), 0.6) is None
    assert classifier(probability, np.zeros(0, int), 0.6) is None


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_the_area_under_the_steps_of_thresholds(frames):
    probability, label = (np.array(column) for column in zip(*frames))
    quality = classifier(probability, label.astype(int), 0.5)
    if not label.any():
        assert quality is None
        return
    area, reached = 0.0, 0.0
    for threshold in (0.9, 0.7, 0.5, 0.3, 0.1):
        said = probability >= threshold
        if said.any():
            recall = label[said].sum() / label.sum()
            area, reached = area + (recall - reached) * label[said].mean(), recall
    assert quality is not None
    assert quality["average_precision"] == pytest.approx(area)


def test_every_chunk_stands_beside_what_was_recorded(shown, folder, bundle):
    dataset = LeRobotDataset(folder)
    places = list(zip(shown.episode, shown.frame))
    assert sorted(places) == [(e, f) for e, length in enumerate(LENGTHS) for f in range(0, length, 2)]
    actions, states = dataset.column("action"), dataset.column("observation.state")
    for i, (number, frame) in enumerate(places):
        episode = dataset.episodes[number]
        rows = slice(episode.start, episode.start + episode.length)
        recorded, is_pad = action_chunk(actions[rows], frame, 3)
        np.testing.assert_array_equal(shown.recorded[i], recorded)
        np.testing.assert_array_equal(shown.is_pad[i], is_pad)
        np.testing.assert_array_equal(shown.state[i], states[rows][frame])
        assert shown.predicted[i].shape == (3, 16)
    assert len(shown.probability) == sum(LENGTHS)
    assert sum(shown.label) == 2 * len(LENGTHS)
    names = [joint["name"] for joint in measure(shown, 0.5)["joints"]]
    assert names == [name for i, name in enumerate(RMBENCH.action.names) if i != 6]


def test_chunks_do_not_depend_on_what_is_shown_beside_them(shown, bundle, folder):
    dataset, beside = LeRobotDataset(folder), by_place(shown)
    alone = by_place(replay(bundle, dataset, dataset.episodes[2:3], every=2))
    other = by_place(replay(bundle, dataset, dataset.episodes[2:3], every=2, seed=1))
    assert alone.keys() == {(2, 0), (2, 2), (2, 4), (2, 6)}
    for place, chunk in alone.items():
        np.testing.assert_array_equal(chunk, beside[place])
        assert np.abs(chunk - other[place]).max() > 1e-3


def test_memory_is_emptied_with_subtasks_where_they_are_told(bundle, folder, tmp_path):
    """The task's text alone is one text to its end: the first frame of the second subtask then has a past."""
    dataset = LeRobotDataset(folder)
    twice = [replay(bundle, dataset, dataset.episodes[:1], every=1, text=text) for text in ("subtask", "task")]
    differences = [np.abs(a - b).max() for a, b in zip(*(found.predicted for found in twice), strict=True)]
    assert min(differences) > 1e-4  # another text
    # Without the frames before it, the second subtask looks the same.
    cut = write(tmp_path / "cut", null={(0, i) for i in range(3)})
    short = LeRobotDataset(cut)
    alone = by_place(replay(bundle, short, short.episodes[:1], every=1))
    whole = by_place(twice[0])
    assert alone.keys() == {(0, 3), (0, 4), (0, 5)}
    for place in alone:
        np.testing.assert_allclose(alone[place], whole[place], atol=0.02)  # the films differ by their coding


def test_held_out_episodes_are_those_that_training_leaves_out(bundle_folder, folder, tmp_path, capsys):
    command = ["eval", "openloop", str(folder), "--bundle", str(bundle_folder), "--every", "3"]
    assert main([*command, "--held-out", "2", "--held-out-seed", "5", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out/openloop.json").read_text())
    held_out = [episode.index for episode in hold_out(LeRobotDataset(folder), 2, 5)[1].episodes]
    assert [episode["index"] for episode in result["episodes"]] == held_out
    assert result["frames"] == sum(LENGTHS[i] for i in held_out)
    assert result["settings"]["held_out"] == 2
    assert main([*command, "--held-out", "4"]) == 1
    assert "cannot hold out 4 of 4 episodes" in capsys.readouterr().err


def test_the_command_writes_figures_and_a_page(bundle_folder, folder, tmp_path, capsys):
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    shared = ["--out", str(out), "--json", str(copy), "--episodes", "2", "--every", "2", "--threshold", "0.3"]
    assert main(["eval", "openloop", str(folder), "--bundle", str(bundle_folder), *shared]) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "openloop.json").read_text())
    assert json.loads(copy.read_text()) == result
    assert (result["frames"], result["chunks"], result["horizon"]) == (10, 5, 3)
    assert result["classifier"]["at_threshold"]["threshold"] == 0.3
    assert {"threshold": 0.3, "flow_steps": 2, "text": "subtask", "every": 2}.items() <= result["settings"].items()
    assert f"{result['mae_hold']:.4f}" in (out / "openloop.html").read_text()
    for joint in result["joints"]:
        assert f"{joint['mae']:.4f}" in printed
    page = (out / "openloop.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert f"at {0.3:g}" in page


def test_pictures_in_columns_and_no_labels(bundle, bundle_folder, shown, tmp_path, capsys):
    root = write(tmp_path / "columns", labels=False)
    to_columns(root)
    dataset = LeRobotDataset(root)
    found = replay(bundle, dataset, dataset.episodes[1:2], every=2)
    assert (found.frame, found.label) == ([0, 2], [])
    for place, chunk in by_place(found).items():  # the same pixels, and the texts tell where subtasks end
        np.testing.assert_array_equal(chunk, by_place(shown)[place])
    assert measure(found, 0.5)["classifier"] is None
    command = ["eval", "openloop", str(root), "--bundle", str(bundle_folder), "--episodes", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "the dataset has no positive label" in capsys.readouterr().out
    assert "no positive label" in (tmp_path / "out/openloop.html").read_text()


def test_frames_without_a_subtask_are_left_out(bundle, tmp_path):
    root = write(tmp_path / "null", null={(1, i) for i in range(4)} | {(0, 0)})
    dataset = LeRobotDataset(root)
    found = replay(bundle, dataset, dataset.episodes[:2], every=1)
    assert list(zip(found.episode, found.frame)) == [(0, f) for f in range(1, 6)]
    with pytest.raises(UserError, match="every frame of the chosen episodes is 'null'"):
        replay(bundle, dataset, dataset.episodes[1:2])


def test_a_policy_sees_the_camera_it_was_trained_on_or_says_so(bundle, folder, shown, tmp_path, capsys):
    inputs = dataclasses.replace(bundle.inputs, cameras=(Camera("observation.image.wrist", (32, 32)),))
    wrist = dataclasses.replace(bundle, inputs=inputs)
    root = write(tmp_path / "wrist", camera="observation.images.wrist")  # the same camera, spelt otherwise
    dataset = LeRobotDataset(root)
    for place, chunk in by_place(replay(wrist, dataset, dataset.episodes[:1], every=2)).items():
        np.testing.assert_array_equal(chunk, by_place(shown)[place])
    command = ["eval", "openloop", "--bundle", str(save_bundle(wrist, tmp_path / "bundle")), "--episodes", "1"]
    command += ["--out", str(tmp_path / "out")]
    assert main([*command, str(folder)]) == 1
    error = capsys.readouterr().err
    assert f"trained on 'observation.image.wrist', which this dataset has not; its cameras are ['{CAMERA}']" in error
    assert not (tmp_path / "out").exists()
    assert main([*command, str(folder), "--camera", CAMERA]) == 0
    warning = f"warning: the policy was trained on 'observation.image.wrist' and is shown '{CAMERA}'"
    assert warning in capsys.readouterr().err
    used = json.loads((tmp_path / "out/openloop.json").read_text())["settings"]
    assert (used["camera"], used["trained_camera"]) == (CAMERA, "observation.image.wrist")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--camera", "observation.image.wrist"], 1, "cameras are"),
        (["--text", "global_task"], 1, "global_task"),
        (["--every", "0"], 1, "--every"),
        (["--threshold", "1"], 1, "between 0 and 1"),
        (["--held-out", "1", "--episodes", "1"], 2, "not allowed with"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    bundle_folder, folder, tmp_path, capsys, flags, code, message
):
    command = ["eval", "openloop", str(folder), "--bundle", str(bundle_folder), "--out", str(tmp_path / "out")]
    assert main([*command, *flags]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_folders_are_named(bundle_folder, folder, tmp_path, capsys):
    assert main(["eval", "openloop", str(tmp_path), "--bundle", str(bundle_folder)]) == 1
    assert "info.json" in capsys.readouterr().err
    assert main(["eval", "openloop", str(folder), "--bundle", str(folder)]) == 1
    assert "no config.json" in capsys.readouterr().err
