"""Clients and the server over real sockets: ours, openpi's and a plain WebSocket."""

import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from live import TASK, TEXTS, address, answer_of, assert_close, frame, serving
from websockets.sync.client import connect

import mem0_jax.serve.client as client_file
from mem0_jax.inference.planning import Plan, PlannerError
from mem0_jax.inference.session import Options, Session
from mem0_jax.serve.client import Client, ServerError, pack
from mem0_jax.serve.protocol import Limits
from mem0_jax.serve.service import Service


def play(policy, seed: int, frames: int, task: str = TASK, **options) -> list[np.ndarray]:
    """What a session decides on frames that `seed` names; a Client or an in-process Session."""
    policy.reset(task, seed=seed, **options)
    chunks = []
    for number in range(frames):
        policy.observe(frame(100 * seed + number))
        if policy.due:
            chunks.append(policy.act())
    return chunks


def alone(bundle, seed: int, frames: int, options: Options | None = None) -> list[np.ndarray]:
    return play(Session(bundle, options), seed, frames)


def test_a_session_decides_as_one_in_process_whatever_others_do(server, bundle):
    def robot(seed: int) -> list[np.ndarray]:
        with Client(address(server), env=f"robot {seed}") as policy:
            return play(policy, seed, 9)

    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(robot, range(64)))
    for seed in (0, 17, 63):
        for found, expected in zip(together[seed], alone(bundle, seed, 9), strict=True):
            assert found.shape == (3, 14)
            assert found.dtype == np.float32
            assert_close(found, expected)
    assert len(server.service.sessions) == 0


def test_a_slot_used_before_remembers_nothing(server, bundle):
    for _ in range(2):  # the slot freed last is the next to be taken
        with Client(address(server)) as policy:
            play(policy, 5, 8)
            slot = next(iter(server.service.sessions)).pilot.slot
    with Client(address(server)) as policy:
        found = play(policy, 6, 5)
        assert next(iter(server.service.sessions)).pilot.slot == slot
        again = play(policy, 6, 5)  # likewise after a reset
    expected = alone(bundle, 6, 5)
    for one, other, truth in zip(found, again, expected, strict=True):
        assert_close(one, truth)
        np.testing.assert_array_equal(one, other)
    assert np.abs(alone(bundle, 7, 5)[0] - expected[0]).max() > 0.1


def test_options_of_an_episode(server, bundle):
    with Client(address(server)) as policy:
        found = play(policy, 2, 5, n_action_steps=2, average=True)
        for one, truth in zip(found, alone(bundle, 2, 5, Options(2, average=True)), strict=True):
            assert_close(one, truth)
        policy.reset(TASK, classify=True)
        answer = policy.observe(frame(0))
        assert answer is not None
        assert 0 < answer["end_probability"] < 1
        with pytest.raises(ServerError, match="between 1 and the policy's horizon 3"):
            policy.reset(TASK, n_action_steps=4)
        with pytest.raises(ServerError, match="options must be a map of n_action_steps"):
            policy.reset(TASK, horizon=4)


def test_kept_frames_are_sent_before_a_message_is_too_long(bundle, server):
    with Client(address(server)) as policy:
        policy.reset(TASK, seed=1)
        answers = [policy.observe(frame(number)) for number in range(70)]
        assert [number for number, answer in enumerate(answers) if answer] == [63]
        found = policy.act()
    local = Session(bundle)
    local.reset(TASK, seed=1)
    for number in range(70):
        local.observe(frame(number))
    assert_close(found, local.act())


def test_kept_frames_of_large_pictures_are_sent_in_messages_that_the_server_takes(bundle):
    limits = Limits(message=2**17, frames=4, side=400)  # two pictures of 96 x 128 a message
    frames = [frame(number, size=(96, 128)) for number in range(7)]
    local = Session(bundle)
    local.reset(TASK, seed=1)
    with serving(lambda: Service(bundle, slots=1, rows=2, limits=limits)) as small:
        with Client(address(small)) as policy:
            policy.reset(TASK, seed=1)
            answers = [policy.observe(one) for one in frames]
            assert [number for number, answer in enumerate(answers) if answer] == [1, 3, 5]
            for size in ((401, 8), (200, 300)):
                with pytest.raises(ValueError, match="larger than the server takes: sides of 400 pixels"):
                    policy.observe(frame(0, size=size))
            found = policy.act()
        for one in frames:
            local.observe(one)
        assert_close(found, local.act())


