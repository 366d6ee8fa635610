"""Datasets of other writers, odd in one way each: read as recorded or refused with a way round, as lerobot has them."""

import numpy as np
import pytest
from episodes import CAMERA, read_code
from odd_sets import LENGTHS, ODD, TASKS, sets, truth, write_set

from mem0_jax.cli import main
from mem0_jax.data.check import check_dataset
from mem0_jax.data.lerobot import DatasetError, LeRobotDataset
from mem0_jax.data.packed import PackedDataset


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
