"""A device that fails: who is told, who goes on, and that no slot is given away while somebody's turn is under way."""

import dataclasses
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from live import TASK, TEXTS, address, assert_close, frame, serving

from mem0_jax.inference.planning import Plan
from mem0_jax.inference.session import Session
from mem0_jax.serve.client import Client, ServerError
from mem0_jax.serve.service import Service


class Thinking:
    """A planner that answers when it may."""

    def __init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()

    def next_subtask(self, situation) -> Plan:
        self.asked.set()
        assert self.gate.wait(60)
        return Plan(TEXTS[1])


def status(server) -> int:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def refused(call) -> str:
    with pytest.raises(ServerError) as caught:
        call()
    return caught.value.kind


def test_a_failed_step_costs_memories_and_mixes_none(bundle):
    planner = Thinking()
    with serving(lambda: Service(bundle, None, planner, slots=3, rows=2)) as server:
        staged, failing, idle, late = (Client(address(server)) for _ in range(4))
        engine = server.service._batcher._engine  # pyright: ignore[reportOptionalMemberAccess]
        staged.reset("whole task", seed=2)
        waiting = ThreadPoolExecutor(1).submit(staged.infer, frame(0))
        assert planner.asked.wait(30)
        for client in (failing, idle):
            client.reset(TASK, seed=3, planner="none")
            client.infer(frame(1))

        engine.bundle = dataclasses.replace(bundle, params={})
        failing.observe(frame(2))
        assert refused(failing.act) == "failed"
        assert status(server) == 503
        engine.bundle = bundle

        late.reset(TASK, seed=4, planner="none")  # in the slot that the failed session left
        assert refused(lambda: failing.reset(TASK, planner="none")) == "full"  # the others hold theirs
        late.observe(frame(4))
        expected = Session(bundle)
        expected.reset(TASK, seed=4)
        expected.observe(frame(4))
        assert_close(late.act(), expected.act())
        assert status(server) == 200
        idle.observe(frame(2))
        assert refused(idle.act) == "unknown_session"
        idle.reset(TASK, seed=3, planner="none")

        planner.gate.set()
        answer = waiting.result(30)  # its memory was still to begin
        expected_staged = Session(bundle, planner=planner)
        expected_staged.reset("whole task", seed=2)
        expected_staged.observe(frame(0))
        assert_close(answer["actions"], expected_staged.act())
        for number in range(5, 8):
            late.observe(frame(number))
            expected.observe(frame(number))
        assert_close(late.act(), expected.act())
        for client in (staged, failing, idle, late):
            client.close()
