"""Every format of LeRobot datasets: versions, image columns, codecs, remote folders, layouts."""

import io
import json
import pickle
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA, picture, read_code
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import edit_info, write_layout

from mem0_jax.data.files import RemotePath
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.video import VideoError
from mem0_jax.data.video_encode import ONE_THREAD_A_STAGE, same_scheduling
from mem0_jax.errors import UserError

FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.fixture
def copy(tmp_path):
    return lambda name: Path(shutil.copytree(ASSETS / name, tmp_path / name))


# Versions and cameras


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_two_cameras_are_what_lerobots_own_reader_returns(version):
    """One camera is an image column, the other a video; ground truth is lerobot's own output, pixel by pixel."""
    dataset = LeRobotDataset(ASSETS / f"lerobot_{version}_cameras")
    truth = np.load(ASSETS / f"lerobot_{version}_cameras.npz")
    assert dataset.cameras == [FRONT, WRIST]
    for camera in (FRONT, WRIST):
        expected = truth[camera.rsplit(".", 1)[1]]
        for episode in dataset.episodes:
            mine = expected[episode.start : episode.start + episode.length]
            video = dataset.open_video(episode, camera)
            np.testing.assert_array_equal(video.read(0, episode.length), mine)
            for start, count in [(2, 2), (1, 1), (2, 1), (3, 0), (0, 3), (3, 1)]:
                np.testing.assert_array_equal(video.read(start, count), mine[start : start + count])
            with pytest.raises(IndexError, match=f"episode {episode.index} "):
                video.read(episode.length - 1, 2)
            video.close()


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_numbers_of_every_shape_texts_and_statistics(version):
    dataset = LeRobotDataset(ASSETS / f"lerobot_{version}_cameras")
    episode, frame = dataset.column("episode_index"), dataset.column("frame_index")
    touch = dataset.column("touch")
    assert touch.dtype == np.float32
    np.testing.assert_array_equal(touch, np.arange(6).reshape(2, 3) + (10 * episode + frame)[:, None, None])
    assert dataset.column("success").dtype == bool
    np.testing.assert_array_equal(dataset.column("success"), frame % 2 == 1)
    np.testing.assert_array_equal(dataset.column("count"), 100 * episode + frame)
    ids, texts = dataset.texts("note")
    assert [texts[i] for i in ids] == [f"note {i // 2} é" for i in frame]
    state = dataset.column("observation.state").astype(np.float64)
    stats = dataset.statistics()["observation.state"]
    for name, expected in {
        "min": state.min(0),
        "max": state.max(0),
        "mean": state.mean(0),
        "std": state.std(0),
    }.items():
        np.testing.assert_allclose(stats[name], expected, atol=1e-6)
    assert stats["count"] == [15]
    assert dataset.statistics()[FRONT]["mean"].shape == (3, 1, 1)
    second = dataset.episode_statistics()[1]["observation.state"]
    np.testing.assert_allclose(second["max"], state[episode == 1].max(0))


def test_v20_has_one_statistics_file_and_the_layout_of_v21(copy):
    root = copy("lerobot_v21")
    whole = LeRobotDataset(root).statistics()
    (root / "meta/episodes_stats.jsonl").unlink()
    plain = {key: {name: value.tolist() for name, value in stats.items()} for key, stats in whole.items()}
    (root / "meta/stats.json").write_text(json.dumps(plain))
    edit_info(root, codebase_version="v2.0")
    dataset = LeRobotDataset(root)
    assert (dataset.version, dataset.num_frames, dataset.episode_statistics()) == ("v2.0", 435, {})
    np.testing.assert_array_equal(dataset.statistics()["action"]["mean"], whole["action"]["mean"])
    action = LeRobotDataset(ASSETS / "lerobot_v30").column("action").astype(np.float64)
    np.testing.assert_allclose(whole["action"]["mean"], action.mean(0), atol=1e-6)
    np.testing.assert_allclose(whole["action"]["std"], action.std(0), atol=1e-6)


def test_channels_may_come_first(copy):
    root = copy("lerobot_v21")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[CAMERA] |= {"shape": [3, 240, 320], "names": ["channels", "height", "width"]}
    edit_info(root, features=features)
    dataset = LeRobotDataset(root)
    assert dataset.image_shape(CAMERA) == (240, 320)
    dataset.open_video(dataset.episodes[0], CAMERA).close()


