"""Datasets from strangers: bad images, tables and templates end in an error at once, and never fill memory."""

import io
import json
import shutil
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS
from layouts import edit_info, png, simple
from PIL import Image

from mem0_jax.data.check import check_dataset
from mem0_jax.data.files import DatasetError
from mem0_jax.data.lerobot import LeRobotDataset


@pytest.fixture
def copy(tmp_path):
    return lambda name: Path(shutil.copytree(ASSETS / name, tmp_path / name))


def replace_cell(root: Path, row: int, cell) -> LeRobotDataset:
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = table["cam"].to_pylist()
    cells[row] = cell
    column = table.column_names.index("cam")
    pq.write_table(table.set_column(column, "cam", pa.array(cells, table["cam"].type)), path)
    return LeRobotDataset(root)


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9_000, 9_000)).save(buffer, "PNG")
    return buffer.getvalue()


def ico() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, "ICO")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": png(1, 1)[:45], "path": None}, "not a readable picture: a PNG that is damaged or cut off"),
        ({"bytes": b"", "path": None}, "not a readable picture: it is empty"),
        ({"bytes": b"?" * 99, "path": None}, "not a readable picture.*expected PNG, JPEG"),
        ({"bytes": ico(), "path": None}, "it is an ICO; expected PNG, .* convert the pictures to PNG"),
        (bomb, "9000x9000.*declares"),
        ({"bytes": None, "path": None}, "bytes and path"),
        (None, "bytes and path"),
        ({"bytes": None, "path": "../../secret.png"}, "leads outside"),
        ({"bytes": None, "path": "/etc/hostname"}, "leads outside"),
        ({"bytes": None, "path": "C:/secret.png"}, "leads outside"),
        ({"bytes": None, "path": "images/none.png"}, "neither"),
        ({"bytes": None, "path": "no\0name.png"}, "no name of a file"),
    ],
)
def test_bad_images_name_episode_and_frame(tmp_path, cell, message):
    dataset = replace_cell(simple(tmp_path), 7, {"bytes": cell(), "path": None} if callable(cell) else cell)
    images = dataset.open_video(dataset.episodes[1], "cam")
    assert images.read(1, 1).shape == (1, 4, 6, 3)
    with pytest.raises(DatasetError, match=rf"episode 1 .*frame 2.*{message}|episode 1.*{message}"):
        images.read(2, 1)
    assert images.read(3, 1)[0, 0, 0].tolist() == [1, 3, 7]
    images.close()


def test_an_image_may_lie_beside_the_parquet_file(tmp_path):
    root = simple(tmp_path)
    (root / "images").mkdir()
    (root / "images/a.png").write_bytes(png(9, 9))
    dataset = replace_cell(root, 7, {"bytes": None, "path": "images/a.png"})
    images = dataset.open_video(dataset.episodes[1], "cam")
    assert images.read(2, 1)[0, 0, 0].tolist() == [9, 9, 7]
    images.close()


