"""Reading LeRobot datasets written by the real library, and refusing damaged ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA

from mem0_jax.data.lerobot import DatasetError, LeRobotDataset
from mem0_jax.data.video import VideoError


@pytest.fixture
def copy(tmp_path):
    def make(version: str) -> Path:
        return Path(shutil.copytree(ASSETS / version, tmp_path / version))

    return make


def barcode(image: np.ndarray) -> tuple[int, int]:
    cells = image[220:236].reshape(16, 16, 20, 3).mean((0, 2, 3)) > 125
    code = int("".join("01"[int(bit)] for bit in cells), 2)
    return code >> 12, code & 4095


def test_columns_equal_the_ground_truth(real, truth):
    assert real.num_frames == 435
    assert real.cameras == [CAMERA]
    assert [e.length for e in real.episodes] == truth["lengths"].tolist()
    for key, name in {"observation.state": "state", "action": "action"}.items():
        assert real.column(key).dtype == np.float32
        np.testing.assert_array_equal(real.column(key), truth[name])
    for key in ("subtask_end", "episode_index", "frame_index"):
        np.testing.assert_array_equal(real.column(key), truth[key])
    for key in ("subtask", "task"):
        ids, texts = real.texts(key)
        assert ids.dtype == np.int32
        assert len(set(texts)) == len(texts)
        assert [texts[i] for i in ids] == truth[key].tolist()
    assert real.episodes[3].tasks == ("swap_blocks → tray é",)


def test_every_frame_of_every_episode_is_the_right_picture(real, truth):
    grid = truth["v21_grid" if real.version == "v2.1" else "v30_grid"]
    for episode in real.episodes:
        video = real.open_video(episode, CAMERA)
        images = video.read(0, episode.length)
        video.close()
        assert [barcode(image) for image in images] == [(episode.index, i) for i in range(episode.length)]
        means = images.reshape(-1, 4, 60, 5, 64, 3).mean((2, 4))
        np.testing.assert_allclose(means, grid[episode.start : episode.start + episode.length], atol=0.01)


def test_any_order_of_reads_gives_the_same_pictures(real):
    episode = real.episodes[2]
    video = real.open_video(episode, CAMERA)
    images = video.read(0, episode.length)
    for start, count in [(10, 3), (13, 1), (5, 0), (14, 2), (63, 1), (0, 2), (33, 31), (33, 1)]:
        np.testing.assert_array_equal(video.read(start, count), images[start : start + count])
    with pytest.raises(IndexError, match=r"episode 2 .*rows 60 to 64"):
        video.read(60, 5)
    np.testing.assert_array_equal(video.read(4, 1)[0], images[4])
    video.close()


def test_unknown_names_list_what_there_is(real):
    with pytest.raises(DatasetError, match=r"'observation\.velocity'.*observation\.state"):
        real.column("observation.velocity")
    with pytest.raises(DatasetError, match="texts"):
        real.column("subtask")
    with pytest.raises(DatasetError, match="column"):
        real.texts("action")
    with pytest.raises(DatasetError, match="head_camera"):
        real.open_video(real.episodes[0], "wrist")


def test_unknown_version(copy):
    root = copy("lerobot_v30")
    edit_info(root, codebase_version="v1.6")
    with pytest.raises(DatasetError, match=r"'v1\.6'.*v2\.1 and v3\.0"):
        LeRobotDataset(root)


def edit_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "template",
    [
        "../../outside/{episode_index:06d}.parquet",
        "data/{episode_index:999999999d}.parquet",
        "data/{episode_index.__class__}.parquet",
    ],
)
def test_path_templates_cannot_leave_the_dataset_or_exhaust_memory(copy, template):
    root = copy("lerobot_v21")
    edit_info(root, data_path=template)
    with pytest.raises(DatasetError, match="template"):
        LeRobotDataset(root)


def test_not_a_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"info\.json"):
        LeRobotDataset(tmp_path)


@pytest.mark.parametrize(
    ("version", "file", "message"),
    [
        ("lerobot_v21", "data/chunk-000/episode_000003.parquet", r"episode 3.*episode_000003\.parquet"),
        ("lerobot_v30", "data/chunk-000/file-000.parquet", r"episodes 0 to 5.*file-000\.parquet"),
        ("lerobot_v30", "meta/tasks.parquet", r"tasks\.parquet"),
        ("lerobot_v30", "meta/episodes/chunk-000/file-000.parquet", "meta/episodes"),
        ("lerobot_v21", "meta/episodes.jsonl", r"episodes\.jsonl"),
    ],
)
def test_missing_files_are_named(copy, version, file, message):
    root = copy(version)
    (root / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        LeRobotDataset(root).texts("task")


@pytest.mark.parametrize("version", ["lerobot_v21", "lerobot_v30"])
def test_missing_video_names_episode_and_file(copy, version):
    root = copy(version)
    dataset = LeRobotDataset(root)
    shutil.rmtree(root / "videos")
    with pytest.raises(FileNotFoundError, match=r"episode 4.*mp4 is missing"):
        dataset.open_video(dataset.episodes[4], CAMERA)


def video_path(dataset: LeRobotDataset, episode: int) -> Path:
    return Path(str(dataset.episodes[episode].videos[CAMERA].path))


def test_unfinished_parquet(copy):
    root = copy("lerobot_v30")
    path = root / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-500])  # the footer is written last
    with pytest.raises(DatasetError, match=r"file-000\.parquet.*unfinished"):
        LeRobotDataset(root)


def test_truncated_video_fails_at_the_first_lost_frame(copy):
    dataset = LeRobotDataset(copy("lerobot_v30"))  # its videos have the index in front, so what is left still opens
    episode = dataset.episodes[5]
    path = video_path(dataset, 5)
    whole = path.read_bytes()
    path.write_bytes(whole[:-15_000])
    video = dataset.open_video(episode, CAMERA)
    assert barcode(video.read(0, 5)[4]) == (5, 4)
    with pytest.raises(VideoError, match=r"episode 5.*before frame \d+ \(row \d+ of 71\)"):
        video.read(5, 66)
    assert barcode(video.read(3, 1)[0]) == (5, 3)
    video.close()
    path.write_bytes(whole[:200])
    with pytest.raises(VideoError, match=r"episode 5.*truncated"):
        dataset.open_video(episode, CAMERA)


def test_truncated_video_with_its_index_at_the_end(copy):
    dataset = LeRobotDataset(copy("lerobot_v21"))
    path = video_path(dataset, 5)
    path.write_bytes(path.read_bytes()[:-15_000])
    with pytest.raises(VideoError, match=r"episode 5.*episode_000005\.mp4.*truncated"):
        dataset.open_video(dataset.episodes[5], CAMERA)


def test_video_with_too_few_frames_and_of_another_size(copy):
    root = copy("lerobot_v21")
    dataset = LeRobotDataset(root)
    shutil.copy(video_path(dataset, 0), video_path(dataset, 1))
    with pytest.raises(VideoError, match=r"episode 1.*47 frames.*frames 0 to 119"):
        dataset.open_video(dataset.episodes[1], CAMERA)
    dataset.features[CAMERA]["shape"] = [480, 640, 3]
    with pytest.raises(VideoError, match=r"240x320.*480x640"):
        dataset.open_video(dataset.episodes[0], CAMERA)


def test_frame_count_mismatch_names_episode_and_file(copy):
    root = copy("lerobot_v21")
    path = root / "data/chunk-000/episode_000002.parquet"
    pq.write_table(pq.read_table(path).slice(0, 60), path)
    with pytest.raises(DatasetError, match=r"episode 2.*64 frames.*episode_000002\.parquet holds 60"):
        LeRobotDataset(root)


def test_info_must_agree_with_the_episode_table(copy):
    root = copy("lerobot_v30")
    edit_info(root, total_frames=500)
    with pytest.raises(DatasetError, match=r"500 frames.*435"):
        LeRobotDataset(root)
