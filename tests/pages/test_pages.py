"""What every page keeps to and can be seen without a browser: one style, escaped, headed, told in words and colours."""

import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from samples import ABLATION, EVIL, SWEEP, summary, write_pages

from mem0_jax.data.lerobot_writer import LeRobotWriter
from mem0_jax.data.show import show_dataset
from mem0_jax.eval import summary_html
from mem0_jax.pages import PALETTE, SERIES, STYLE, Bar, Line, bars, legend, plot, series
from mem0_jax.serve.page import PAGE

VOID = {"meta", "img", "br", "link", "input", "path", "rect"}


class Page(HTMLParser):
    """Elements with those around them; every one must be closed."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.open, self.elements, self.words = html, [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [*self.open]))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [*self.open]))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] not in ("style", "script"):
            self.words.append((self.open[-1][0], data))

    def having(self, tag):
        return [(attributes, around) for name, attributes, around in self.elements if name == tag]

    def text(self, *tags):
        return " ".join(" ".join(data for tag, data in self.words if not tags or tag in tags).split())


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    found = {name: path.read_text() for name, path in write_pages(tmp_path_factory.mktemp("pages")).items()}
    return {name: Page(html) for name, html in (found | {"serve": PAGE}).items()}


def test_all_have_one_style_and_a_head(pages):
    for name, page in pages.items():
        assert page.html.startswith("<!doctype html>\n"), name
        assert re.findall(r"<style>(.*?)</style>", page.html, re.DOTALL) == [STYLE], name
        assert [attributes["lang"] for attributes, _ in page.having("html")] == ["en"]
        metas = [attributes for attributes, _ in page.having("meta")]
        assert {"charset": "utf-8"} in metas
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
        assert page.text("title"), name
        assert len(page.having("main")) == page.html.count("</title>\n") == 1


def test_headings_are_in_order(pages):
    for name, page in pages.items():
        levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), (name, levels)


def test_tables_scroll_within_themselves_and_have_heads(pages):
    for name, page in pages.items():
        for _, around in page.having("table"):
            assert (around[-1][1]["class"], around[-1][1]["tabindex"]) == ("scroll", "0"), name
        count = len(page.having("table"))
        assert page.html.count("<table><caption>") == count, name
        assert all(attributes.get("scope") in ("col", "row") for attributes, _ in page.having("th"))
        assert "<span></span></th>" not in page.html, name
        for row in re.findall(r"<tbody>(.*?)</tbody>", page.html, re.DOTALL):
            assert all(line.startswith('<tr><th scope="row">') for line in row.splitlines()), name


def test_pictures_have_words(pages):
    for name, page in pages.items():
        assert all(attributes.get("alt") for attributes, _ in page.having("img")), name
        assert all(attributes.get("aria-label") for attributes, _ in page.having("video")), name
        for attributes, around in page.having("svg"):
            figures = [attributes for tag, attributes in around if tag == "figure"]
            assert attributes["aria-hidden"] == "true"
            assert figures[-1]["role"] == "img", name
            assert figures[-1]["aria-label"], name
        assert page.having("text") == [], name  # in a picture that is stretched its size would be anything


def test_nothing_is_loaded_and_texts_are_never_markup(pages):
    for name, page in pages.items():
        for tag, attributes, _ in page.elements:
            assert not any(key.startswith("on") for key in attributes), (name, tag)
            for key in ("src", "href", "srcset", "action", "data"):
                assert re.match(r"data:|episode\d|\d+\.mp4", attributes.get(key) or "data:"), (name, tag, attributes)
        assert len(page.having("script")) == ("show" not in name and "openloop" not in name), name
        assert "@import" not in page.html
        assert "url(" not in page.html
    for name in ("summary evil", "openloop", "report"):
        assert EVIL in pages[name].text(), name


@pytest.mark.parametrize(("name", "variants"), [("summary ablation", ABLATION), ("summary sweep", SWEEP)])
def test_every_variant_has_a_sign_of_its_own_everywhere(pages, name, variants):
    html = pages[name].html
    signs = dict(re.findall(r'<span class="name"><span class="key ([^"]+)"></span>([^<:]+)', html))
    assert list(signs.values()) == list(variants)  # as many signs as variants
    for mark, variant in signs.items():
        assert f'<li class="{mark}">' in html
        assert f'<th scope="row"><span class="key {mark}"></span>{variant}' in html


def test_summaries_of_few_and_odd_numbers():
    none, one = (
        Page(summary_html.page(summary(("a", "b"), "press", 0))),
        Page(summary_html.page(summary(("",), "press", 1))),
    )
    assert "0 episodes. In brackets" in none.text()
    assert "Solved in 1 of 1 episode ." in one.text()
    assert "1 episode, seed 100. In brackets" in one.text()
    odd = summary(("a", "b", "c"), "press", 5)
    assert '<span class="bad">5</span></td>' in summary_html.page(odd)
    assert '<span class="bad">0</span>' not in summary_html.page(odd)
    for variant in odd["variants"]:
        variant |= {"reward": np.nan, "steps": np.inf, "success": variant["success"] | {"rate": np.nan}}
    assert not re.search(r"\b(nan|inf)\b", Page(summary_html.page(odd)).html)


def test_a_dataset_of_one_short_episode(tmp_path):
    with LeRobotWriter(
        tmp_path / "set", 10, {"action": {"dtype": "float32", "shape": (2,), "names": None}}, None
    ) as writer:
        writer.add_episode({"action": np.zeros((20, 2), np.float32)}, "press")
    show_dataset(tmp_path / "set", tmp_path / "show.html")
    text = Page((tmp_path / "show.html").read_text()).text()
    assert "1 episode, 20 frames at 10 a second" in text
    assert "20 frames, median 20" in text
    assert "20 to 20" not in (tmp_path / "show.html").read_text()


def test_series_beyond_the_colours_have_patterns():
    assert len({series(i) for i in range(3 * SERIES)}) == 3 * SERIES
    for mark in {word for i in range(3 * SERIES) for word in series(i).split()}:
        assert f".{mark} " in STYLE


def linear(color: str) -> np.ndarray:
    value = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    least, most = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) + 0.05 for color in (one, other))
    return most / least


def themes() -> list[dict[str, str]]:
    """The colours as the style sheet has them: light, dark."""
    found = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", line)) for line in STYLE.splitlines() if "--paper:" in line
    ]
    assert [list(theme) for theme in found] == [list(PALETTE)] * 2
    return found


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_contrast_is_sufficient(theme):
    for ground in ("paper", "card"):
        for name in ("ink", "muted", "with", "without", "good", "bad"):
            assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
        for i in range(SERIES):
            assert contrast(theme[f"s{i}"], theme[ground]) >= 3, (i, ground)


# Machado, Oliveira and Fernandes 2009: what full protanopia, deuteranopia and tritanopia leave of linear RGB.
EYES = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def oklab(rgb: np.ndarray) -> np.ndarray:
    cones = [[0.41222, 0.53633, 0.05145], [0.2119, 0.68070, 0.1074], [0.0883, 0.28172, 0.62998]]
    mixed = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    return np.array(mixed) @ np.cbrt(np.array(cones) @ rgb.clip(0, 1))


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_series_differ_for_all_eyes(theme, eyes):
    seen = {name: oklab(np.array(EYES[eyes]) @ linear(color)) for name, color in theme.items()}
    pairs = [("with", "without"), *itertools.combinations([f"s{i}" for i in range(SERIES)], 2)]
    assert {pair for pair in pairs if np.linalg.norm(seen[pair[0]] - seen[pair[1]]) < 0.09} == set()


def test_a_plot_says_its_range_and_leaves_gaps():
    drawn = plot("loss", "loss", [Line("s0", [0, 1, 2, 3, 4], [1.0, np.nan, 3.0, 4.0, None])], axis="step")
    assert re.findall(r"<span>([^<]*)</span>", drawn) == ["4", "2.5", "1", "0", "step", "4"]
    assert 'd="M0 600h12M500 200L750 0"' in drawn
    for values in ([], [None], [2.0], [0.0, 0.0], [-1e-9, 1e9], [1e-3, 10.0]):
        for log in (False, all(value is not None and value > 0 for value in values)):
            drawn = plot("", "", [Line("s0", range(len(values)), values)], log=log)
            assert not re.search(r"nan|inf", drawn)
            assert len(set(re.findall(r"<span>([^<]*)</span>", drawn)[:3])) == 3


def test_bars_and_legends_name_what_they_show():
    drawn = bars([Bar("s0", "a", 0.5, (0.25, 0.75)), Bar("s1 striped", "b", None)], line=0.25)
    assert "width:50.00%" in drawn
    assert "left:25.00%;width:50.00%" in drawn
    assert "<b>50&nbsp;%</b>" in drawn
    assert "<b>&ndash;</b>" in drawn
    assert legend([("s1 striped", "b")]).count('<span class="key s1 striped"></span>b') == 1