# Hostile metadata


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": "30"}, "fps is '30'"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": True}, "fps is True"),
        ({"chunks_size": 0}, "chunks_size is 0"),
        ({"features": []}, "features is missing or empty"),
        ({"features": {"x": 3}}, "'x' has no dtype"),
        ({"features": {"x": {"dtype": "video", "shape": [10**6, 10**6, 3]}}}, "up to 8192 pixels"),
        ({"features": {"../x": {"dtype": "video", "shape": [8, 8, 3]}}}, "slash"),
        ({"data_path": None}, "data_path"),
        ({"data_path": "{"}, "malformed"),
        ({"data_path": "x" * 5000}, "path template"),
        ({"data_path": "{episode_index!r}"}, "unexpected field"),
        ({"data_path": "{video_key}/{chunk_index}"}, "which v2.1 lacks"),
        ({"data_path": "/etc/{episode_index}"}, "leads outside"),
        ({"data_path": "..\\{episode_index}"}, "leads outside"),
    ],
)
def test_hostile_info(copy, changes, message):
    root = copy("lerobot_v21")
    edit_info(root, **changes)
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"dtype": "object", "shape": [1]}, "'object'"),
        ({"dtype": "float32", "shape": [2**40]}, "cannot be meant"),
        ({"dtype": "float32", "shape": [-1]}, "positive integers"),
    ],
)
def test_a_feature_that_cannot_be_is_refused_where_it_is_asked_for(copy, feature, message):
    root = copy("lerobot_v21")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit_info(root, features=features | {"x": feature})
    dataset = LeRobotDataset(root)
    assert dataset.column("action").shape == (435, 16)
    with pytest.raises(DatasetError, match=f"'x'.*{message}"):
        dataset.column("x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"episode_index": 0, "length": 1000000000000000}', r"length is 1000000000000000"),
        ('{"episode_index": 0, "length": 1000000000}', "memory"),
        ('{"episode_index": 0, "length": "47"}', "episode 0: length is '47'"),
        ('{"episode_index": 0, "length": 0}', "episode 0: length is 0"),
        ('{"episode_index": -1, "length": 4}', "episode_index is -1"),
        ('{"episode_index": 1.5, "length": 4}', "episode_index is 1.5"),
        ('{"length": 4}', "episode_index is None"),
        ("[1, 2]", "line 1: expected a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"episode_index": 0', "line 1 is not valid JSON"),
    ],
)
def test_hostile_episode_tables_end_in_an_error_at_once(copy, line, message):
    root = copy("lerobot_v21")
    path = root / "meta/episodes.jsonl"
    rest = path.read_text().splitlines()[1:]
    path.write_text("\n".join([line, *rest]))
    edit_info(root, total_frames=1_000_000_388)
    tracemalloc.start()
    with pytest.raises(DatasetError, match=message):
        LeRobotDataset(root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_a_text_repeated_in_every_row_costs_no_memory(tmp_path):
    """20,000 rows of a 1 MB text would be 20 GB if they were laid out."""
    root = simple(tmp_path)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    rows = pa.concat_tables([table.slice(0, 5)] * 4000)
    column = rows.column_names.index("frame_index")
    rows = rows.set_column(column, "frame_index", pa.array(range(20_000)))
    note = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 2**20]))
    column = rows.column_names.index("note")
    rows = rows.set_column(column, "note", note)
    pq.write_table(rows, path, row_group_size=20_000)
    table_path = root / "meta/episodes/chunk-000/file-000.parquet"
    row = next(row for row in pq.read_table(table_path).to_pylist() if row["episode_index"] == 0)
    pq.write_table(pa.Table.from_pylist([row | {"length": 20_000}]), table_path)
    edit_info(root, total_episodes=1, total_frames=20_000)
    before = pa.total_allocated_bytes()
    ids, texts = LeRobotDataset(root).texts("note")
    assert pa.default_memory_pool().max_memory() - before < 500e6
    assert [len(text) for text in texts] == [2**20]
    assert not ids.any()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("note", pa.array([1] * 9), "expected texts"),
        ("x", pa.array(["a"] * 9), "expected numbers"),
        ("x", pa.array([[1.0, 2.0]] * 8 + [[1.0]]), "17 numbers in 9 frames"),
        ("x", pa.array([[1.0, 2.0]] * 8 + [None]), "1 empty cells"),
        ("x", pa.array([[1.0, 2.0]] * 8 + [[1.0, None]]), "1 empty cells"),
        ("note", pa.array(["a"] * 8 + [None]), "1 empty cells"),
        ("frame_index", pa.array(["0"] * 9), "expected numbers"),
    ],
)
def test_columns_of_another_kind_are_named(tmp_path, column, value, message):
    root = simple(tmp_path)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, value), path)

    def read() -> None:
        dataset = LeRobotDataset(root)
        dataset.texts(column) if column == "note" else dataset.column(column)

    with pytest.raises(DatasetError, match=f"{column}.*{message}"):
        read()


@pytest.mark.parametrize("name", ["lerobot_v21", "lerobot_v30"])
def test_pointers_in_the_place_of_tables_are_named(copy, name):
    root = copy(name)
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".json", ".jsonl", ".parquet")):
        whole = path.read_bytes()
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
        messages = [finding.to_json()["message"] for finding in check_dataset(root).findings]
        assert any("is a Git LFS pointer" in text for text in messages), (path, messages)
        path.write_bytes(whole)
