"""Recording LeRobot datasets: what is written is what is read, and nothing appears half-written."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA, LENGTHS, NULLS, episode_frames, read_code

from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.lerobot_writer_v21 import LeRobotWriterV21
from mem0_jax.data.video import EpisodeVideo
from mem0_jax.data.video_join import EncodedVideo

SMALL = staged_features(64, 96)


def test_round_trip(recorded):
    assert recorded.version == "v3.0"
    assert recorded.fps == 10
    assert [e.length for e in recorded.episodes] == list(LENGTHS)
    ids, texts = recorded.texts("subtask")
    for e in recorded.episodes:
        rows = slice(e.start, e.start + e.length)
        expected = episode_frames(e.index, e.length, null_frames=NULLS.get(e.index, ()))
        for key in ("observation.state", "action", "subtask_end", "episode_id"):
            np.testing.assert_array_equal(recorded.column(key)[rows], expected[key])
        assert [texts[i] for i in ids[rows]] == expected["subtask"]
        assert e.tasks == (f"task {e.index % 2}",)
        np.testing.assert_allclose(recorded.column("timestamp")[rows], np.arange(e.length) / 10, rtol=1e-6)
        video = recorded.open_video(e, CAMERA)
        images = video.read(0, e.length)
        video.close()
        assert [read_code(image) for image in images] == [(e.index, i) for i in range(e.length)]
        error = np.abs(images.astype(int) - expected[CAMERA])
        assert error.mean() < 4  # sharp cell borders at crf 30
    np.testing.assert_array_equal(recorded.column("index"), np.arange(sum(LENGTHS)))


def test_statistics_are_those_of_the_data(recorded):
    stats = json.loads((recorded.root / "meta/stats.json").read_text())
    state = recorded.column("observation.state").astype(np.float64)
    for name, value in {"min": state.min(0), "max": state.max(0), "mean": state.mean(0), "std": state.std(0)}.items():
        np.testing.assert_allclose(stats["observation.state"][name], value, rtol=1e-12)
    for name, q in {"q01": 0.01, "q50": 0.5, "q99": 0.99}.items():
        np.testing.assert_allclose(stats["observation.state"][name], np.quantile(state, q, axis=0), rtol=1e-12)
    pictures = np.concatenate([episode_frames(e, n)[CAMERA] for e, n in enumerate(LENGTHS)]).reshape(-1, 3) / 255
    camera = stats[CAMERA]
    for name, value in {"min": pictures.min(0), "mean": pictures.mean(0), "std": pictures.std(0)}.items():
        np.testing.assert_allclose(np.ravel(camera[name]), value, rtol=1e-9)
    np.testing.assert_allclose(np.ravel(camera["q90"]), np.quantile(pictures, 0.9, axis=0, method="inverted_cdf"))
    assert np.shape(camera["max"]) == (3, 1, 1)
    assert "subtask" not in stats
    row = pq.read_table(recorded.root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[3]
    rows = slice(recorded.episodes[3].start, recorded.episodes[3].start + LENGTHS[3])
    np.testing.assert_allclose(row["stats/observation.state/mean"], state[rows].mean(0), rtol=1e-12)
    assert row["stats/action/count"] == [LENGTHS[3]]


def test_schema_equals_that_of_the_lerobot_library(tmp_path):
    root = tmp_path / "ours"
    with LeRobotWriter(root, 30, staged_features(240, 320), "aloha_synth") as writer:
        frames = episode_frames(0, 3) | {CAMERA: np.zeros((3, 240, 320, 3), np.uint8)}
        writer.add_episode(frames, "cover_blocks")
    theirs = ASSETS / "lerobot_v30"
    for file in ("data/chunk-000/file-000.parquet", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        ours_types, their_types = (
            {field.name: str(field.type) for field in pq.read_schema(folder / file)} for folder in (root, theirs)
        )
        assert ours_types == their_types
    info, expected = (json.loads((folder / "meta/info.json").read_text()) for folder in (root, theirs))
    assert info.keys() == expected.keys()
    assert info["features"].keys() == expected["features"].keys()
    for key, feature in expected["features"].items():
        assert {k: info["features"][key][k] for k in ("dtype", "shape", "names")} == {
            k: feature[k] for k in ("dtype", "shape", "names")
        }
    for key in ("data_path", "video_path", "codebase_version", "chunks_size"):
        assert info[key] == expected[key]
    stats, their_stats = (json.loads((folder / "meta/stats.json").read_text()) for folder in (root, theirs))
    assert {key: set(value) for key, value in stats.items()} == {key: set(value) for key, value in their_stats.items()}
    names = pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"]
    assert json.loads(names)["index_columns"] == ["task"]


def test_every_episode_starts_on_a_keyframe(recorded):
    path = recorded.root / "videos" / CAMERA / "chunk-000/file-000.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        step = round(1 / (10 * stream.time_base))
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
        assert [pts for pts, _ in packets] == [i * step for i in range(sum(LENGTHS))]
        keyframes = {pts // step for pts, is_keyframe in packets if is_keyframe}
    assert {e.start for e in recorded.episodes} <= keyframes


def test_files_roll_over(tmp_path):
    root = tmp_path / "rolled"
    with LeRobotWriter(root, 10, SMALL, "planar", data_mb=0.012, video_mb=0.02) as writer:
        for e in range(12):
            writer.add_episode(episode_frames(e, 40), "task")
    dataset = LeRobotDataset(root)
    data_files = [e.data_path for e in dataset.episodes]
    video_files = [e.videos[CAMERA].path for e in dataset.episodes]
    assert len(set(data_files)) > 1
    assert len(set(video_files)) > 1
    for e in dataset.episodes:
        video = dataset.open_video(e, CAMERA)
        assert [read_code(image) for image in video.read(0, e.length)] == [(e.index, i) for i in range(e.length)]
        video.close()
    np.testing.assert_array_equal(dataset.column("episode_id"), np.repeat(np.arange(12), 40))


def test_nothing_appears_before_finalize_or_after_a_failure(tmp_path):
    root = tmp_path / "set"

    def record(*, falls: bool) -> None:
        with LeRobotWriter(root, 10, SMALL, "planar") as writer:
            writer.add_episode(episode_frames(0, 4), "task")
            assert not root.exists()
            if falls:
                raise RuntimeError("robot fell")

    with pytest.raises(RuntimeError, match="robot fell"):
        record(falls=True)
    assert list(tmp_path.iterdir()) == []
    record(falls=False)
    assert list(tmp_path.iterdir()) == [root]
    with pytest.raises(FileExistsError, match="exists"):
        LeRobotWriter(root, 10, SMALL, "planar")


def change(key, value):
    return lambda frames: frames.__setitem__(key, value(frames[key]))


def with_nan(x):
    x = x.copy()
    x[2, 5] = np.nan
    return x


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda frames: frames.pop("action"), r"missing features \['action'\]"),
        (lambda frames: frames.__setitem__("force", np.zeros(6)), r"unknown features \['force'\]"),
        (change("action", lambda x: x[:-1]), "same, positive number of frames"),
        (change("action", lambda x: x[:, :14]), r"'action': expected \[N, 16\], got \[6, 14\]"),
        (change("observation.state", with_nan), r"'observation\.state': expected finite"),
        (change("subtask_end", lambda x: x + 0.5), "'subtask_end': expected finite int32, got float64"),
        (change("subtask", lambda x: list(range(len(x)))), "'subtask': expected a sequence of texts"),
        (change(CAMERA, lambda x: x[:, :32]), r"expected uint8 \[N, \(64, 96, 3\)\], got uint8 \[6, 32, 96, 3\]"),
        (change(CAMERA, lambda x: x / 255), "expected uint8"),
    ],
)
def test_bad_frames_are_refused_by_name_and_leave_the_recording_intact(tmp_path, damage, message):
    root = tmp_path / "set"
    with LeRobotWriter(root, 10, SMALL, "planar") as writer:
        writer.add_episode(episode_frames(0, 4), "task")
        frames = episode_frames(1, 6)
        damage(frames)
        with pytest.raises(ValueError, match=message):
            writer.add_episode(frames, "task")
        writer.add_episode(episode_frames(1, 6), "task")
    assert [e.length for e in LeRobotDataset(root).episodes] == [4, 6]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"timestamp": {"dtype": "float32", "shape": [1]}}, "reserved"),
        ({"a/b": {"dtype": "float32", "shape": [1]}}, "slash"),
        ({"cam": {"dtype": "video", "shape": [63, 96, 3]}}, "even height"),
        ({"x": {"dtype": "complex64", "shape": [2]}}, "complex64"),
    ],
)
def test_bad_features(tmp_path, features, message):
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path / "set", 10, features, "planar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core gets one thread a stage anyway")
def test_the_encoder_has_one_thread_a_stage(tmp_path):
    """With more, pictures overtake each other, and SVT-AV1 loses those that 42 others overtook."""
    threads = Path("/proc/self/task")
    before = len(list(threads.iterdir()))
    with LeRobotWriter(tmp_path / "dataset", 10, SMALL, "planar") as writer:
        writer.add_episode(episode_frames(0, 60), "task")
        assert 10 < len(list(threads.iterdir())) - before < 25


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the encoder leaves scheduling alone")
def test_recording_leaves_the_scheduling_of_all_threads_as_it_is(tmp_path):
    """As root, SVT-AV1 makes them real-time: other programs and the training that follows would starve."""
    before = os.sched_getscheduler(0)
    with LeRobotWriter(tmp_path / "dataset", 10, SMALL, "planar") as writer:
        writer.add_episode(episode_frames(0, 60), "task")
        assert {os.sched_getscheduler(int(task.name)) for task in Path("/proc/self/task").iterdir()} == {before}


@pytest.mark.parametrize("video_mb", [200, 0.002])
def test_encoded_episodes_are_copied_bit_by_bit(tmp_path, video_mb):
    lengths = (7, 1, 12, 40, 3)
    with LeRobotWriter(tmp_path / "set", 10, SMALL, None, video_mb=video_mb) as writer:
        for e, length in enumerate(lengths):
            frames = episode_frames(e, length)
            if e != 2:  # mixed: this one is encoded by the writer, into a file of its own
                path = tmp_path / f"{e}.mp4"
                frames[CAMERA] = EncodedVideo.encode(path, frames[CAMERA], length, fps=10)
                frames[CAMERA].save(tmp_path / f"{e}.json")
                frames[CAMERA] = EncodedVideo.load(tmp_path / f"{e}.json", path)
            writer.add_episode(frames, "task")
    dataset = LeRobotDataset(tmp_path / "set")
    files = [e.videos[CAMERA].path for e in dataset.episodes]
    assert len(set(files)) == (3 if video_mb == 200 else 4)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())[CAMERA]
    assert stats["count"] == [sum(lengths)]
    for e in dataset.episodes:
        images = read_all(e.videos[CAMERA].path, e.videos[CAMERA].first_frame, e.length)
        assert [read_code(image) for image in images] == [(e.index, i) for i in range(e.length)]
        if e.index != 2:
            np.testing.assert_array_equal(images, read_all(tmp_path / f"{e.index}.mp4", 0, e.length))


def read_all(path, first: int, length: int) -> np.ndarray:
    video = EpisodeVideo(path, fps=10, first_frame=first, length=length, shape=(64, 96), name="episode")
    images = video.read(0, length)
    video.close()
    return images


def test_encoded_episodes_that_do_not_fit_are_refused(tmp_path):
    frames = episode_frames(0, 6)
    video = EncodedVideo.encode(tmp_path / "v.mp4", frames[CAMERA], 6, fps=10)
    slow = EncodedVideo.encode(tmp_path / "slow.mp4", frames[CAMERA], 6, fps=5).path
    for version in (LeRobotWriter, LeRobotWriterV21):
        damaged = {
            "expected 64x96": replace(video, height=32),
            "holds 6 pictures; expected 7": replace(video, frames=7),
            "64x96 at 30 fps; expected 64x96 at 10 fps": replace(video, fps=30),
            "picture 1 is not shown at 1/10 s": replace(video, path=slow),
            "is not a readable video": replace(video, path=tmp_path / "none.mp4"),
        }
        for message, wrong in damaged.items():
            given = episode_frames(0, len(wrong)) | {CAMERA: wrong}
            with (
                pytest.raises(ValueError, match=message),
                version(tmp_path / "set", 10, SMALL, None) as writer,
            ):
                writer.add_episode(given, "task")
        with version(tmp_path / version.__name__, 10, SMALL, None) as writer:
            with pytest.raises(ValueError, match="holds 6 pictures"):
                writer.add_episode(episode_frames(0, 7) | {CAMERA: replace(video, frames=7)}, "task")
            writer.add_episode(frames | {CAMERA: video}, "task")
        assert LeRobotDataset(tmp_path / version.__name__).num_frames == 6
        shutil.rmtree(tmp_path / version.__name__)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slow.mp4", "v.mp4"]


@pytest.mark.lerobot
def test_the_lerobot_library_reads_the_same_frames(recorded):
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    if module.CODEBASE_VERSION != "v3.0":
        pytest.skip(f"this lerobot reads {module.CODEBASE_VERSION}")
    theirs = module.LeRobotDataset("local/recorded", root=recorded.root, video_backend="pyav")
    assert len(theirs) == recorded.num_frames
    assert theirs.num_episodes == len(recorded.episodes)
    ids, texts = recorded.texts("subtask")
    for e in recorded.episodes:
        video = recorded.open_video(e, CAMERA)
        images = video.read(0, e.length)
        video.close()
        for i in range(e.length):
            row, item = e.start + i, theirs[e.start + i]
            np.testing.assert_array_equal(item["observation.state"].numpy(), recorded.column("observation.state")[row])
            np.testing.assert_array_equal(item["action"].numpy(), recorded.column("action")[row])
            assert item["task"] == e.tasks[0]
            assert item["subtask"] == texts[ids[row]]
            image = (item[CAMERA].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
            assert np.abs(image.astype(int) - images[i]).max() <= 1
