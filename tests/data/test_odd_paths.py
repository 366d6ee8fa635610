"""Folders of any name: libraries take some names for protocols, addresses or patterns."""

import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from episodes import ASSETS, CAMERA, episode_frames, picture, read_code

from mem0_jax.cli import main
from mem0_jax.data.check import check_dataset
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter, staged_features
from mem0_jax.data.video_join import EncodedVideo, JoinedVideo
from mem0_jax.eval.film import Film
from mem0_jax.policies.bundle import save_params
from mem0_jax.store import LeafSpec, StoreError, TreeWriter, open_tree
from mem0_jax.train.checkpoint import Checkpoints

NAMES = [
    "2025-01-01T12:30:00",
    "file:x",
    "data:text,x",
    "concat:a|b",
    "pipe:1",
    "gs:",
    "x%05d %20 100%",
    "[x]*?#{y}~$HOME",
    "~",
    "-dash '\"",
    "zeilen\numbruch ünï 文",
    "back\\slash",
    "x" * 200,
]


@pytest.fixture(params=NAMES)
def name(request, tmp_path, monkeypatch):
    """A folder's name, in the folder that lies above it."""
    monkeypatch.chdir(tmp_path)
    return request.param


def test_datasets_are_read_packed_and_shown(name, tmp_path, capsys):
    shutil.copytree(ASSETS / "lerobot_v21_cameras", name)
    assert not check_dataset(name).findings
    assert main(["data", "pack", "--", name, f"{name}.packed"]) == 0
    assert main(["data", "show", f"--out={name}.html", "--", name]) == 0
    assert "not a readable" not in (tmp_path / f"{name}.html").read_text()
    capsys.readouterr()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name}.packed", f"{name}.html"])


def test_datasets_and_videos_are_written(name, tmp_path):
    folder = Path(name, "set")
    folder.parent.mkdir()
    with LeRobotWriter(folder, 10, staged_features(64, 96), "planar") as writer:
        writer.add_episode(episode_frames(0, 3), "task")
    dataset = LeRobotDataset(folder)
    video = dataset.open_video(dataset.episodes[0], CAMERA)
    assert [read_code(image) for image in video.read(0, 3)] == [(0, 0), (0, 1), (0, 2)]
    video.close()
    joined = JoinedVideo(folder / "joined.mp4")
    joined.append(EncodedVideo.encode(folder / "one.mp4", [picture(1, i) for i in range(2)], 2, fps=10))
    joined.close()
    film = Film(folder / "film.mp4", 64, 96)
    film.append(picture(0, 0))
    film.close()
    assert {"joined.mp4", "one.mp4", "film.mp4"} <= {path.name for path in folder.iterdir()}
    assert os.listdir(tmp_path) == [name]


def write_tree(folder, values):
    TreeWriter(folder, {"a/b": LeafSpec(values.shape, values.dtype)}).write("a/b", values)


def write_params(folder, values):
    save_params(folder.parent, {"a": {"b": jnp.asarray(values)}})


@pytest.mark.parametrize("write", [write_tree, write_params])
def test_parameters_are_written_and_read_or_the_name_is_refused(write, name, tmp_path):
    folder, values = tmp_path / name / "params", np.arange(6, dtype=np.float32).reshape(2, 3)
    folder.parent.mkdir()
    if set(name) & set("\\" if write is write_tree else "*?[\\") or name.endswith(":"):
        with pytest.raises(StoreError, match="cannot take"):
            write(folder, values)
        assert not folder.exists()
    else:
        write(folder, values)
        np.testing.assert_array_equal(open_tree(folder)["a/b"].read(), values)
    assert os.listdir(tmp_path) == [name]


def test_parameters_may_be_moved_under_a_name_that_none_is_written_under(tmp_path):
    values = np.arange(6, dtype=np.float32)
    (tmp_path / "good").mkdir()
    save_params(tmp_path / "good", {"a": jnp.asarray(values)})
    np.testing.assert_array_equal(
        open_tree((tmp_path / "good").rename(tmp_path / "[x]*") / "params")["a"].read(), values
    )


def test_checkpoints_are_refused_where_orbax_would_lose_them(tmp_path):
    with pytest.raises(StoreError, match=r"\[x\].*cannot take '\['"):
        Checkpoints(tmp_path / "[x]", 2)
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text_are_refused(capsys):
    assert main(["data", "check", os.fsdecode(b"caf\xe9")]) == 2
    assert "no UTF-8 text" in capsys.readouterr().err
