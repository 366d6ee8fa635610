"""Reading packed datasets: without any library, over the net, and when they are damaged or hostile."""

import contextlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import time
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from episodes import CAMERA, read_code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem0_jax.data import packed_format
from mem0_jax.data.files import DatasetError, MissingFile
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.pack import pack
from mem0_jax.data.packed import PackedDataset, PackedPictureError, open_dataset

pytest.importorskip("array_record.python.array_record_module", reason="packing needs mem0-jax[pack]")


@pytest.fixture(scope="module")
def original(recorded, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "blocks"
    pack(recorded, out, shard_mib=0.06)
    return out


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "blocks")


def read(folder, episode=3, frame=4):
    dataset = PackedDataset(folder)
    return dataset.open_frames(CAMERA).read_frames(dataset.episodes[episode], np.array([frame]))[0]


def shard_of(folder):
    """The shard that `read` reads from."""
    return folder / PackedDataset(folder).episodes[3].shard.name


def edit(folder, change):
    manifest = json.loads((folder / "packed.json").read_text())
    change(manifest)
    (folder / "packed.json").write_text(json.dumps(manifest))


def places(folder):
    """The index of the pictures, to be changed in place."""
    return np.memmap(folder / "pictures/000.bin", "<i8", "r+").reshape(-1, 3)


READ_ALONE = """
import sys
for name in ("array_record", "tensorflow_datasets", "tensorflow", "torch", "jax"):
    sys.modules[name] = None
import numpy as np
from mem0_jax.data.packed import PackedDataset
dataset = PackedDataset(sys.argv[1])
reader = dataset.open_frames(dataset.cameras[0])
print(sum(int(reader.read_frames(e, np.arange(e.length)).shape[0]) for e in dataset.episodes))
"""


def test_reading_needs_no_library(original, recorded):
    done = subprocess.run([sys.executable, "-c", READ_ALONE, original], capture_output=True, text=True, check=True)
    assert int(done.stdout) == recorded.num_frames


def test_a_dataset_can_be_pickled_and_moved(folder, tmp_path):
    dataset = pickle.loads(pickle.dumps(PackedDataset(folder)))
    reader = dataset.open_frames(CAMERA)
    assert read_code(reader.read_frames(dataset.episodes[5], np.array([3]))[0]) == (5, 3)
    folder.rename(tmp_path / "elsewhere")
    assert read_code(read(tmp_path / "elsewhere")) == (3, 4)


def test_shards_are_read_over_the_net(original):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(str(original), "/packed", recursive=True)
    assert read_code(read("memory://packed")) == (3, 4)
    assert isinstance(open_dataset("memory://packed"), PackedDataset)


def test_open_dataset_knows_both(original, recorded):
    assert isinstance(open_dataset(original), PackedDataset)
    assert isinstance(open_dataset(recorded.root), LeRobotDataset)


def test_frames_outside_an_episode(original):
    dataset = PackedDataset(original)
    with pytest.raises(IndexError, match="episode 3: frames 0 to 9 of 9"):
        dataset.open_frames(CAMERA).read_frames(dataset.episodes[3], np.arange(10))
    assert dataset.open_frames(CAMERA).read_frames(dataset.episodes[3], np.arange(0)).shape == (0, 64, 96, 3)


def test_unknown_keys_are_named(original):
    dataset = PackedDataset(original)
    for ask, message in [
        (lambda: dataset.column("subtask"), "no numeric feature 'subtask'"),
        (lambda: dataset.texts("action"), "no text feature 'action'"),
        (lambda: dataset.open_frames("left"), "no camera 'left'"),
    ]:
        with pytest.raises(DatasetError, match=message):
            ask()


# Bytes in a shard


@settings(max_examples=60)
@given(st.integers(1, 300_000), st.data())
def test_logical_offsets_skip_the_block_headers(size, data):
    logical = np.random.default_rng(size).bytes(size)
    block = 65536 - 24
    file = io.BytesIO(b"".join(b"\xee" * 24 + logical[at : at + block] for at in range(0, size, block)))
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    assert packed_format.read_logical(file, start, end - start) == logical[start:end]
    assert packed_format.read_logical(file, start, size + 10 - start)[: size - start] == logical[start:]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 150_000), min_size=1, max_size=40))
