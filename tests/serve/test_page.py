"""The page of live sessions in a real browser: many sessions, none, strangers' texts, a token, a server that goes."""

import json
import socket
import urllib.request
from contextlib import ExitStack

import pytest
from browser import browsing, faults
from live import TASK, address, frame, serving

from mem0_jax.serve.client import Client
from mem0_jax.serve.server import Settings
from mem0_jax.serve.service import Service

LONG = "<b>" + "W" * 300
SHOWN = "(document.body?.innerText ?? '')"


@pytest.fixture(scope="module")
def tab():
    with browsing() as opened:
        yield opened


def sessions(server) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/sessions") as answer:
        return json.load(answer)


def test_names_are_those_that_people_gave(server):
    with (
        Client(address(server), env="aloha", session="shift 1") as named,
        Client(address(server), env="aloha") as labelled,
        Client(address(server)) as unnamed,
    ):
        for policy in (named, labelled, unnamed):
            policy.reset(TASK)
        shown = sessions(server)["sessions"]
    assert [one["name"] for one in shown][:2] == ["aloha · shift 1", "aloha"]
    assert shown[2]["name"] == f"client {shown[2]['client']}"
    assert shown[2]["client"].startswith("127.0.0.1:")
    assert all(one["connected"] for one in shown)


def test_the_whole_server_is_measured_over_a_stated_window(server):
    before = sessions(server)["statistics"]
    with Client(address(server)) as policy:
        policy.reset(TASK)
        for number in range(12):
            policy.infer(frame(number))
    found = sessions(server)
    assert (found["state"], found["statistics"]["seconds"]) == ("ready", 60)
    latency, step, plan, batch, queue = found["statistics"]["rows"]
    assert plan["count"] == 0
    assert plan["p50"] is plan["p99"] is plan["now"] is None
    for row, old in zip((latency, step, batch, queue), [before["rows"][i] for i in (0, 1, 3, 4)]):
        assert row["count"] <= old["count"] + 12  # some of the old ones may have left the window
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] <= row["most"]
    assert [row["unit"] for row in (latency, step, batch, queue)] == ["ms", "ms", "sessions", "requests"]
    assert (batch["now"], queue["now"]) == (1, 1)


@pytest.mark.browser
def test_many_sessions_can_be_read_at_every_width(server, tab):
    tab.resize(1280)
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.wait_for(f"{SHOWN}.includes('No robot is connected.')")
    assert faults(tab) == []
    names = [("aloha", None), (LONG, "i" * 120), ("", None), ("", "</script>'\""), *[("sim", None)] * 13]
    with ExitStack() as stack:
        for number, (env, session) in enumerate(names):
            policy = stack.enter_context(Client(address(server), env=env, session=session))
            policy.reset(LONG * 5 if number == 1 else TASK)
            policy.infer(frame(number, dim=14 + 2 * (number % 2)))
        tab.wait_for("document.querySelectorAll('article').length == 17")
        tab.wait_for("[...document.querySelectorAll('article img')].every((image) => image.naturalWidth)")
        wrong = {}
        for dark in (False, True):
            for width in (320, 400, 1280):
                tab.resize(width, dark=dark)
                if found := faults(tab):
                    wrong[width, dark] = found
        assert wrong == {}
        assert LONG in tab.ask("document.querySelectorAll('h3')[1].textContent")
        assert tab.ask("document.querySelectorAll('.legend li').length") == 5
        plots = tab.ask("[...document.querySelectorAll('article .plot')].slice(0, 2).map((plot) => plot.innerText)")
        assert plots[0].startswith("Next actions: 3 steps of 14 numbers")
        assert "step 3" in plots[0]
        assert " ms\n0 ms\n" in plots[1]
        assert "of 64 sessions" in tab.ask(SHOWN)
    tab.wait_for(f"{SHOWN}.includes('No robot is connected.')")
    assert [text for text in tab.complaints if "recommendation" not in text] == []


@pytest.mark.browser
def test_it_asks_for_the_token_and_says_when_the_server_goes_and_comes(bundle, tab):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(port=port, token="s3cret")
    tab.resize(400)
    with serving(lambda: Service(bundle, slots=1, rows=1), settings):
        tab.open(f"http://127.0.0.1:{port}/")
        tab.wait_for(f"{SHOWN}.includes('This server asks for its token.')")
        assert faults(tab) == []
        tab.ask("document.querySelector('#token').value = 'wrong', document.querySelector('form button').click()")
        tab.wait_for(f"{SHOWN}.includes('This is not the server')")
        tab.ask("document.querySelector('#token').value = 's3cret', document.querySelector('form button').click()")
        tab.wait_for(f"{SHOWN}.includes('0 of 1 sessions')")
        assert not tab.ask("document.querySelector('form').checkVisibility()")
    tab.wait_for(f"{SHOWN}.includes('The server does not answer since')")
    assert faults(tab) == []
    with serving(lambda: Service(bundle, slots=2, rows=1), settings):
        tab.wait_for(f"{SHOWN}.includes('0 of 2 sessions')")
        tab.wait_for(f"!{SHOWN}.includes('does not answer')")
        tab.open("about:blank")
        tab.open(f"http://127.0.0.1:{port}/#token=%zz")
        tab.wait_for(f"{SHOWN}.includes('This is not the server')")
