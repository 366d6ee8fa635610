"""Datasets of other writers, odd in one way each: read as recorded or refused with a way round, as lerobot has them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episodes import CAMERA, read_code, write_numbers
from layouts import edit_info
from odd_sets import (
    LENGTHS,
    ODD,
    TASKS,
    THREE,
    VERSIONS,
    edit_data,
    edit_features,
    edit_table,
    sets,
    truth,
    with_column,
    write_set,
)

from mem0_jax.cli import main
from mem0_jax.data.check import check_dataset
from mem0_jax.data.lanes import LaneSource
from mem0_jax.data.lerobot import DatasetError, LeRobotDataset
from mem0_jax.data.lerobot_writer import LeRobotWriter
from mem0_jax.data.normalize import NormStats
from mem0_jax.data.pack import read_columns
from mem0_jax.data.packed import PackedDataset
from mem0_jax.errors import UserError


@pytest.fixture(params=sets(), ids=lambda pair: " ".join(pair))
def odd(request, tmp_path):
    """(Folder of an odd set, how it is odd, its version)."""
    name, version = request.param
    root = write_set(tmp_path / "set", version, camera=ODD[name].camera)
    ODD[name].bend(root)
    return root, ODD[name], version


def test_an_odd_set_holds_what_was_recorded_or_the_error_says_a_way_round(odd):
    root, kind, _ = odd
    if kind.refused:
        with pytest.raises(DatasetError, match=kind.refused):
            read(root, kind.camera)
        return
    numbers, tasks, codes = read(root, kind.camera)
    for key, values in numbers.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, truth(key))
    assert tasks == [task for task, length in zip(TASKS, LENGTHS) for _ in range(length)]
    if kind.camera:
        assert codes == [(e, i) for e, length in enumerate(LENGTHS) for i in range(length)]
    dataset = LeRobotDataset(root)
    for ask in (dataset.column, dataset.texts) if kind.asked else ():
        with pytest.raises(DatasetError, match=f"'{kind.asked}'"):
            ask(kind.asked)


@pytest.mark.parametrize("name", [name for name, kind in ODD.items() if kind.asked])
def test_check_warns_once_of_a_feature_that_nothing_reads(tmp_path, name):
    root = write_set(tmp_path / "set", "v3.0")
    ODD[name].bend(root)
    report = check_dataset(root)
    assert report.errors == 0
    assert [finding.severity for finding in report.findings if finding.feature == "extra"] == ["warning"]


def test_pages_and_shards_leave_out_what_cannot_be_read_and_say_so(tmp_path, capsys):
    root = write_set(tmp_path / "set", "v3.0", camera=True)
    ODD["unneeded list of texts"].bend(root)
    assert not main(["data", "stats", str(root)])
    assert not main(["data", "show", str(root), "--out", str(tmp_path / "page.html")])
    assert "extra: not shown (" in capsys.readouterr().err
    assert "extra: not shown" in (tmp_path / "page.html").read_text()
    assert not main(["data", "pack", str(root), str(tmp_path / "packed")])
    assert "left out: extra (" in capsys.readouterr().err
    np.testing.assert_array_equal(PackedDataset(tmp_path / "packed").column("action"), truth("action"))


# What use refuses


def _entry(key: str, **changes) -> Callable[[Path], None]:
    return lambda root: edit_features(root, **{key.replace(".", "__"): changes})


def _column(key: str, values: Callable[[int], pa.Array]) -> Callable[[Path], None]:
    return lambda root: edit_data(root, lambda table: with_column(table, key, values(len(table))))


def _both(*bends: Callable[[Path], None]) -> Callable[[Path], None]:
    def bend_all(root: Path) -> None:
        for bend in bends:
            bend(root)

    return bend_all


def _drop(*keys: str) -> Callable[[Path], None]:
    def bend(root: Path) -> None:
        features = json.loads((root / "meta/info.json").read_text())["features"]
        edit_info(root, features={key: value for key, value in features.items() if key not in keys})

    return bend


def _lists(kind: pa.DataType, value: float, count: int = 16) -> Callable[[int], pa.Array]:
    return lambda n: pa.array([[value] * count] * n, pa.list_(kind))


REFUSED = {
    "tasks in another order": lambda root: pq.write_table(
        pa.table({"task_index": [0, 1], "task": ["open the box", "pick the cup"]}), root / "meta/tasks.parquet"
    ),
    "subtasks as numbers": _both(_column("subtask", lambda n: pa.array(range(n))), _entry("subtask", dtype="int64")),
    "ends as texts": _both(
        _column("subtask_end", lambda n: pa.array(["no"] * n)), _entry("subtask_end", dtype="string")
    ),
    "actions as texts": _both(_column("action", lambda n: pa.array(["x"] * n)), _entry("action", dtype="string")),
    "a state that is a picture": _entry("observation.state", dtype="image", shape=[4, 4, 3]),
    "no actions": _drop("action"),
    "no states": _drop("observation.state"),
    "no task_index": _drop("task_index"),
    "two rows of eight": _entry("action", shape=[2, 8], names=None),
    "numbers too large for what is declared": _column("action", _lists(pa.float64(), 1e300)),
    "integers too large for what is declared": _column("subtask_end", lambda n: pa.array([2**40] * n)),
    "nothing to play": _column("subtask", lambda n: pa.array(["null"] * n)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_use_refuses_is_an_error_of_a_check(name, tmp_path):
    root = write_set(tmp_path / "set", "v3.0")
    (root / "meta/stats.json").unlink()  # that these differ is told besides
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    edit_table(path, lambda table: table.select([key for key in table.column_names if not key.startswith("stats/")]))
    assert check_dataset(root).errors == 0
    use(root)
    REFUSED[name](root)
    with pytest.raises(ValueError):  # noqa: PT011
        use(root)
    assert check_dataset(root).errors


OTHER_ROBOTS = {
    "seven joints": _both(_column("action", _lists(pa.float32(), 0.5, 7)), _entry("action", shape=[7], names=None)),
    "joints of other names": _entry("action", names=dict.fromkeys(f"finger_{i}" for i in range(16))),
}


@pytest.mark.parametrize("name", OTHER_ROBOTS)
def test_other_robots_are_welcome(name, tmp_path):
    root = write_set(tmp_path / "set", "v3.0")
    (root / "meta/stats.json").unlink()
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    edit_table(path, lambda table: table.select([key for key in table.column_names if not key.startswith("stats/")]))
    OTHER_ROBOTS[name](root)
    assert check_dataset(root).errors == 0
    use(root)


def use(root: Path) -> None:
    """What statistics, packing and training read, without pictures."""
    dataset = LeRobotDataset(root)
    NormStats.from_datasets([dataset])
    read_columns(dataset)
    LaneSource(dataset, lanes=1, frames=1, horizon=2, seed=0, cameras={CAMERA: (4, 4)})


# Cameras


def _ghost(root: Path) -> None:
    edit_features(root, ghost={"dtype": "video", "shape": [64, 96, 3], "names": None})


def _no_place(root: Path) -> None:
    """The table has the columns of a camera, and nothing in them."""
    _ghost(root)
    path, nulls = root / "meta/episodes/chunk-000/file-000.parquet", pa.nulls(len(LENGTHS))
    for key in ("chunk_index", "file_index", "from_timestamp"):
        edit_table(path, lambda table, key=key: with_column(table, f"videos/ghost/{key}", nulls))


def _empty_cells(root: Path) -> None:
    _column("ghost", lambda n: pa.nulls(n, pa.struct({"bytes": pa.binary(), "path": pa.string()})))(root)
    edit_features(root, ghost={"dtype": "image", "shape": [64, 96, 3], "names": None})


def _no_shape(root: Path) -> None:
    _empty_cells(root)
    edit_features(root, ghost={"shape": ["64", "96", "3"]})


def _no_column(root: Path) -> None:
    edit_features(root, ghost={"dtype": "image", "shape": [64, 96, 3], "names": None})


GHOSTS = {
    "no columns in the table": (_ghost, THREE, r"table does not say where its video of ghost is \(videos/ghost/chunk"),
    "nothing in the table": (_no_place, THREE, "taken out of meta/info.json"),
    "no files": (_ghost, ("v2.1",), "mp4 is missing"),
    "empty cells": (_empty_cells, VERSIONS, "an empty cell"),
    "no column": (_no_column, VERSIONS, "lacks the column 'ghost'"),
    "no shape": (_no_shape, VERSIONS, "expected whole numbers"),
}


@pytest.mark.parametrize(
    ("name", "version"), [(name, version) for name, (_, versions, _) in GHOSTS.items() for version in versions]
)
def test_a_camera_that_is_only_declared_matters_where_it_is_asked_for(name, version, tmp_path, capsys):
    bend, _, message = GHOSTS[name]
    root, out = write_set(tmp_path / "set", version, camera=True), tmp_path / "packed"
    bend(root)
    dataset = LeRobotDataset(root)
    with pytest.raises(UserError, match=message):
        dataset.open_video(dataset.episodes[0], "ghost").read(0, 1)
    assert read(root, camera=True)[2]
    assert not main(["data", "stats", str(root)])
    assert {finding.feature for finding in check_dataset(root).findings if finding.severity == "error"} == {"ghost"}
    assert not main(["data", "pack", str(root), str(out)])
    assert re.search(rf"left out: ghost \(.*{message}", capsys.readouterr().err)
    assert PackedDataset(out).cameras == [CAMERA]


def test_nothing_is_packed_where_no_camera_can_be_read(tmp_path, capsys):
    root, out = write_set(tmp_path / "set", "v3.0", camera=True), tmp_path / "packed"
    shutil.rmtree(root / "videos")
    assert main(["data", "pack", str(root), str(out)]) == 1
    assert re.search(r"no camera can be read.* take the features out of meta/info.json", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_left_out_of_shards_is_found_by_a_check(tmp_path, capsys):
    root = write_set(tmp_path / "set", "v3.0")
    _column("words", lambda n: pa.array([[{"role": "user", "content": "x"}]] * n))(root)
    edit_features(root, words={"dtype": "language", "shape": [1], "names": None})
    assert not main(["data", "pack", str(root), str(tmp_path / "packed")])
    assert "left out: words (its dtype is 'language'" in capsys.readouterr().err
    assert [f.severity for f in check_dataset(root).findings if f.feature == "words"] == ["warning"]


def test_one_cause_in_the_pictures_of_many_episodes_is_one_finding(tmp_path):
    write_numbers(LeRobotWriter, tmp_path / "set", episodes=8, length=4)
    _empty_cells(tmp_path / "set")
    [found] = [finding for finding in check_dataset(tmp_path / "set").findings if finding.feature == "ghost"]
    assert "(in 8 episodes: 0-7)" in found.message
    assert (found.episode, found.frames) == (0, ((0, 3),))


@pytest.mark.lerobot
def test_where_lerobot_reads_an_odd_set_we_read_the_same(odd):
    root, kind, version = odd
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    if version != module.CODEBASE_VERSION:
        pytest.skip(f"this lerobot reads {module.CODEBASE_VERSION}")
    try:
        theirs = module.LeRobotDataset("local/odd", root=root, video_backend="pyav")
        items = sorted((theirs[i] for i in range(len(theirs))), key=lambda item: item["index"])
    except Exception as error:  # whatever it is: then there is nothing to compare with
        pytest.skip(f"lerobot does not read it ({type(error).__name__}: {str(error)[:200]})")
    if kind.refused or kind.differs:
        return  # see the test above
    numbers, tasks, codes = read(root, kind.camera)
    for key, values in numbers.items():
        np.testing.assert_array_equal(values, np.stack([item[key].numpy() for item in items]))
    if isinstance(items[0]["task"], str):  # else it took no index of texts for them
        assert tasks == [item["task"] for item in items]
    if kind.camera:
        pictures = [(item[CAMERA].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8) for item in items]
        assert codes == [read_code(picture) for picture in pictures]


def read(root, camera: bool):
    """Numbers by feature, the task of every frame, and (episode, frame) as the pictures tell them."""
    dataset = LeRobotDataset(root)
    numbers = {key: dataset.column(key) for key in ("observation.state", "action")}
    ids, texts = dataset.texts("task")
    codes = []
    for episode in dataset.episodes if camera else ():
        video = dataset.open_video(episode, CAMERA)
        codes += [read_code(picture) for picture in video.read(0, episode.length)]
        video.close()
    return numbers, [texts[i] for i in ids], codes