def test_frames_that_could_not_be_sent_for_long_go_in_several_messages(bundle):
    """Staged, so that every frame is judged: a stage that ends in an earlier message is told, too."""
    options, limits = Options(threshold=0.05, patience=2), Limits(frames=4)
    with serving(lambda: Service(bundle, options, Scripted(), slots=1, rows=2, limits=limits)) as server:
        local = Session(bundle, options, Scripted())
        local.reset("whole task", seed=2)
        with Client(address(server), timeout=0.2) as policy:
            policy.reset("whole task", seed=2)
            open_socket, policy.address = policy._socket, "ws://127.0.0.1:9"  # the server is out of reach
            assert open_socket is not None
            open_socket.close()
            for number in range(9):
                with pytest.raises((ConnectionError, TimeoutError)):
                    policy.observe(frame(number))
                local.observe(frame(number))
            policy.address, policy.timeout = address(server), 30.0
            assert_close(policy.act(), local.act())
            assert (policy.status["time"], policy.status["stage"]) == (8, local.pilot.stage)
            assert policy.status["subtask_ended"] == (local.pilot.stage > 0)


def test_openpis_client_works_as_it_is(server, bundle):
    openpi = pytest.importorskip("openpi_client.websocket_client_policy")
    policy = openpi.WebsocketClientPolicy("127.0.0.1", server.port)
    assert policy.get_server_metadata()["horizon"] == 3
    local = Session(bundle)
    local.reset(TASK)
    for number in range(3):
        seen = frame(number)
        image, state = seen["observation"]["head_camera"]["rgb"], seen["joint_action"]["vector"]
        names = [("image", "state"), ("observation/image", "observation/state")][number % 2]
        answer = policy.infer({names[0]: image, names[1]: state.astype(np.float64), "prompt": TASK})
        local.observe(seen)
        assert_close(answer["actions"], local.act())
        assert answer["time"] == number
        assert answer["server_timing"]["infer_ms"] >= answer["policy_timing"]["infer_ms"] > 0
        assert ("prev_total_ms" in answer["server_timing"]) == (number > 0)
    with pytest.raises(RuntimeError, match="bad_observation: the observation lacks"):
        policy.infer({"images": {"front": image}, "state": state, "prompt": TASK})
    assert policy.infer({**frame(3), "prompt": TASK})["time"] == 3
    policy._ws.close()


