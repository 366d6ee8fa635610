"""The policy folder in RMBench's evaluation: the reference's order of calls, equal actions on both roads, errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, TaskEnv, evaluate, load, settings, watch

from mem0_jax.data.normalize import NormStats
from mem0_jax.data.rmbench_tasks import TASKS

M1 = ["--task_name", "put_back_block", "--action_horizon", "2", "--global_task", "put it back"]
MN = ["--task_name", "press_button", "--action_horizon", "3", "--threshold", "3", "--global_task", "put it back"]

# What the reference does in one episode of four steps: every frame is seen at once.
REFERENCE_M1 = """
    reset, look 0, see 0, sample, do, look 1, see 1, do, look 2, see 2,
    look 2, sample, do, look 3, see 3, do, look 4, see 4
"""
# Frames wait for the decision that needs them. The last two would be seen by nobody.
DEFERRED_M1 = """
    reset, look 0, see 0, sample, do, look 1, do, look 2,
    look 2, see 1, see 2, sample, do, look 3, do, look 4
"""
# What the reference does in five steps where every frame is judged an end and the third one counts: a chunk of three
# actions is abandoned after two, the planner is asked, and the frame is seen again under the new subtask.
REFERENCE_MN = """
    reset, look 0, ask 0 (), see 0 A., sample, do, look 1, see 1 A., do, look 2, see 2 A., ask 0 (A. 2),
    look 2, see 2 B., sample, do, look 3, see 3 B., do, look 4, see 4 B., ask 0 (A. 2, B. 4),
    look 4, see 4 C., sample, do, look 5, see 5 C.
