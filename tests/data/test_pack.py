"""Packing: exact columns, close pictures, the same lanes, TFDS, interruption, damage."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from episodes import ASSETS, CAMERA, LENGTHS, read_code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem0_jax import progress
from mem0_jax.cli import main
from mem0_jax.data import packed_format
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter
from mem0_jax.data.pack import PackError, pack, read_columns
from mem0_jax.data.packed import PackedDataset
from mem0_jax.data.pictures import open_frames
from mem0_jax.installed import how_to_install
from mem0_jax.lock import LockedError

pytest.importorskip("array_record.python.array_record_module", reason="packing needs mem0-jax[pack]")


@pytest.fixture(scope="module")
def packed(recorded, tmp_path_factory) -> PackedDataset:
    """`recorded` in shards of about three episodes."""
    out = tmp_path_factory.mktemp("packed") / "blocks"
    pack(recorded, out, shard_mib=0.06)
    return PackedDataset(out)


def texts_of(dataset, key):
    ids, texts = dataset.texts(key)
    return [texts[i] for i in ids]


def assert_same_columns(found, source):
    for column in read_columns(source):
        if column.texts is None:
            expected = source.column(column.key)
            got = found.column(column.key)
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            assert got.tobytes() == expected.tobytes()
        else:
            assert texts_of(found, column.key) == texts_of(source, column.key)


def psnr(a, b):
    """Peak signal-to-noise ratio of each picture, decibels."""
    assert a.shape == b.shape
    return np.array([cv2.PSNR(x, y) for x, y in zip(a, b)])


def all_frames(dataset, camera):
    reader = open_frames(dataset, camera)
    pictures = [reader.read_frames(e, np.arange(e.length)) for e in dataset.episodes]
    reader.close()
    return np.concatenate(pictures)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is packed


def test_datasets_of_lerobot_keep_everything(real, tmp_path):
    result = pack(real, tmp_path / "out", shard_mib=1)
    found = PackedDataset(tmp_path / "out")
    assert_same_columns(found, real)
    assert [(e.index, e.start, e.length, e.tasks) for e in found.episodes] == [
        (e.index, e.start, e.length, e.tasks) for e in real.episodes
    ]
    assert (found.fps, found.robot_type, found.info, found.cameras) == (
        real.fps,
        real.robot_type,
        real.info,
        real.cameras,
    )
    assert found.tasks() == real.tasks()
    statistics, expected = found.statistics(), real.statistics()
    assert statistics.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_equal(statistics[key], values)
    assert psnr(all_frames(found, CAMERA), all_frames(real, CAMERA)).min() > 38
    assert (result.episodes, result.frames) == (len(real.episodes), real.num_frames)
    shards = sorted((tmp_path / "out").glob("*.array_record-*"))
    assert (result.shards, result.bytes) == (len(shards), sum(path.stat().st_size for path in shards))
    assert result.shards > 1


def test_every_picture_is_its_frame(packed):
    reader = packed.open_frames(CAMERA)
    for e, episode in enumerate(packed.episodes):
        for frame in reversed(range(LENGTHS[e])):
            assert read_code(reader.read_frames(episode, np.array([frame]))[0]) == (e, frame)


def test_pictures_are_resized_as_the_lanes_would(recorded, tmp_path):
    pack(recorded, tmp_path / "out", size=(48, 40), quality=100)
    found = PackedDataset(tmp_path / "out")
    assert found.image_shape(CAMERA) == (48, 40)
    assert found.features[CAMERA]["shape"] == [48, 40, 3]
    options = {"lanes": 1, "frames": sum(LENGTHS), "horizon": 1, "seed": 0, "text": "task"}
    resized = LaneSource(recorded, cameras={CAMERA: (48, 40)}, **options)[0]["images"][CAMERA]
    assert psnr(LaneSource(found, **options)[0]["images"][CAMERA], resized).min() > 30


def test_quality_costs_bytes(recorded, tmp_path):
    results = [pack(recorded, tmp_path / str(q), quality=q, shard_mib=1) for q in (30, 95)]
    sizes = [all_sizes(PackedDataset(result.root)) for result in results]
    assert sizes[0] < 0.8 * sizes[1]


def all_sizes(dataset):
    return int(np.fromfile(dataset.root / "pictures/000.bin", "<i8").reshape(-1, 3)[:, 1].sum())


@pytest.mark.parametrize("cache", [False, True])
def test_lanes_over_packed_are_lanes_over_video(recorded, packed, cache):
    options = {"lanes": 3, "frames": 5, "horizon": 4, "seed": 7, "cache_frames": cache}
    video, shards = LaneSource(recorded, **options), LaneSource(packed, **options)
    assert video.fingerprint() == shards.fingerprint()
    assert video.texts == shards.texts
    for i in range(60):
        expected, found = video[i], shards[i]
        assert expected.keys() == found.keys()
        for key in expected.keys() - {"images"}:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
            assert found[key].dtype == expected[key].dtype
        assert psnr(found["images"][CAMERA], expected["images"][CAMERA]).min() > 32


FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": None},
    "action": {"dtype": "float64", "shape": [2], "names": None},
    "flag": {"dtype": "bool", "shape": [1], "names": None},
    "small": {"dtype": "uint8", "shape": [4], "names": None},
    "large": {"dtype": "uint64", "shape": [1], "names": None},
    "half": {"dtype": "float16", "shape": [2], "names": None},
    "note": {"dtype": "string", "shape": [1], "names": None},
    "left": {"dtype": "video", "shape": [16, 24, 3], "names": None},
    "right": {"dtype": "video", "shape": [32, 16, 3], "names": None},
}


def random_episode(rng, length, notes):
    return {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)) * 10.0 ** rng.integers(-100, 36),
        "flag": rng.random(length) < 0.5,
        "small": rng.integers(0, 256, (length, 4), np.uint8),
        "large": rng.integers(0, 2**64, length, np.uint64),
        "half": rng.normal(size=(length, 2)).astype(np.float16),
        "note": [notes[i % len(notes)] for i in range(length)],
        "left": np.full((length, 16, 24, 3), rng.integers(0, 256, 3), np.uint8),
        "right": np.full((length, 32, 16, 3), rng.integers(0, 256, 3), np.uint8),
    }


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    shard_frames=st.integers(1, 30),
    workers=st.integers(1, 4),
    notes=st.lists(st.text(max_size=200), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_layout_comes_back(tmp_path_factory, lengths, shard_frames, workers, notes, seed):
    folder, rng = tmp_path_factory.mktemp("layout"), np.random.default_rng(seed)
    with LeRobotWriter(folder / "source", 10, FEATURES, "planar") as writer:
        for e, length in enumerate(lengths):
            writer.add_episode(random_episode(rng, length, notes), f"task {e % 2} é")
    source = LeRobotDataset(folder / "source")
    result = pack(source, folder / "out", shard_mib=shard_frames * 2000 / 2**20, workers=workers)
    found = PackedDataset(folder / "out")
    assert_same_columns(found, source)
    for camera in ("left", "right"):
        assert psnr(all_frames(found, camera), all_frames(source, camera)).min() > 36
    elements = tfds_source(folder / "out")
    assert len(elements) == sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    assert [i for i, x in enumerate(elements) if x["is_first"]] == starts.tolist()
    assert [i for i, x in enumerate(elements) if x["is_last"]] == [*(starts[1:] - 1).tolist(), sum(lengths) - 1]
    assert_tfds_equals(elements, found)
    assert result.shards == len({e.shard for e in found.episodes})
    shutil.rmtree(folder)


def test_a_dataset_without_pictures(tmp_path):
    features = {key: value for key, value in FEATURES.items() if value["dtype"] != "video"}
    with LeRobotWriter(tmp_path / "source", 10, features, "planar") as writer:
        frames = random_episode(np.random.default_rng(0), 4, ["a"])
        writer.add_episode({key: frames[key] for key in features}, "task")
    pack(LeRobotDataset(tmp_path / "source"), tmp_path / "out")
    found = PackedDataset(tmp_path / "out")
    assert_same_columns(found, LeRobotDataset(tmp_path / "source"))
    assert_tfds_equals(tfds_source(tmp_path / "out"), found)


# TFDS


def tfds_source(folder):
    tfds = pytest.importorskip("tensorflow_datasets")
    return tfds.builder_from_directory(str(folder)).as_data_source("train")


def assert_tfds_equals(elements, found):
    columns = read_columns_of(found)
    pictures = {camera: all_frames(found, camera) for camera in found.cameras}
    for i, element in enumerate(elements):
        assert element.keys() == columns.keys() | pictures.keys() | {"is_first", "is_last"}
        for key, values in columns.items():
            if isinstance(values, list):
                assert element[key].decode() == values[i], key
            else:
                value = np.asarray(element[key])
                assert (value.dtype, value.shape) == (values.dtype, values.shape[1:]), key
                assert value.tobytes() == values[i].tobytes(), key
        for camera, expected in pictures.items():
            # TFDS may decode JPEG with another library: the same within rounding.
            assert np.abs(element[camera].astype(int) - expected[i]).max() <= 4


def read_columns_of(found):
    manifest = json.loads((found.root / "packed.json").read_text())
    return {
        column["key"]: texts_of(found, column["key"]) if "texts" in column else found.column(column["key"])
        for column in manifest["columns"]
    }


def test_tfds_reads_the_same(packed):
    elements = tfds_source(packed.root)
    assert len(elements) == packed.num_frames
    assert_tfds_equals(elements, packed)


def test_tfds_would_describe_the_folder_alike(packed):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(packed.root))
    assert builder.info.name == "blocks"
    assert builder.info.disable_shuffling
    assert builder.info.splits["train"].num_examples == packed.num_frames
    written = json.loads((packed.root / "features.json").read_text())
    assert builder.info.features.to_json()["content"] == written["featuresDict"]


def test_tfds_finds_a_dataset_by_name_and_version(recorded, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pack(recorded, tmp_path / "blocks" / "1.0.0")
    assert len(tfds.data_source("blocks", data_dir=str(tmp_path), split="train")) == recorded.num_frames


# Interruption


PROGRAM = """
import signal, sys
from mem0_jax.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.exit(main(["data", "pack", sys.argv[1], sys.argv[2], "--size", "480x640", "--shard-mib", "0.1", "--workers", "1"]))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    pack(LeRobotDataset(ASSETS / "lerobot_v30"), out, size=(480, 640), shard_mib=0.1)
    return contents(out)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_packing_continues(tmp_path, uninterrupted, stop):
    source, out, partial = ASSETS / "lerobot_v30", tmp_path / "out", tmp_path / ".out.partial"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, source, out], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(partial.glob("unfinished/*.npy")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(stop)
    assert process.wait(120) == (130 if stop == signal.SIGINT else -stop)
    assert not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("out-train*")}
    assert kept
    assert len(kept) < 6
    assert main(["data", "pack", str(source), str(out), "--size", "480x640", "--shard-mib", "0.1"]) == 0
    assert not partial.exists()
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(out) == uninterrupted


