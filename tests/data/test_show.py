"""The page of a dataset: it says what the dataset holds, needs no network, and runs nothing that a dataset says."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episodes import ASSETS, CAMERA, LENGTHS, read_code
from PIL import Image

from mem0_jax.cli import main
from mem0_jax.data.show import BINS, show_dataset


class Page(HTMLParser):
    """Tags, addresses and text of a page; every element must be closed."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.addresses, self.words, self.alts, self._open = [], [], [], [], []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.alts += [value for name, value in attrs if name == "alt"]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("img", "meta", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("name", ["lerobot_v21", "lerobot_v30", "lerobot_v21_cameras", "lerobot_v30_cameras"])
def test_the_page_is_one_file_without_scripts(name, tmp_path):
    out = tmp_path / "show.html"
    view = show_dataset(ASSETS / name, out)
    html = out.read_text("utf-8")
    page = Page(html)
    assert list(tmp_path.iterdir()) == [out]
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "style"} & set(page.tags) - {"style"}
    assert not re.search(r"url\(|@import|https?://", html)
    for key, rows in view.texts.items():
        assert key in page.text
        assert all(" ".join(text.split()) in page.text for text, _, _ in rows)
    for rows in view.histograms.values():
        assert all(row.name in page.text for row in rows)


def test_pictures_are_those_of_their_frames(recorded, tmp_path):
    view = show_dataset(recorded.root, tmp_path / "a.html", episodes=len(LENGTHS))
    html = (tmp_path / "a.html").read_text()
    shown = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="Episode (\d+), frame (\d+)"', html)
    assert {int(episode) for _, episode, _ in shown} == set(range(len(LENGTHS)))
    for data, episode, frame in shown:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert read_code(image) == (int(episode), int(frame))
    for index, [sheet] in view.sheets.items():
        frames = [frame for frame, _ in sheet.pictures]
        assert len(frames) == min(8, LENGTHS[index])
        assert (frames[0], frames[-1]) == (0, LENGTHS[index] - 1)


def test_numbers_are_those_of_the_data(real, truth, tmp_path):
    view = show_dataset(real.root, tmp_path / "a.html")
    for key, values in {"observation.state": truth["state"], "action": truth["action"]}.items():
        rows = view.histograms[key]
        assert [row.name for row in rows] == real.features[key]["names"]
        for row, expected in zip(rows, values.T.astype(np.float64)):
            assert (row.low, row.high) == (expected.min(), expected.max())
            assert row.mean == pytest.approx(expected.mean())
            assert (row.counts.size, row.counts.sum()) == (BINS, 435)
            if row.low < row.high:
                np.testing.assert_array_equal(row.counts, np.histogram(expected, BINS)[0])
    texts = {text: (episodes, frames) for text, episodes, frames in view.texts["task"]}
    for text in set(truth["task"].tolist()):
        mine = truth["task"] == text
        assert texts[text] == (len(set(truth["episode_index"][mine].tolist())), int(mine.sum()))


def test_vectors_of_one_number_are_shown(tmp_path):
    root = Path(shutil.copytree(ASSETS / "lerobot_v21_cameras", tmp_path / "set"))
    info = json.loads((root / "meta/info.json").read_text())
    for key in ("observation.state", "action"):
        info["features"][key] |= {"shape": [1], "names": ["gripper"]}
        for path in (root / "data").rglob("*.parquet"):
            table = pq.read_table(path)
            numbers = pa.array([row[0] for row in table[key].to_pylist()], pa.float32())
            pq.write_table(table.set_column(table.column_names.index(key), key, numbers), path)
    (root / "meta/info.json").write_text(json.dumps(info))
    histograms = show_dataset(root, tmp_path / "a.html").histograms
    assert [row.name for row in histograms["action"]] == ["gripper"]
    assert {"observation.state", "action"} <= histograms.keys()
    assert not {"episode_index", "frame_index", "index", "task_index", "timestamp"} & histograms.keys()


def test_strips_hold_the_subtasks_and_their_ends(real, truth, tmp_path):
    view = show_dataset(real.root, tmp_path / "a.html")
    assert [strip.episode.index for strip in view.strips] == list(range(6))
    for strip in view.strips:
        mine = slice(strip.episode.start, strip.episode.start + strip.episode.length)
        said = [text for _, length, text in strip.segments for _ in range(length)]
        assert said == truth["subtask"][mine].tolist()
        flags = np.zeros(strip.episode.length, int)
        for start, length in strip.ends:
            flags[start : start + length] = 1
        np.testing.assert_array_equal(flags, truth["subtask_end"][mine])


def test_texts_of_a_dataset_are_never_markup(tmp_path):
    root = Path(shutil.copytree(ASSETS / "lerobot_v21", tmp_path / "set"))
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("subtask")
    pq.write_table(table.set_column(column, "subtask", pa.array([evil] * len(table))), path)
    for name in ("tasks.jsonl", "episodes.jsonl"):
        file = root / "meta" / name
        file.write_text(file.read_text().replace("cover_blocks", evil.replace('"', '\\"')))
    info = root / "meta/info.json"
    for old in ("left_joint_0", "aloha_synth"):
        info.write_text(info.read_text().replace(old, evil.replace('"', '\\"')))
    show_dataset(root, tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text())
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert "x" not in page.addresses


def test_pictures_that_cannot_be_read_are_named_on_the_page(tmp_path, capsys):
    root = Path(shutil.copytree(ASSETS / "lerobot_v21", tmp_path / "set"))
    (root / f"videos/chunk-000/{CAMERA}/episode_000003.mp4").unlink()
    out = tmp_path / "a.html"
    assert main(["data", "show", str(root), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "episode 3" in printed.err
    assert "mp4 is missing" in Page(out.read_text()).text
    assert "6 episodes" in printed.out


def test_numbers_that_are_not_finite_do_not_stop_the_page(tmp_path):
    root = Path(shutil.copytree(ASSETS / "lerobot_v21", tmp_path / "set"))
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    values = table["action"].to_pylist()
    values[3][2] = float("inf")
    values[4][2] = float("nan")
    column = table.column_names.index("action")
    pq.write_table(table.set_column(column, "action", pa.array(values, table["action"].type)), path)
    row = show_dataset(root, tmp_path / "a.html").histograms["action"][2]
    assert np.isfinite([row.low, row.high, row.mean]).all()
    assert row.counts.sum() == 433


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nowhere"], 1, "info.json is missing"),
        ([str(ASSETS / "lerobot_v30"), "--episodes", "-1"], 1, "--episodes is -1"),
        ([str(ASSETS / "lerobot_v30"), "--out", "no/such/x.html"], 1, "does not exist"),
        ([str(ASSETS / "lerobot_v30"), "--out", "."], 1, "is a folder"),
        ([str(ASSETS / "lerobot_v30"), "--oot", "x"], 2, "--out"),
    ],
)
def test_bad_input(argv, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "show", *argv]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