def test_files_may_be_links_into_a_cache(tmp_path):
    """A Hugging Face cache keeps files elsewhere and links to them."""
    root = tmp_path / "snapshot"
    for path in (ASSETS / "lerobot_v21").rglob("*.*"):
        link = root / path.relative_to(ASSETS / "lerobot_v21")
        if path.is_file():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    dataset = LeRobotDataset(root)
    dataset.open_video(dataset.episodes[3], CAMERA).close()
    assert dataset.num_frames == 435


# Remote


@pytest.fixture
def remote():
    """Put a folder into fsspec's in-memory file system."""
    system = pytest.importorskip("fsspec").filesystem("memory")

    def put(folder: Path, name: str) -> str:
        for path in folder.rglob("*.*"):
            if path.is_file():
                system.pipe_file(f"/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"memory://{name}"

    put.system = system
    yield put
    system.store.clear()


@pytest.mark.parametrize("name", ["lerobot_v21", "lerobot_v30", "lerobot_v21_cameras", "lerobot_v30_cameras"])
def test_a_remote_dataset_equals_the_local_one(name, remote):
    local, there = LeRobotDataset(ASSETS / name), LeRobotDataset(remote(ASSETS / name, name))
    there = pickle.loads(pickle.dumps(there))
    assert [e.length for e in there.episodes] == [e.length for e in local.episodes]
    np.testing.assert_array_equal(there.column("action"), local.column("action"))
    assert there.tasks() == local.tasks()
    assert there.statistics().keys() == local.statistics().keys()
    for camera in local.cameras:
        for here, away in list(zip(local.episodes, there.episodes))[::2]:
            ours, theirs = local.open_video(here, camera), there.open_video(away, camera)
            count = min(4, here.length)
            for start in (here.length - count, 0):
                np.testing.assert_array_equal(theirs.read(start, count), ours.read(start, count))
            ours.close()
            theirs.close()


def test_remote_problems_name_the_address(remote):
    with pytest.raises(FileNotFoundError, match=r"memory://nowhere/meta/info\.json is missing"):
        LeRobotDataset("memory://nowhere")
    with pytest.raises(UserError, match="unheard://x"):
        LeRobotDataset("unheard://x")
    url = remote(ASSETS / "lerobot_v21", "broken")
    dataset = LeRobotDataset(url)
    remote.system.rm(f"/broken/{str(dataset.episodes[2].videos[CAMERA].path).split('broken/')[1]}")
    with pytest.raises(FileNotFoundError, match=r"episode 2.*memory://broken/.*episode_000002\.mp4 is missing"):
        dataset.open_video(dataset.episodes[2], CAMERA)


@pytest.mark.parametrize("when", ["open", "read"])
def test_a_connection_that_fails_is_one_error_with_the_address(when, remote, monkeypatch):
    url = remote(ASSETS / "lerobot_v30", "flaky")
    dataset = LeRobotDataset(url)
    system = type(remote.system)

    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise RuntimeError("the line is dead")

    if when == "read":
        monkeypatch.setattr(system, "_open", lambda *_, **__: Failing())
    else:
        monkeypatch.setattr(system, "isfile", lambda *_: 1 / 0)
        monkeypatch.setattr(system, "_open", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"memory://flaky.*(dead|division).*check the address"):
        LeRobotDataset(url)
    with pytest.raises(VideoError, match=r"episode 0.*memory://flaky/videos.*(dead|division)"):
        dataset.open_video(dataset.episodes[0], CAMERA)


def test_a_file_address_is_a_folder():
    assert LeRobotDataset(f"file://{ASSETS / 'lerobot_v21'}").root == ASSETS / "lerobot_v21"


def test_a_remote_video_is_read_in_pieces(remote, monkeypatch):
    url = remote(ASSETS / "lerobot_v30", "pieces")
    read = []

    class Counting(io.BytesIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    dataset = LeRobotDataset(url)
    episode = dataset.episodes[5]
    path = episode.videos[CAMERA].path
    data = path.open("rb").read()
    monkeypatch.setattr(RemotePath, "open", lambda self, mode="rb": Counting(data))
    video = dataset.open_video(episode, CAMERA)
    video.read(0, 1)
    video.close()
    assert max(read) < len(data) / 2  # never the whole at once


# Codecs


def encode(path: Path, codec: str, pictures: list[np.ndarray], *, rate: int = 30, gop: int = 250) -> None:
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        more = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"svtav1-params": ONE_THREAD_A_STAGE}}
        options = {"g": str(gop), "crf": "18", **more.get(codec, {})}
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        with same_scheduling():
            stream.codec_context.open()
        for i, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def one_video(
    root: Path, path: Path, length: int, *, fps: int = 30, shape: tuple[int, int] = (64, 96)
) -> LeRobotDataset:
    """The v3.0 set with its video replaced, declared as one episode of `length` frames."""
    shutil.copytree(ASSETS / "lerobot_v30", root)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[CAMERA] |= {"shape": [64, 96, 3]}
    edit_info(root, total_episodes=1, total_frames=length, features=features)
    table = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(table).slice(0, 1).to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0] | {"length": length}]), table)
    data = root / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(data).slice(0, length)
    column = rows.column_names.index("episode_index")
    rows = rows.set_column(column, "episode_index", pa.array([0] * length))
    column = rows.column_names.index("frame_index")
    pq.write_table(rows.set_column(column, "frame_index", pa.array(range(length))), data)
    video = root / "videos" / CAMERA / "chunk-000/file-000.mp4"
    shutil.copy(path, video)
    return LeRobotDataset(root)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg4"])