"""


def events(text: str) -> list[str]:
    """The entries of a trace in the notation above."""
    flat = " ".join(text.split())
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(flat + ","):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append(flat[start:i].strip())
            start = i + 1
    return parts


def of_policy(trace: list[str]) -> list[str]:
    return [event for event in trace if event.split()[0] in ("see", "sample", "ask")]


def of_harness(trace: list[str]) -> list[str]:
    return [event for event in trace if event.split()[0] in ("reset", "look", "do")]


def play(policies: Path, task: str, overrides: list[str], steps: int, trace: list[str], episodes: int = 1):
    """(actions [steps, 14] of every episode, whether each succeeded)."""
    module, model = load(policies, overrides)
    if model.settings.server is None:
        watch(model.policy, trace)
    env = TaskEnv(task, steps, trace)
    succeeded = evaluate(module, model, env, trace, list(range(episodes)))
    if model.settings.server is not None:
        model.policy.close()
    return np.stack(env.actions), succeeded


def test_m1_in_the_order_of_the_reference(policies, bundle):
    trace: list[str] = []
    _, succeeded = play(policies, "put_back_block", [*M1, "--execution_ckpt", str(bundle)], 4, trace)
    told = [event.removesuffix(" put it back") for event in trace]
    assert told == events(DEFERRED_M1)
    assert succeeded == [False]
    reference = events(REFERENCE_M1)
    assert of_harness(told) == of_harness(reference)
    assert of_policy(told) == of_policy(reference)[: len(of_policy(told))]
    assert all(event.startswith("see") for event in of_policy(reference)[len(of_policy(told)) :])


def test_mn_in_the_order_of_the_reference(policies, bundle, planner):
    trace: list[str] = []
    planner.trace = trace
    play(policies, "press_button", [*MN, "--execution_ckpt", str(bundle), "--vllm_url", planner.url], 5, trace)
    reference = events(REFERENCE_MN)
    assert of_harness(trace) == of_harness(reference)
    assert of_policy(trace) == of_policy(reference)


@pytest.mark.parametrize("overrides", [M1, MN])
def test_both_roads_act_alike(policies, bundle, planner, server, overrides, capsys):
    here, there = (["--execution_ckpt", str(bundle)], ["--server", server])
    if overrides is MN:
        here += ["--vllm_url", planner.url]
    task, traces, asked, actions = overrides[1], ([], []), [], []
    for road, trace in zip((here, there), traces):
        planner.trace = []
        actions.append(play(policies, task, [*overrides, *road], 7, trace, episodes=2)[0])
        asked.append(planner.trace)
    assert actions[0].shape == (14, 14)
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-5)
    assert not np.allclose(actions[0][:7], actions[0][7:], atol=1e-3)  # episodes differ
    assert of_harness(traces[0]) == traces[1]
    assert asked[0] == asked[1]
    lines = capsys.readouterr().out.splitlines()
    here_acts, there_acts = (json.loads(line.partition("acts by ")[2]) for line in lines if "acts by" in line)
    assert here_acts == there_acts
    assert (here_acts["flow_steps"], here_acts["classify"], here_acts["threshold"]) == (2, overrides is MN, 1e-6)
    stages = [line for line in lines if line.startswith("[mem0_jax] stage")]
    assert stages[: len(stages) // 2] == stages[len(stages) // 2 :]
    assert stages[:2] == (["[mem0_jax] stage 0: A.", "[mem0_jax] stage 1: B."] if overrides is MN else [])


def test_seeds_repeat_and_differ(policies, bundle):
    def actions(seed: int) -> np.ndarray:
        road = ["--execution_ckpt", str(bundle), "--seed", str(seed)]
        return play(policies, "put_back_block", [*M1, *road], 3, [])[0]

    first = actions(0)
    np.testing.assert_array_equal(first, actions(0))
    assert not np.allclose(first, actions(1), atol=1e-3)


def test_success_ends_the_chunk(policies, bundle, monkeypatch):
    module, model = load(policies, [*M1, "--execution_ckpt", str(bundle)])
    trace: list[str] = []
    env = TaskEnv("put_back_block", 9, trace)
    take = env.take_action

    def winning(action, action_type="qpos"):
        take(action, action_type)
        env.eval_success = True

    monkeypatch.setattr(env, "take_action", winning)
    assert evaluate(module, model, env, trace, [0]) == [True]
    assert trace == ["reset", "look 0", "do", "look 1"]


def test_another_camera(policies, bundle):
    road = ["--execution_ckpt", str(bundle)]
    expected = play(policies, "put_back_block", [*M1, *road], 2, [])[0]
    found = play(policies, "put_back_block", [*M1, *road, "--camera_key", "left_camera"], 2, [])[0]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"camera_key is 'wrist'; the observation has head_camera, left_camera"):
        play(policies, "put_back_block", [*M1, *road, "--camera_key", "wrist"], 2, [])


def test_the_benchmarks_instruction_is_the_default(policies, bundle):
    _, model = load(policies, ["--task_name", "swap_T", "--execution_ckpt", str(bundle), "--action_horizon", "3"])
    assert model.settings.global_task == TASKS["swap_T"].instruction
    assert model.settings.staged is False


def test_statistics_are_compared(policies, bundle, tmp_path):
    own, other = bundle / "norm_stats.json", tmp_path / "norm_stats.json"
    road = [*M1, "--execution_ckpt", str(bundle), "--state_stats_path"]
    load(policies, [*road, str(own)])
    span = {"min": np.full(16, -1.0), "max": np.full(16, 1.5)}
    NormStats(span, span).save(other)
    with pytest.raises(ValueError, match=r"differs from the statistics in the bundle \(state: min\)"):
        load(policies, [*road, str(other)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "task_name is missing"),
        (["--task_name", "swap_block"], "did you mean swap_blocks"),
        (["--task_name", "mine", "--task_type", "M1"], "global_task is missing"),
        ([*M1, "--task_type", "Mn"], "task_type is 'Mn'; expected M1"),
        ([*M1, "--action_horizn", "8"], "'action_horizn' is unknown: did you mean action_horizon"),
        ([*M1, "--device", "cuda:0"], "'device' is unknown: choose devices by"),
        ([*M1, "--threshold", "0"], "threshold is 0; expected at least 1"),
        ([*M1, "--threshold", "0.5"], "threshold is 0.5; expected a whole number"),
        ([*M1, "--seed", "True"], "seed is True; expected a whole number"),
        ([*M1], "set either server"),
        ([*M1, "--server", "ws://a:1", "--execution_ckpt", "b"], "set either server"),
        ([*M1, "--server", "ws://a:1", "--state_stats_path", "s"], "the server's bundle holds its statistics"),
        ([*MN, "--execution_ckpt", "b"], "vllm_url is missing: press_button is M\\(n\\)"),
        ([*MN, "--server", "ws://a:1", "--vllm_url", "http://b"], "serve BUNDLE --planner http://b"),
    ],
)
def test_settings_that_cannot_be(policies, overrides, message):
    with pytest.raises(ValueError, match=message):
        load(policies, overrides)


def test_the_horizon_must_fit(policies, bundle, server):
    for road in (["--execution_ckpt", str(bundle)], ["--server", server]):
        with pytest.raises(Exception, match="action_horizon is 30; the policy's chunks have 3"):
            load(policies, [*M1, "--action_horizon", "30", *road])


def test_an_unused_planner_is_told(policies, bundle, capsys):
    load(policies, [*M1, "--execution_ckpt", str(bundle), "--vllm_url", "http://localhost:8000"])
    assert "put_back_block is M(1): no planner is asked" in capsys.readouterr().out


def test_nulls_of_the_command_line(policies):
    read = settings(next(policies.iterdir()) / "deploy_policy.yml", ["--server", "null", "--seed", "3"])
    assert (read["server"], read["seed"]) == ("null", 3)
    with pytest.raises(ValueError, match="server=None"):
        load(policies, [*M1, "--server", "null"])


def test_a_copy_without_the_library_says_what_it_needs(tmp_path):
    """In RMBench's own environment: Python 3.10 with NumPy where one is found with it, else this Python, isolated."""
    folder = tmp_path / "policy/Mem0_JAX"
    shutil.copytree(ROOT / "scripts/rmbench", folder, ignore=shutil.ignore_patterns("__pycache__"))
    missing = run_alone(folder, "ws://127.0.0.1:9")
    assert "mem0_jax/data/rmbench_tasks.py of mem0_jax is not found" in missing.stderr


