"""All pages that are files in a real browser, at the widths of phones and a desk, in both themes."""

import base64
import io

import numpy as np
import pytest
from browser import browsing, faults
from PIL import Image
from samples import EVIL, write_pages

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def tab():
    with browsing() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tab, tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read_at_every_width(tab, pages, dark):
    wrong = {}
    for name, path in pages.items():
        tab.resize(1280, dark=dark)
        tab.open(path.as_uri())
        tab.ask("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        for width in (320, 400, 1280):
            tab.resize(width, dark=dark)
            if found := faults(tab):
                wrong[name, width] = found
    assert wrong == {}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_table_that_goes_on_has_a_shade_where_it_is_cut(tab, pages, dark):
    tab.resize(700, dark=dark)
    tab.open(pages["summary sweep"].as_uri())
    tab.ask("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    box = "document.querySelector('details .scroll')"
    assert tab.ask(f"{box}.scrollIntoView(), {box}.scrollWidth > {box}.clientWidth")

    def edge() -> np.ndarray:
        """The mean brightness of the box's last columns of pixels, and of some farther in."""
        place = tab.ask(f"{box}.getBoundingClientRect().toJSON()")
        clip = {"x": place["right"] - 60, "y": place["top"] + tab.ask("scrollY") + 80, "width": 60, "height": 150}
        picture = tab.call("Page.captureScreenshot", clip=clip | {"scale": 1})["data"]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"), float)
        return np.median(pixels, axis=0)

    bright = edge()
    assert abs(bright[-2] - bright[20]) > 60
    tab.ask(f"{box}.scrollLeft = 1e6")
    bright = edge()
    assert abs(bright[-2] - bright[20]) < 5  # it goes on no more


def test_rows_are_cards_on_a_phone_with_the_titles_of_their_cells(tab, pages):
    tab.resize(320)
    tab.open(pages["openloop"].as_uri())
    row = "[...document.querySelectorAll('table')].at(-1).querySelector('tbody tr')"
    shown = tab.ask(f"{row}.innerText").split("\n")
    for title in ("Precision", "Recall", "F1", "Average precision", "Positive frames"):
        assert title in shown
    assert tab.ask("[...document.querySelectorAll('pre')].every((pre) => pre.scrollWidth <= pre.clientWidth)")
    tab.resize(1280)
    assert "Precision" not in tab.ask(f"{row}.innerText")


def test_no_page_runs_what_it_is_told(tab, pages):
    tab.open(pages["summary evil"].as_uri())
    assert EVIL in tab.ask("document.title")
    assert EVIL in tab.ask("document.querySelector('.task').textContent")


def test_print_is_light_and_whole(tab, pages):
    """A dark reader's paper is white, and what is folded or scrolls on a screen is on it."""
    tab.resize(700, dark=True)
    tab.open(pages["summary ablation"].as_uri())
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.ask("getComputedStyle(document.body).color") == "rgb(34, 40, 44)"
    assert tab.ask("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert tab.ask("document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})")
    assert not tab.ask("document.querySelector('button').checkVisibility()")
    tab.call("Emulation.setEmulatedMedia", media="")