def test_the_file_stands_alone_on_python_310(server, tmp_path):
    """RMBench's environment: Python 3.10 with NumPy, where one is found with it; else this Python, isolated."""
    pythons = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python"))]
    works = [p for p in pythons if p and not subprocess.run([p, "-c", "import numpy"], capture_output=True).returncode]
    shutil.copy(client_file.__file__, tmp_path / "policy_client.py")
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import numpy as np
        from policy_client import Client
        assert not [name for name in sys.modules if name.split(".")[0] in ("mem0_jax", "jax", "msgpack", "websockets")]
        seen = {{"observation": {{"head_camera": {{"rgb": np.zeros((8, 8, 3), np.uint8)}}}}}}
        with Client({address(server)!r}) as policy:
            policy.reset({TASK!r}, seed=4)
            answer = policy.infer({{**seen, "joint_action": {{"vector": np.zeros(16)}}}})
            print(answer["actions"].shape, answer["time"], policy.due)
    """
    run = subprocess.run([(works or [sys.executable])[0], "-I", "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == ["(3,", "16)", "0", "False"], run.stderr


def test_reconnecting_resumes_where_the_session_was(server, bundle):
    policy = Client(address(server))
    found = play(policy, 3, 4)
    assert policy._socket is not None
    policy._socket._socket.shutdown(socket.SHUT_RDWR)  # the network breaks
    for number in range(4, 7):
        policy.observe(frame(300 + number))
        if policy.due:
            found.append(policy.act())
    policy.close()
    for one, truth in zip(found, alone(bundle, 3, 7), strict=True):
        assert_close(one, truth)


def test_a_message_whose_answer_was_lost_counts_once(server, bundle):
    with connect(address(server)) as ws:
        ws.recv()

        def ask(**message):
            ws.send(pack(message | {"session": "repeated"}))
            return answer_of(ws)

        ask(type="reset", task=TASK, seed=1)
        first = ask(frames=[frame(0), frame(1)], after=-1)
        again = ask(frames=[frame(0), frame(1)], after=-1)
        np.testing.assert_array_equal(first["actions"], again["actions"])
        longer = ask(frames=[frame(0), frame(1), frame(2)], after=-1)
        assert (first["time"], again["time"], longer["time"]) == (1, 1, 2)
        ws.send(pack({"session": "repeated", "frames": [frame(5)], "after": 4}))
        assert "the session is at time 2, the frames follow 4" in str(ws.recv())
        ask(type="close")


def test_a_lost_session_is_refused_until_it_is_reset(bundle):
    with serving(lambda: Service(bundle, slots=2, rows=2, idle_seconds=2.0)) as short:  # noqa: SIM117
        with Client(address(short), session="robot") as policy, connect(address(short)) as other:
            play(policy, 0, 2)
            other.recv()
            other.send(pack({"session": "nobody", **frame(0)}))
            assert str(other.recv()).startswith("unknown_session: there is no session 'nobody'")
            other.send(pack({"session": "robot", **frame(0)}))
            assert str(other.recv()).startswith("in_use: session 'robot'")
            for _ in range(100):
                if not len(short.service.sessions):
                    break
                threading.Event().wait(0.1)
            assert len(short.service.sessions) == 0
            policy.observe(frame(2))
            with pytest.raises(ServerError, match="was idle for 2 s, or the server is new") as caught:
                policy.act()
            assert caught.value.kind == "unknown_session"
            assert_close(play(policy, 6, 2)[0], alone(bundle, 6, 2)[0])


def test_too_many_sessions_are_refused_and_harm_nobody(bundle):
    with serving(lambda: Service(bundle, slots=2, rows=2)) as small:  # noqa: SIM117
        with Client(address(small)) as first, Client(address(small)) as second, Client(address(small)) as third:
            found = play(first, 1, 2)
            play(second, 2, 2)
            with pytest.raises(ServerError, match="all 2 sessions are taken") as caught:
                third.reset(TASK)
            assert caught.value.kind == "full"
            second.close()
            play(third, 3, 2)
            assert_close(found[0], alone(bundle, 1, 2)[0])


def test_a_batch_serves_sessions_side_by_side(server, bundle):
    with connect(address(server)) as ws:
        ws.recv()

        def ask(messages):
            ws.send(pack({"type": "batch", "messages": messages}))
            return answer_of(ws)["batch"]

        names = [f"b{i}" for i in range(5)]
        ask([{"type": "reset", "task": TASK, "seed": i, "session": name} for i, name in enumerate(names)])
        bad = {"session": "b1", "image": np.zeros((4, 4), np.uint8), "state": [0.0] * 14}
        answers = ask([{"session": name, **frame(100 * i)} for i, name in enumerate(names)] + [bad, 3, {"type": "x"}])
        for i, answer in enumerate(answers[:5]):
            assert_close(answer["actions"], alone(bundle, i, 1)[0])
        assert [answer["error"]["kind"] for answer in answers[5:]] == ["bad_observation", "bad_message", "bad_message"]
        twice = ask([{"session": "b0", **frame(1)}, {"session": "b0", **frame(2)}])
        assert twice[0]["time"] == 1
        assert twice[1]["error"]["kind"] == "busy"
        ask([{"type": "close", "session": name} for name in names])


class Scripted:
    """Names the texts in turn; waits for `gate` where it is told to."""

    def __init__(self) -> None:
        self.gate, self.slow = threading.Event(), "slow"

    def next_subtask(self, situation) -> Plan:
        if situation.task == self.slow:
            assert self.gate.wait(30)
        if situation.task == "fails":
            raise PlannerError("the planner's answer cannot be used")
        return Plan(TEXTS[1 + len(situation.finished) % 2])


def test_staged_sessions_with_the_servers_planner(bundle):
    planner = Scripted()
    options = Options(threshold=0.05, patience=2)  # every frame of this untrained policy ends a subtask
    with serving(lambda: Service(bundle, options, planner, slots=64, rows=8)) as staged:  # noqa: SIM117
        with Client(address(staged)) as policy, Client(address(staged)) as slow:
            local = Session(bundle, options, planner)
            policy.reset("whole task", seed=2)
            local.reset("whole task", seed=2)
            slow.reset("slow", seed=2)
            waiting = ThreadPoolExecutor(1).submit(slow.infer, frame(0))
            ended = []
            for number in range(7):
                answer = policy.observe(frame(number))
                pilot = local.observe(frame(number))
                assert answer is not None
                assert pilot.reply is not None
                assert (answer["stage"], answer["instruction"]) == (pilot.stage, pilot.instruction)
                assert answer["end_probability"] == pytest.approx(pilot.reply.end_probability, rel=1e-4)
                ended.append(answer["subtask_ended"])
                assert policy.due == local.due
                if policy.due:
                    assert_close(policy.act(), local.act())
            assert sum(ended) >= 2
            assert not waiting.done()  # its planner held up nobody
            planner.gate.set()
            assert waiting.result(30)["instruction"] == TEXTS[1]
            slow.reset("fails")
            with pytest.raises(ServerError, match="cannot be used") as caught:
                slow.infer(frame(0))
            assert caught.value.kind == "planner"


def test_staged_sessions_planned_by_the_client(server, bundle):
    options = {"threshold": 0.05, "patience": 2}
    local = Session(bundle, Options(**options), Scripted())
    local.reset("whole task", seed=2)
    with Client(address(server)) as policy:
        with pytest.raises(ServerError, match="no planner"):
            policy.reset("whole task", planner="server")
        policy.reset("whole task", seed=2, planner="client", **options)
        named = 0
        for number in range(7):
            policy.observe(frame(number))
            pilot = local.observe(frame(number))
            if policy.status["plan_needed"]:
                with pytest.raises(ServerError) as caught:
                    policy.act()
                assert caught.value.kind == "plan_needed"
                planned = policy.plan(TEXTS[1 + named % 2])
                if not planned["plan_needed"]:  # once more, as after a lost answer
                    again = policy.plan(TEXTS[1 + named % 2])
                    assert (again["time"], again["stage"]) == (planned["time"], planned["stage"])
                    with pytest.raises(ServerError, match="no subtask is needed"):
                        policy.plan("another")
                named += 1
            assert (policy.status["stage"], policy.status["instruction"]) == (pilot.stage, pilot.instruction)
            if policy.due:
                assert_close(policy.act(), local.act())
        assert named >= 3


def test_what_the_client_checks_itself(server):
    with pytest.raises(ConnectionError, match="no policy server at ws://127"):
        Client("ws://127.0.0.1:9", wait=0.2)
    with pytest.raises(ValueError, match="ws://host:port"):
        Client("http://127.0.0.1:9")
    with Client(address(server)) as policy:
        policy.reset(TASK)
        with pytest.raises(ServerError, match="no frame yet"):
            policy.act()
        for spoilt, what in (
            ({"observation": {}}, "lacks"),
            (frame(0) | {"joint_action": {"vector": np.full(14, np.nan)}}, "finite"),
            (
                {
                    "observation": {"head_camera": {"rgb": np.zeros((3, 8, 8), np.uint8)}},
                    "joint_action": {"vector": np.zeros(14)},
                },
                "uint8",
            ),
        ):
            with pytest.raises(ValueError, match=what):
                policy.observe(spoilt)
        assert policy.infer(frame(0))["time"] == 0


def test_the_file_imports_numpy_and_the_standard_library_alone():
    source = Path(client_file.__file__).read_text()
    names = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert {name for name in names if name not in sys.stdlib_module_names} == {"numpy"}
    assert importlib.util.find_spec("numpy")
