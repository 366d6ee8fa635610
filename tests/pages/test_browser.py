"""All pages that are files in a real browser, at the widths of phones and a desk, in both themes."""

import pytest
from browser import browsing, faults
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