def test_records_are_found_where_the_library_put_them(tmp_path_factory, sizes):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path_factory.mktemp("records") / "shard"
    records = [np.random.default_rng(i).bytes(size) for i, size in enumerate(sizes)]
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    with path.open("rb") as file:
        offsets = packed_format.record_offsets(file, sizes)
        assert [packed_format.read_logical(file, o, s) for o, s in zip(offsets, sizes)] == records


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0, 1, 127, 128, 129, 16383, 16384, 40_000]), min_size=2, max_size=2), st.integers(1, 200)
)
def test_records_are_examples(sizes, key_size):
    tfds = pytest.importorskip("tensorflow_datasets")
    values = {"k" * key_size: b"a" * sizes[0], "other": b"b" * sizes[1]}
    record, starts = packed_format.encode_example([(key.encode(), value) for key, value in values.items()])
    features = tfds.features.FeaturesDict({key: tfds.features.Text() for key in values})
    assert features.deserialize_example_np(record) == values
    assert [record[at : at + len(value)] for at, value in zip(starts, values.values())] == list(values.values())


@pytest.mark.parametrize("options", ["group_size:1,zstd:3", "group_size:4,uncompressed"])
def test_other_ways_of_writing_are_noticed(tmp_path, options):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "shard"), options)
    for _ in range(8):
        writer.write(b"x" * 5000)
    writer.close()
    with (tmp_path / "shard").open("rb") as file, pytest.raises(ValueError, match="not an uncompressed chunk"):
        packed_format.record_offsets(file, [5000] * 8)


# Damage


def test_a_truncated_shard_is_named(folder):
    shard = shard_of(folder)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(PackedPictureError, match=r"episode 3, frame 4 .*array_record.*truncated"):
        read(folder)


def test_every_flipped_byte_of_a_picture_is_noticed(folder):
    shard, row = shard_of(folder), PackedDataset(folder).episodes[3].start + 4
    offset, size, _ = places(folder)[row].tolist()
    good = shard.read_bytes()
    blocks, rest = divmod(offset, 65536 - 24)
    for at in range(0, size, 97):
        bad = bytearray(good)
        bad[(blocks + (rest + at) // 65512) * 65536 + 24 + (rest + at) % 65512] ^= 1
        shard.write_bytes(bad)
        with pytest.raises(PackedPictureError, match="not those that were packed"):
            read(folder)
    shard.write_bytes(good)
    assert read_code(read(folder)) == (3, 4)


def test_a_missing_shard_is_named(folder):
    shard_of(folder).unlink()
    with pytest.raises(MissingFile, match=r"episode 3: shard .* is missing"):
        read(folder)
    assert read_code(read(folder, 0, 0)) == (0, 0)


@pytest.mark.parametrize("entry", [(-1, 100, 0), (0, -5, 0), (0, 0, 0), (0, 2**40, 0), (2**62, 1000, 0)])
def test_impossible_places_are_refused(folder, entry):
    places(folder)[:] = entry
    with pytest.raises(PackedPictureError, match="episode 3, frame 4"):
        read(folder)


def plant(folder, data):
    """Let every picture be `data`, with its right CRC, in a shard of its own."""
    shard = shard_of(folder)
    shard.write_bytes(bytes(24) + data.ljust(60_000, b"\0"))
    places(folder)[:] = (0, len(data), zlib.crc32(data))


def jpeg(height, width):
    return cv2.imencode(".jpg", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def test_what_is_decoded_is_a_jpeg_of_the_declared_size(folder):
    good = jpeg(64, 96)
    plant(folder, good)
    assert np.abs(read(folder).astype(int) - 90).max() <= 1
    size = (64).to_bytes(2, "big") + (96).to_bytes(2, "big")
    assert size in good
    bomb = good.replace(size, 2 * (25_000).to_bytes(2, "big"), 1)
    png = cv2.imencode(".png", np.zeros((64, 96, 3), np.uint8))[1].tobytes()
    for data in (bomb, png, jpeg(96, 64), good[:30], good[:2], b"\xff\xd8" + b"\xff\xe0\x00\x00" * 9, b"\xff" * 500):
        plant(folder, data)
        before = time.process_time()
        with pytest.raises(PackedPictureError, match="expected a JPEG of 64x96"):
            read(folder)
        assert time.process_time() - before < 0.3  # nobody decodes 600 million pixels to find out


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_for_a_picture_end_in_our_error(folder, data):
    raw = bytearray(jpeg(64, 96))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    plant(folder, bytes(raw))
    with contextlib.suppress(PackedPictureError):
        assert read(folder).shape == (64, 96, 3)


@pytest.mark.parametrize("size", [-1, 1])
def test_files_of_another_size_are_refused(folder, size):
    column = folder / "columns/000.bin"
    column.write_bytes((column.read_bytes() + b"x")[: column.stat().st_size + size])
    with pytest.raises(DatasetError, match=r"columns/000.bin \(column observation.state\) has \d+ bytes; expected"):
        PackedDataset(folder).column("observation.state")
    column.unlink()
    with pytest.raises(MissingFile, match=r"columns/000.bin .* is missing"):
        PackedDataset(folder).column("observation.state")


def test_text_numbers_must_be_known(folder):
    edit(folder, lambda m: [c["texts"].clear() for c in m["columns"] if c["key"] == "subtask"])
    with pytest.raises(DatasetError, match=r"subtask.* names texts that packed.json does not hold"):
        PackedDataset(folder).texts("subtask")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "format is 2, but this version reads 1"),
        (lambda m: m.pop("frames"), "frames is 'None'"),
        (lambda m: m.update(frames=True), "frames is 'True'"),
        (lambda m: m.update(frames=59), "59 frames in all"),
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), "leads outside the dataset"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), "leads outside the dataset"),
        (lambda m: m["shards"].pop(), "disagree on the number of episodes"),
        (lambda m: m.update(shards=7), "shards is '7'"),
        (lambda m: m.update(shards=[7]), "shards holds something else than objects"),
        (lambda m: m["episodes"]["length"].__setitem__(0, -1), "positive lengths"),
        (lambda m: m["episodes"]["length"].__setitem__(0, 1e9), "length holds something else than integers"),
        (lambda m: m["episodes"]["index"].reverse(), "ascending indices"),
        (lambda m: m["cameras"][0].update(height=10**6), "expected up to 8192"),
        (lambda m: m["cameras"][0].update(width=0), "width is 0"),
        (lambda m: m["columns"][0].update(dtype="object"), "are no column of numbers"),
        (lambda m: m["columns"][0].update(dtype="O,O"), "are no column of numbers"),
        (lambda m: m["columns"][0].update(shape=[10**30]), "are no column of numbers"),
    ],
)
def test_a_bad_description_is_explained(folder, change, message):
    edit(folder, change)
    with pytest.raises(DatasetError, match=message):
        PackedDataset(folder)