def test_a_copy_with_its_two_files_plays(tmp_path, server):
    folder = tmp_path / "policy/Mem0_JAX"
    shutil.copytree(ROOT / "scripts/rmbench", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mem0_jax/serve/client.py", folder)
    shutil.copy(ROOT / "mem0_jax/data/rmbench_tasks.py", folder)
    run = run_alone(folder, server)
    assert run.stdout.splitlines()[-1] == json.dumps([[16]] * 5), run.stderr


def run_alone(folder: Path, server: str) -> subprocess.CompletedProcess[str]:
    """Five steps where neither mem0_jax nor JAX can be imported."""
    pythons = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python"))]
    works = [p for p in pythons if p and not subprocess.run([p, "-c", "import numpy"], capture_output=True).returncode]
    program = f"""if True:
        import json, sys
        sys.path.append({str(folder.parent)!r})
        sys.modules["jax"] = None
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
        sys.path[:] = [p for p in sys.path if "editable" not in p]
        import numpy as np
        import Mem0_JAX
        class Env:
            eval_success, take_action_cnt, step_lim, shapes = False, 0, 5, []
            def get_obs(self):
                rgb = np.full((24, 32, 3), self.take_action_cnt, np.uint8)
                return {{"observation": {{"head_camera": {{"rgb": rgb}}}}, "joint_action": {{"vector": np.zeros(16)}}}}
            def take_action(self, action, action_type):
                self.take_action_cnt += 1
                self.shapes.append(action.shape)
        settings = {{"task_name": "swap_T", "server": {server!r}, "action_horizon": 2, "policy_name": "Mem0_JAX"}}
        env, model = Env(), Mem0_JAX.get_model(settings)
        Mem0_JAX.reset_model(model)
        while env.take_action_cnt < env.step_lim:
            Mem0_JAX.eval(env, model, env.get_obs())
        assert "mem0_jax" not in sys.modules
        print(json.dumps(env.shapes))
    """
    python = (works or [sys.executable])[0]
    return subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, timeout=120)