def test_codecs_with_reordered_frames_and_few_keyframes(tmp_path, codec):
    length = 70
    encode(tmp_path / "a.mp4", codec, [picture(9, i) for i in range(length)], gop=30)
    dataset = one_video(tmp_path / "set", tmp_path / "a.mp4", length)
    video = dataset.open_video(dataset.episodes[0], CAMERA)
    forward = video.read(0, length)
    assert [read_code(image) for image in forward] == [(9, i) for i in range(length)]
    for start, count in [(41, 3), (40, 1), (69, 1), (0, 1), (29, 4)]:
        np.testing.assert_array_equal(video.read(start, count), forward[start : start + count])
    video.close()


def test_of_a_video_with_twice_the_frames_every_second_one_is_read(tmp_path):
    encode(tmp_path / "a.mp4", "libx264", [picture(2, i) for i in range(80)], rate=60)
    dataset = one_video(tmp_path / "set", tmp_path / "a.mp4", 40)
    video = dataset.open_video(dataset.episodes[0], CAMERA)
    assert [read_code(image)[1] for image in video.read(0, 40)] == list(range(0, 80, 2))
    assert read_code(video.read(17, 1)[0]) == (2, 34)
    video.close()


def test_damage_inside_a_video_is_an_error_not_a_guess(tmp_path):
    """H.264 decoders paint over lost parts; such pictures must not reach training."""
    path = tmp_path / "a.mp4"
    encode(
        path, "libx264", [np.random.default_rng(i).integers(0, 255, (64, 96, 3), np.uint8) for i in range(40)], gop=10
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    dataset = one_video(tmp_path / "set", path, 40)
    video = dataset.open_video(dataset.episodes[0], CAMERA)
    with pytest.raises(VideoError, match=r"episode 0 .*damaged"):
        video.read(0, 40)
    video.close()


def test_a_playlist_named_mp4_is_not_followed(tmp_path):
    encode(tmp_path / "a.mp4", "libx264", [picture(0, i) for i in range(10)])
    dataset = one_video(tmp_path / "set", tmp_path / "a.mp4", 10)
    Path(str(dataset.episodes[0].videos[CAMERA].path)).write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    with pytest.raises(VideoError, match="not a readable video"):
        dataset.open_video(dataset.episodes[0], CAMERA)


# Layouts


@st.composite
def layouts(draw):
    return {
        "lengths": draw(st.lists(st.integers(1, 23), min_size=1, max_size=6)),
        "file_of": draw(st.lists(st.integers(0, 2), min_size=6, max_size=6).map(sorted)),
        "group": draw(st.sampled_from([1, 3, 7, 1000])),
        "fixed": draw(st.booleans()),
        "shuffled": draw(st.randoms(use_true_random=False)),
        "version": draw(st.sampled_from(["v2.1", "v3.0"])),
    }


@settings(max_examples=40)
@given(layout=layouts(), data=st.data())
def test_any_layout_of_episodes_gives_every_frame_its_row_and_picture(layout, data, tmp_path_factory):
    root = tmp_path_factory.mktemp("layout") / "set"
    write_layout(root, layout)
    dataset = LeRobotDataset(root)
    expected = [(e, i) for e, length in enumerate(layout["lengths"]) for i in range(length)]
    np.testing.assert_array_equal(dataset.column("x"), expected)
    ids, texts = dataset.texts("note")
    assert [texts[i] for i in ids] == [str(e % 2) for e, _ in expected]
    for episode in dataset.episodes:
        images = dataset.open_video(episode, "cam")
        for _ in range(3):
            start = data.draw(st.integers(0, episode.length - 1))
            count = data.draw(st.integers(1, episode.length - start))
            got = images.read(start, count)
            assert got[:, 0, 0].tolist() == [[episode.index, start + i, 7] for i in range(count)]
        images.close()