def damaged_copy(folder):
    """A v2.1 dataset of which two videos are damaged."""
    shutil.copytree(ASSETS / "lerobot_v21", folder)
    videos = sorted((folder / "videos").rglob("*.mp4"))
    videos[1].write_bytes(videos[1].read_bytes()[: videos[1].stat().st_size // 2])
    videos[4].write_bytes(b"")
    return videos[1], videos[4]


def test_every_damaged_episode_is_named_and_the_rest_kept(tmp_path):
    videos = damaged_copy(tmp_path / "source")
    source, out = LeRobotDataset(tmp_path / "source"), tmp_path / "out"
    with pytest.raises(PackError, match=r"(?s)2 damaged episodes.*\n  episode 1 .*\n  episode 4 "):
        pack(source, out, shard_mib=0.1)
    assert not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial").glob("out-train*")}
    assert len(kept) == 4
    for video in videos:
        shutil.copy(ASSETS / "lerobot_v21" / video.relative_to(source.root), video)
    pack(source, out, shard_mib=0.1)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert psnr(all_frames(PackedDataset(out), CAMERA), all_frames(source, CAMERA)).min() > 38


def test_other_settings_do_not_continue(tmp_path):
    damaged_copy(tmp_path / "source")
    source, out = LeRobotDataset(tmp_path / "source"), tmp_path / "out"
    with pytest.raises(PackError, match="damaged"):
        pack(source, out)
    with pytest.raises(PackError, match="quality was 95, now 80"):
        pack(source, out, quality=80)
    with pytest.raises(PackError, match="the dataset has changed since"):
        pack(LeRobotDataset(ASSETS / "lerobot_v30"), out, quality=95)


def test_one_at_a_time(tmp_path, uninterrupted):
    source, out = ASSETS / "lerobot_v30", tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, source, out], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / ".out.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(LockedError, match=rf"out is in use by process {process.pid} of .*: wait for it, stop it"):
        pack(LeRobotDataset(source), out)
    process.send_signal(signal.SIGCONT)
    assert process.wait(300) == 0
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# The command


def test_command_writes_figures(recorded, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST", 600.0)  # quick work, however slow the machine
    figures = tmp_path / "figures.json"
    arguments = [str(recorded.root), str(tmp_path / "My Blocks"), "--size", "32x48", "--json", str(figures)]
    assert main(["data", "pack", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "7 episodes, 58 frames in 1 shards" in out
    assert err == ""  # no progress bar: not a terminal
    read = json.loads(figures.read_text())
    assert (read["frames"], read["shards"], read["name"]) == (58, 1, "my_blocks")
    assert read["bytes_per_frame"] == read["bytes"] / 58
    assert read["bytes"] == sum(path.stat().st_size for path in (tmp_path / "My Blocks").glob("my_blocks-train*"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--quality", "0"], 1, "quality is 0; expected 1 to 100"),
        (["--workers", "0"], 1, "workers is 0; expected 1 to 256"),
        (["--shard-mib", "nan"], 1, "shard_mib is nan; expected a positive number"),
        (["--size", "0x9"], 1, "size is 0x9; expected 1 to"),
        (["--size", "9"], 2, "expected height x width in pixels"),
        (["--sise", "9x9"], 2, "did you mean '--size'?"),
    ],
)
def test_command_refuses(recorded, tmp_path, capsys, arguments, code, message):
    assert main(["data", "pack", str(recorded.root), str(tmp_path / "out"), *arguments]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_keeps_what_is_there(recorded, tmp_path, capsys):
    assert main(["data", "pack", str(recorded.root), str(tmp_path)]) == 1
    assert "exists; choose another folder" in capsys.readouterr().err
    assert main(["data", "pack", str(tmp_path), str(tmp_path / "out")]) == 1
    assert "info.json is missing" in capsys.readouterr().err


def test_missing_package_is_named(recorded, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    assert main(["data", "pack", str(recorded.root), str(tmp_path / "out")]) == 1
    assert how_to_install("pack") in capsys.readouterr().err


def test_a_full_disk_is_said(recorded, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(PackError, match=r"out-train\.array_record-00000-of-00001"):
            pack(recorded, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out").exists()
    assert pack(recorded, tmp_path / "out").frames == recorded.num_frames


def test_what_was_written_is_read_back(recorded, tmp_path, monkeypatch):
    right = packed_format.record_offsets
    monkeypatch.setattr(packed_format, "record_offsets", lambda *args: [offset + 1 for offset in right(*args)])
    with pytest.raises(PackError, match="reads differently"):
        pack(recorded, tmp_path / "out")
