"""Who names the subtasks, as the flags of `mem0-jax eval closed` say."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mem0_jax.cli import main
from mem0_jax.envs.press_button import PressButton
from mem0_jax.policies.bundle import abstract_params, new_folder, save_params, write_description
from mem0_jax.tree import flatten, unflatten


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    monkeypatch.setattr(PressButton, "step_limit", 5)


def run(bundle_folder, out, *flags):
    shared = ["--bundle", str(bundle_folder), "--out", str(out), "--episodes", "1", "--parallel", "2", "--videos", "0"]
    # With this threshold and patience a subtask ends in frames 2 and 4.
    acting = ["--threshold", "0.001", "--patience", "3", "--json", str(out / "copy.json")]
    code = main(["eval", "closed", "press_button", *shared, *acting, *flags])
    [variant] = json.loads((out / "copy.json").read_text())["variants"] if (out / "copy.json").is_file() else [{}]
    return code, variant


@pytest.fixture
def chat():
    """A chat server that wants a key; gives its address and the questions."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            right = self.headers["Authorization"] == "Bearer secret"
            asked.append(body)
            text = f"next_subtask: press the button\nsummary: asked {len(asked)} times"
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            answer = {"choices": [choice]} if right else {"error": {"message": "a wrong key"}}
            data = json.dumps(answer).encode()
            self.send_response(200 if right else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *message):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_planner_behind_an_address_is_told_key_model_and_summary(bundle_folder, tmp_path, chat, monkeypatch):
    pytest.importorskip("openai")
    address, asked = chat
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    flags = ["--planner", address, "--planner-model", "teacher", "--planner-summary"]
    code, variant = run(bundle_folder, tmp_path, *flags)
    assert code == 0
    assert [body["model"] for body in asked] == ["teacher"] * 3
    assert "asked 1 times" in json.dumps(asked[1]["messages"])
    assert "asked 2 times" in json.dumps(asked[2]["messages"])
    assert (variant["settings"]["planner"], variant["episodes"][0]["stages"]) == (address, 2)


def test_a_planner_that_refuses_the_key_makes_no_result(bundle_folder, tmp_path, chat, monkeypatch, capsys):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    code, variant = run(bundle_folder, tmp_path, "--planner", chat[0], "--planner-model", "teacher")
    assert code == 1
    assert "refuses the key" in variant["episodes"][0]["error"]
    assert "is no result" in capsys.readouterr().out


def test_a_planner_s_bundle_answers_in_this_process(bundle, bundle_folder, tmp_path):
    """An untrained one says nothing that could be used, four times."""
    config, rng = bundle.config.backbone, np.random.default_rng(0)
    with new_folder(tmp_path / "planner") as unfinished:
        write_description(unfinished, config)
        bundle.tokenizer.save(str(unfinished / "tokenizer.json"))
        random = {
            path: rng.normal(size=leaf.shape).astype("f") for path, leaf in flatten(abstract_params(config)).items()
        }
        save_params(unfinished, unflatten(random))
    code, variant = run(bundle_folder, tmp_path / "out", "--planner", str(tmp_path / "planner"))
    assert code == 1
    assert variant["episodes"][0]["error"].startswith("planner: ")
    assert "(4 answers were tried)" in variant["episodes"][0]["error"]


def test_without_a_planner_the_policy_is_told_the_whole_task(bundle_folder, tmp_path):
    for planner, stages in (("none", 0), ("oracle", 2)):
        code, variant = run(bundle_folder, tmp_path / planner, "--planner", planner)
        assert code == 0
        assert (variant["settings"]["planner"], variant["episodes"][0]["stages"]) == (planner, stages)
        assert variant["settings"]["classify"] is (planner == "oracle")


@pytest.mark.parametrize(
    ("planner", "more", "message"),
    [
        ("policy", (), "holds a policy: a planner is a backbone alone"),
        ("ftp://127.0.0.1", (), "expected one such as http://"),
        ("http://127.0.0.1:1/v1", ("--planner-timeout", "0"), "timeout is 0.0 s"),
        ("somebody", (), "expected oracle, none, server, a planner's folder"),
    ],
)
def test_what_is_no_planner_is_refused_before_anything_is_written(
    bundle_folder, tmp_path, capsys, planner, more, message
):
    code, _ = run(bundle_folder, tmp_path, "--planner", str(bundle_folder) if planner == "policy" else planner, *more)
    assert code == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
