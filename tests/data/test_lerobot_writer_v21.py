"""Recording LeRobot v2.1 datasets: one file an episode, metadata as the lerobot library writes it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA, LENGTHS, NULLS, episode_frames, read_code

from mem0_jax.data import lerobot_writer_v21
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import staged_features
from mem0_jax.data.lerobot_writer_v21 import LeRobotWriterV21


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> LeRobotDataset:
    root = tmp_path_factory.mktemp("written") / "dataset"
    with LeRobotWriterV21(root, 10, staged_features(64, 96), "planar") as writer:
        for e, length in enumerate(LENGTHS):
            writer.add_episode(episode_frames(e, length, null_frames=NULLS.get(e, ())), f"task {e % 2} é")
    return LeRobotDataset(root)


def test_round_trip(written, recorded):
    assert written.version == "v2.1"
    assert [e.tasks for e in written.episodes] == [(f"task {e % 2} é",) for e in range(len(LENGTHS))]
    assert written.tasks() == {0: "task 0 é", 1: "task 1 é"}
    for key in ("observation.state", "action", "subtask_end", "episode_id", "timestamp", "index", "task_index"):
        np.testing.assert_array_equal(written.column(key), recorded.column(key))
    ids, texts = written.texts("subtask")
    expected_ids, expected_texts = recorded.texts("subtask")
    assert [texts[i] for i in ids] == [expected_texts[i] for i in expected_ids]
    for e in written.episodes:
        video = written.open_video(e, CAMERA)
        assert [read_code(image) for image in video.read(0, e.length)] == [(e.index, i) for i in range(e.length)]
        video.close()


def test_files_and_metadata_equal_those_of_the_lerobot_library(tmp_path):
    root, theirs = tmp_path / "ours", ASSETS / "lerobot_v21"
    real = LeRobotDataset(theirs)
    ids, texts = real.texts("subtask")
    with LeRobotWriterV21(root, 30, staged_features(240, 320), "aloha_synth") as writer:
        for e in real.episodes:
            rows = slice(e.start, e.start + e.length)
            numbers = ("observation.state", "action", "subtask_end", "episode_id")
            frames: dict = {key: real.column(key)[rows] for key in numbers}
            frames |= {"subtask": [texts[i] for i in ids[rows]], CAMERA: np.zeros((e.length, 240, 320, 3), np.uint8)}
            writer.add_episode(frames, e.tasks[0])
    assert json.loads((root / "meta/info.json").read_text()) == json.loads((theirs / "meta/info.json").read_text())
    for name in ("episodes.jsonl", "tasks.jsonl"):
        assert (root / "meta" / name).read_text() == (theirs / "meta" / name).read_text()
    names = {path.relative_to(root) for path in root.rglob("*.*")}
    assert names == {path.relative_to(theirs) for path in theirs.rglob("*.*")}
    for path in (theirs / "data").rglob("*.parquet"):
        table = pq.read_table(root / path.relative_to(theirs)).replace_schema_metadata()
        assert table.equals(pq.read_table(path).replace_schema_metadata())
    ours_rows, their_rows = (
        [json.loads(line) for line in (folder / "meta/episodes_stats.jsonl").read_text().splitlines()]
        for folder in (root, theirs)
    )
    for ours, expected in zip(ours_rows, their_rows, strict=True):
        assert ours["stats"].keys() == expected["stats"].keys()
        for key in expected["stats"]:
            assert ours["stats"][key].keys() == expected["stats"][key].keys()
            for name, value in expected["stats"][key].items():
                assert np.shape(ours["stats"][key][name]) == np.shape(value)
                if key != CAMERA:  # black here
                    np.testing.assert_allclose(ours["stats"][key][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("episodes", [4, 5])
def test_chunks(tmp_path, monkeypatch, episodes):
    monkeypatch.setattr(lerobot_writer_v21, "CHUNKS_SIZE", 2)
    monkeypatch.setattr("mem0_jax.data.lerobot_writer.CHUNKS_SIZE", 2)
    with LeRobotWriterV21(tmp_path / "set", 10, staged_features(64, 96), None) as writer:
        for e in range(episodes):
            writer.add_episode(episode_frames(e, 2), "task")
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["total_chunks"], info["total_videos"]) == ({4: 2, 5: 3}[episodes], episodes)
    assert (info["chunks_size"], info["robot_type"]) == (2, None)
    dataset = LeRobotDataset(tmp_path / "set")
    assert [str(e.data_path).split("chunk-")[1][:3] for e in dataset.episodes] == ["000", "000", "001", "001", "002"][
        :episodes
    ]
    np.testing.assert_array_equal(dataset.column("episode_id"), np.repeat(np.arange(episodes), 2))


def test_nothing_appears_after_a_failure(tmp_path):
    def record() -> None:
        with LeRobotWriterV21(tmp_path / "set", 10, staged_features(64, 96), "planar") as writer:
            writer.add_episode(episode_frames(0, 4), "task")
            raise RuntimeError("robot fell")

    with pytest.raises(RuntimeError, match="robot fell"):
        record()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.lerobot
def test_the_lerobot_library_reads_it(written):
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    if module.CODEBASE_VERSION != "v2.1":
        pytest.skip(f"this lerobot reads {module.CODEBASE_VERSION}")
    theirs = module.LeRobotDataset("local/written", root=written.root, video_backend="pyav")
    assert (len(theirs), theirs.num_episodes) == (written.num_frames, len(LENGTHS))
    for e in written.episodes:
        item = theirs[e.start + e.length - 1]
        np.testing.assert_array_equal(item["action"].numpy(), written.column("action")[e.start + e.length - 1])
        assert item["task"] == e.tasks[0]
        image = (item[CAMERA].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        assert read_code(image) == (e.index, e.length - 1)
