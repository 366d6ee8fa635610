"""Evaluation against a real server of the policy."""

import asyncio
import dataclasses
import json
import socket
import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from mem0_jax.cli import main
from mem0_jax.envs.press_button import PressButton
from mem0_jax.envs.put_back_block import PutBackBlock
from mem0_jax.errors import UserError
from mem0_jax.eval.clients import LostServerError, play_on_server, server_metadata
from mem0_jax.eval.episode import Oracle
from mem0_jax.eval.lockstep import ROWS, play
from mem0_jax.inference.planning import Plan
from mem0_jax.inference.session import Options
from mem0_jax.serve.client import Client
from mem0_jax.serve.server import Server, Settings
from mem0_jax.serve.service import Service

SEEDS = (300, 301, 302)
STAGED = {"threshold": 0.001, "patience": 3}  # subtasks end in frames 2, 4 and 6: each of these opens the next one


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    monkeypatch.setattr(PutBackBlock, "step_limit", 5)
    monkeypatch.setattr(PressButton, "step_limit", 7)


@contextmanager
def serving(bundle, planner=None):
    """A server with room for two, in a thread of its own; gives its address and what stops it."""
    loop, box, up = asyncio.new_event_loop(), [], threading.Event()

    async def start():
        box.append(Server(Service(bundle, planner=planner, slots=2, rows=ROWS), Settings(port=0)))
        await box[0].start()
        up.set()

    def work():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    def stop():
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(box[0].stop(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(120), "the server did not start"
    try:
        yield f"ws://127.0.0.1:{box[0].port}", stop
    finally:
        stop()


class Clerk:
    """A planner that knows one subtask."""

    def next_subtask(self, situation):
        return Plan("press the button")


@pytest.fixture(scope="module")
def server(bundle):
    with serving(bundle, Clerk()) as (address, _):
        yield address


def outcomes(generator):
    found = sorted(generator, key=lambda outcome: outcome.number)
    return [dataclasses.replace(outcome, seconds=0.0) for outcome in found]


def test_a_server_plays_as_this_process_does(server, bundle_folder, tmp_path):
    shared = ["--episodes", "3", "--first-seed", "300", "--n-action-steps", "2", "--videos", "1"]
    address = ["--server", server, "--parallel", "2", "--setting", "far"]
    command = ["eval", "closed", "put_back_block", *shared, "--out", str(tmp_path)]
    assert main([*command, *address, "--json", str(tmp_path / "far.json")]) == 0
    far = json.loads((tmp_path / "far.json").read_text())
    assert far["complete"] is True
    assert far["policy"]["metadata"]["policy"] == "mem0"
    assert far["variants"][0]["settings"]["n_action_steps"] == 2
    [folder] = (tmp_path / "put_back_block/mem0_jax/builtin/far").glob("*")
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["episode0.mp4"]
    assert main([*command, "--bundle", str(bundle_folder), "--json", str(tmp_path / "near.json")]) == 0
    near = json.loads((tmp_path / "near.json").read_text())
    for one, other in zip(far["variants"][0]["episodes"], near["variants"][0]["episodes"], strict=True):
        assert (one["seed"], one["steps"], one["success"]) == (other["seed"], other["steps"], other["success"])


@pytest.mark.parametrize(("who", "planner"), [("client", Oracle), ("server", lambda env: Clerk()), ("none", None)])
def test_staged_episodes_equal_those_of_this_process_to_the_last_bit(server, bundle, who, planner):
    """Batches of the same size: not even rounding differs. The subtasks told show in the stages and the rewards."""
    options = {"n_action_steps": 2, **STAGED}
    far = outcomes(play_on_server(server, "press_button", SEEDS, options, planner=who, parallel=2))
    near = outcomes(play(bundle, "press_button", SEEDS, Options(**options), planner=planner, parallel=2))
    assert far == near
    assert [outcome.stages for outcome in far] == [0 if who == "none" else 3] * 3
    assert all(outcome.steps == 7 and not outcome.error for outcome in far)


def test_an_episode_that_the_server_refuses_is_no_result(server):
    found = outcomes(play_on_server(server, "put_back_block", SEEDS, {"n_action_steps": 9}, parallel=1))
    assert [outcome.error for outcome in found] == [
        "policy server: n_action_steps must lie between 1 and the policy's horizon 3, got 9"
    ] * 3


def test_clients_without_room_leave_their_episodes_to_the_others(server):
    found = outcomes(play_on_server(server, "put_back_block", range(20), {}, parallel=6))
    assert [(outcome.number, outcome.error) for outcome in found] == [(number, "") for number in range(20)]


def test_a_server_without_room_ends_the_run(server):
    observation, _ = PutBackBlock().reset(seed=0)
    with Client(server) as one, Client(server) as other:
        for client in (one, other):
            client.reset("put the block back")
            client.infer(observation)
        with pytest.raises(LostServerError, match="all 2 sessions are taken"):
            list(play_on_server(server, "put_back_block", range(20), {}, parallel=6))
    # All sessions were given back.
    assert len(outcomes(play_on_server(server, "put_back_block", SEEDS, {}, parallel=2))) == 3


def test_a_server_that_goes_away_ends_the_run(bundle, monkeypatch):
    monkeypatch.setitem(Client.__init__.__kwdefaults__, "timeout", 2.0)
    with serving(bundle) as (address, stop):
        found = play_on_server(address, "put_back_block", range(40), {"n_action_steps": 1}, parallel=2)
        next(found)
        stop()
        with pytest.raises(LostServerError, match=address):
            list(found)
    with pytest.raises(LostServerError, match="mem0-jax serve"):
        server_metadata(address, None, wait=0.3)


def test_what_answers_must_be_a_policy_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = threading.Thread(target=lambda: listener.accept()[0].close())
        answer.start()
        with pytest.raises(UserError, match="mem0-jax serve"):
            server_metadata(f"ws://127.0.0.1:{listener.getsockname()[1]}", None, wait=0.3)
        answer.join()
    with pytest.raises(UserError, match="must look like ws://host:port"):
        server_metadata("localhost:8000", None)
