"""The report: numbers, self-contained page, pictures and videos that decode, nothing half-written."""

import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image

from mem0_jax.eval.report import Attention, Curve, Facts, Results, Side, Video, write_report
from mem0_jax.eval.report_pictures import encode_gif, encode_h264
from mem0_jax.eval.statistics import wilson_interval

VOID = {"meta", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects elements and text; checks that every element is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def having(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "made" / "on demand"
    return folder, write_report(folder, results)


@pytest.fixture(scope="module")
def page(written):
    return Page((written[0] / "report.html").read_text())


def test_json_holds_the_numbers(written, results):
    folder, returned = written
    summary = json.loads((folder / "report.json").read_text())
    assert summary == returned
    for name in ("with_memory", "without_memory"):
        side = getattr(results, name)
        assert summary[f"success_{name}"] == np.mean(side.success)
        assert summary[f"right_given_placed_{name}"] == sum(side.placed_right) / sum(side.placed)
        assert summary[f"success_{name}_interval"] == list(wilson_interval(sum(side.success), len(side.success)))
        np.testing.assert_allclose(summary[f"curve_{name}"]["action_loss"], side.curve.action_loss)
    assert summary["success_with_memory"] == 1.0 > summary["success_without_memory"]  # memory is what the task needs
    assert (summary["episodes"], summary["chance"], summary["steps"]) == (12, 0.25, 3000)
    assert summary["wall_seconds"] == pytest.approx(643.9)
    assert summary["seeds"]["evaluation"] == "10000 to 10011"


def test_page_says_the_numbers(written, page):
    _, summary = written
    solved = [summary[f"success_{name}_counts"][0] for name in ("with_memory", "without_memory")]
    assert f"Solved in {solved[0]} of 12 episodes with memory , in {solved[1]} of 12 without" in page.text
    assert "mem0-jax demo --out runs/demo" in page.text
    assert "712,345" in page.text
    assert "5:01 min" in page.text
    assert [attributes["lang"] for attributes in page.having("html")] == ["en"]


def test_page_needs_nothing_else(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert page.having("link") == []
    assert page.having("script") == [{}]


def test_everything_visible_has_words(page):
    assert all(attributes.get("alt") for attributes in page.having("img"))
    assert all(attributes.get("aria-label") for attributes in page.having("video"))
    labels = [attributes["aria-label"] for attributes in page.having("figure") if "aria-label" in attributes]
    assert len(labels) == 3
    assert "task solved, with memory: 100 %" in labels[0]


def test_charts_follow_the_theme(written):
    html = (written[0] / "report.html").read_text()
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        assert 'class="with"' in chart
        assert 'class="without"' in chart
        assert set(re.findall(r"#[0-9a-f]{6}\b", chart)) == set()


def decode(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1], validate=True)


def test_videos_play_side_by_side(page, results):
    videos = [v for pair in zip(results.with_memory.videos, results.without_memory.videos) for v in pair]
    elements = page.having("video")
    assert len(elements) == len(videos) == 4
    for element, video in zip(elements, videos):
        with av.open(io.BytesIO(decode(element["src"])), "r") as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert float(container.streams.video[0].average_rate or 0) == pytest.approx(video.fps)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.shape(frames) == video.frames.shape
        assert np.abs(np.stack(frames).astype(int) - video.frames).mean() < 6
        assert video.caption in element["aria-label"]


def test_attention_shows_every_frame(page, results):
    images = page.having("img")
    assert len(images) == 2 + 30
    assert "Frame 30 before the decision, weight 1.0 %" in images[2]["alt"]
    for element in images:
        assert Image.open(io.BytesIO(decode(element["src"]))).format == "JPEG"
    newest = np.asarray(Image.open(io.BytesIO(decode(images[-1]["src"]))).resize((320, 240)), int)
    assert np.abs(newest - results.attention.frames[-1]).mean() < 8


def test_hero_is_a_picture(written):
    image = Image.open(written[0] / "hero.png")
    assert image.width == 1600
    assert 300 < image.height < 700
    assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 200


@pytest.mark.parametrize("height_width", [(48, 64), (47, 63)])
def test_encoders(height_width):
    frames = np.zeros((7, *height_width, 3), np.uint8)
    frames[:, :, :20] = np.arange(7, dtype=np.uint8)[:, None, None, None] * 30
    with av.open(io.BytesIO(encode_h264(frames, 12.5)), "r") as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.shape(decoded) == (7, 48 - 2 * (height_width[0] % 2), 64 - 2 * (height_width[1] % 2), 3)
    np.testing.assert_allclose([f[10, 5, 0] for f in decoded], np.arange(7) * 30, atol=8)
    gif = Image.open(io.BytesIO(encode_gif(frames, 10)))
    assert getattr(gif, "n_frames", 1) == 7
    assert gif.size == height_width[::-1]


def test_text_from_outside_cannot_become_markup(results, tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    video = dataclasses.replace(results.with_memory.videos[0], caption=evil)
    facts = dataclasses.replace(
        results.facts, task=evil, instruction=evil, command=evil, software={evil: evil}, seeds={evil: evil}
    )
    write_report(
        tmp_path,
        dataclasses.replace(
            results, facts=facts, with_memory=dataclasses.replace(results.with_memory, videos=(video,)), attention=None
        ),
    )
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.having("script")) == 1
    assert evil in page.text


def test_bare_results(tmp_path):
    """No videos, no attention, nothing placed, losses unknown: still a report."""
    curve = Curve(np.array([1]), np.array([np.nan]), np.array([0.5]), np.array([np.nan]))
    side = Side((False,), (False,), (False,), curve)
    facts = Facts("task", "do it", 0.5, 1, 1, 1.0, {"train": 1.0}, {}, "make demo")
    summary = write_report(tmp_path, Results(side, side, facts))
    assert summary["right_given_placed_with_memory"] is None
    assert summary["curve_with_memory"]["loss"] == [None]
    assert json.loads((tmp_path / "report.json").read_text()) == summary
    page = Page((tmp_path / "report.html").read_text())
    assert page.having("video") == []
    assert "none was made with memory" in page.text


def test_nothing_is_half_written(results, tmp_path):
    write_report(tmp_path, results)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"hero.png", "report.html", "report.json"}
    unwritable = dataclasses.replace(
        results,
        facts=dataclasses.replace(results.facts, frames_per_second=float("nan")),  # JSON has no NaN
    )
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, unwritable)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_report(tmp_path, results)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before  # the same input, the same bytes


def test_inconsistent_results_are_refused(results):
    side, ones = results.with_memory, np.ones((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="as many success"):
        dataclasses.replace(side, placed=(True,))
    with pytest.raises(ValueError, match="without having placed"):
        Side((True,), (False,), (True,), side.curve)
    with pytest.raises(ValueError, match="as many episodes"):
        dataclasses.replace(results, with_memory=Side((True,), (True,), (True,), side.curve))
    with pytest.raises(ValueError, match="one length"):
        Curve(np.arange(3), np.arange(2), np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="increasing"):
        Curve(*(np.array([2, 1]) for _ in range(4)))
    with pytest.raises(ValueError, match="uint8 pictures"):
        Video(np.zeros((2, 4, 4, 3)), "", True)
    with pytest.raises(ValueError, match="sum 1"):
        Attention(ones, np.array([0.5, 0.1]), ones[0], ones[0], 3)
    with pytest.raises(ValueError, match="probability"):
        dataclasses.replace(results.facts, chance=25.0)


def test_numbers_need_no_drawing():
    """The input types and the summary load without matplotlib and PyAV."""
    code = "import sys, mem0_jax.eval.report; print({'matplotlib', 'av', 'jax', 'PIL'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