def test_a_description_is_needed(folder):
    (folder / "packed.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        PackedDataset(folder)
    (folder / "packed.json").unlink()
    with pytest.raises(MissingFile, match=r"packed\.json is missing"):
        PackedDataset(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_description_ends_in_our_error(original, tmp_path, data):
    """One value anywhere in packed.json is replaced by any other."""
    manifest = json.loads((original / "packed.json").read_text())
    node: Any = manifest
    deeper = True
    while deeper:
        parent, key = node, data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node = parent[key]
        deeper = isinstance(node, dict | list) and node and data.draw(st.booleans())
    parent[key] = data.draw(JSON)
    for name in ("source", "columns", "pictures"):
        if not (tmp_path / name).exists():
            shutil.copytree(original / name, tmp_path / name)
    (tmp_path / "packed.json").write_text(json.dumps(manifest))
    with contextlib.suppress(DatasetError):
        dataset = PackedDataset(tmp_path)
        for column in json.loads((original / "packed.json").read_text())["columns"]:
            (dataset.texts if "texts" in column else dataset.column)(column["key"])
        dataset.open_frames(CAMERA)


def test_lanes_play_on_past_a_damaged_shard(folder):
    shard = shard_of(folder)
    shard.write_bytes(shard.read_bytes()[:100])
    dataset = PackedDataset(folder)
    damaged = {e.index for e in dataset.episodes if e.shard == shard}
    assert 3 in damaged < {e.index for e in dataset.episodes}
    source = LaneSource(dataset, lanes=2, frames=4, horizon=2, seed=0, text="task")
    played = {int(e) for i in range(60) for e in source[i]["episode_index"]}
    assert set(source.damaged) == damaged
    assert all("truncated" in text for text in source.damaged.values())
    assert played == {e.index for e in dataset.episodes} - damaged
