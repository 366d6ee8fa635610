"""Closed-loop evaluation with a tiny untrained bundle in the real environments."""

import dataclasses
import json
import re

import av
import numpy as np
import pytest

from mem0_jax.cli import main
from mem0_jax.envs import make
from mem0_jax.envs.put_back_block import PutBackBlock
from mem0_jax.errors import UserError
from mem0_jax.eval.closed import LocalPlayer, Variant, begin, memory_ablation, play_all
from mem0_jax.eval.lockstep import play
from mem0_jax.eval.rollout import evaluate
from mem0_jax.inference.planning import PlannerError
from mem0_jax.inference.session import Options
from mem0_jax.policies.bundle import load_bundle, save_bundle
from mem0_jax.policies.inputs import Camera

SEEDS = (300, 301, 302)


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    monkeypatch.setattr(PutBackBlock, "step_limit", 7)
    monkeypatch.setattr("mem0_jax.envs.press_button.PressButton.step_limit", 7)


def run(bundle_folder, out, *flags):
    shared = ["--bundle", str(bundle_folder), "--out", str(out), "--first-seed", "300", "--episodes", "3"]
    return main(["eval", "closed", "put_back_block", *shared, *flags])


def comparable(folder):
    results = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if key not in ("timestamp", "timing", "command")}


def only_folder(out):
    [folder] = (out / "put_back_block/mem0_jax/builtin").glob("*/*")
    return folder


def test_results_stand_in_the_layout_and_repeat(bundle_folder, tmp_path, capsys):
    assert run(bundle_folder, tmp_path / "a", "--n-action-steps", "2", "--json", str(tmp_path / "copy.json")) == 0
    assert "0% (0% to 56%)" in capsys.readouterr().out
    assert run(bundle_folder, tmp_path / "b", "--n-action-steps", "2", "--parallel", "2") == 0
    folder = only_folder(tmp_path / "a")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert comparable(folder) == comparable(only_folder(tmp_path / "b"))

    log = (folder / "eval_log.txt").read_text()
    assert log.startswith("Eval log for put_back_block | mem0_jax | builtin | bundle\nTimestamp: ")
    assert folder.name[:10] in log
    lines = re.findall(r"^episode_id=(\d+), seed=(\d+), result=(Success|Fail)$", log, re.M)
    assert [(int(a), int(b)) for a, b, _ in lines] == list(enumerate(SEEDS))
    text = (folder / "_result.txt").read_text()
    assert re.search(r"^Success Rate: 0.0$", text, re.M)
    assert re.search(r"^Reward: [\d.]+$", text, re.M)

    results = comparable(folder)
    assert results["complete"] is True
    [variant] = results["variants"]
    expected = {"n_action_steps": 2, "average": False, "patience": 2, "flow_steps": 2, "memory": ["window", "anchor"]}
    assert expected.items() <= variant["settings"].items()
    assert [episode["steps"] for episode in variant["episodes"]] == [7, 7, 7]
    assert len(results["policy"]["sha256"]) == 64
    assert json.loads((tmp_path / "copy.json").read_text())["variants"] == results["variants"]
    for number in range(3):
        with av.open(str(folder / f"episode{number}.mp4")) as film:
            assert sum(1 for _ in film.decode(video=0)) == 8  # before the first action, and after each
    assert not list(folder.glob(".*"))


def test_a_film_shows_what_the_policy_saw(bundle_folder, tmp_path):
    assert run(bundle_folder, tmp_path, "--videos", "1", "--n-action-steps", "3") == 0
    folder = only_folder(tmp_path)
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["episode0.mp4"]
    with av.open(str(folder / "episode0.mp4")) as film:
        first = next(film.decode(video=0)).to_ndarray(format="rgb24")
    observation, _ = make("put_back_block").reset(seed=300)
    seen = observation["observation"]["head_camera"]["rgb"].astype(float)
    assert np.abs(first - seen).mean() < 6


def test_ablation_plays_the_same_seeds_and_reads_less(bundle_folder, tmp_path):
    assert run(bundle_folder, tmp_path, "--ablate", "--videos", "0") == 0
    results = comparable(only_folder(tmp_path))
    memories = {variant["name"]: variant["settings"]["memory"] for variant in results["variants"]}
    assert memories == {
        "memory both": ["window", "anchor"],
        "memory window only": ["window"],
        "memory anchor only": ["anchor"],
        "memory none": [],
    }
    assert all([e["seed"] for e in variant["episodes"]] == list(SEEDS) for variant in results["variants"])
    for difference in results["differences"]:
        assert (difference["against"], difference["difference"], difference["p_value"]) == ("memory both", 0, 1)
        assert difference["interval"][0] < 0 < difference["interval"][1]
    page = (only_folder(tmp_path) / "summary.html").read_text()
    assert "memory anchor only, against memory both" in page


def test_memory_branches_change_what_is_done(bundle):
    """The ablation would be worth nothing if its variants acted alike."""
    seen = []
    for variant in memory_ablation(Options()):
        memory = dataclasses.replace(bundle.config.memory, branches=variant.branches)
        changed = dataclasses.replace(bundle, config=dataclasses.replace(bundle.config, memory=memory))
        joints = []

        class Watching(PutBackBlock):
            def step(self, action, joints=joints):
                joints.append(np.array(action))
                return super().step(action)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mem0_jax.envs.put_back_block.PutBackBlock", Watching)
            list(play(changed, "put_back_block", [300], Options(n_action_steps=1)))
        seen.append(np.stack(joints))
    for i in range(4):
        for j in range(i):
            assert np.abs(seen[i] - seen[j]).max() > 1e-4


def test_a_failing_environment_costs_its_own_episode_only(bundle_folder, tmp_path, monkeypatch, capsys):
    step = PutBackBlock.step

    def fragile(self, action):
        if self.steps == 3 and self.np_random_seed == 301:
            raise RuntimeError("the table broke")
        return step(self, action)

    monkeypatch.setattr(PutBackBlock, "step", fragile)
    assert run(bundle_folder, tmp_path) == 1
    assert "episode 1 is no result: RuntimeError: the table broke" in capsys.readouterr().out
    folder = only_folder(tmp_path)
    results = comparable(folder)
    assert results["complete"] is False
    assert results["variants"][0]["success"]["trials"] == 2
    assert [episode["steps"] for episode in results["variants"][0]["episodes"]] == [7, 3, 7]
    assert not (folder / "_result.txt").exists()
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["episode0.mp4", "episode2.mp4"]
    assert "Incomplete" in (folder / "summary.html").read_text()


def test_an_interrupted_run_keeps_what_is_finished(bundle_folder, tmp_path):
    player = LocalPlayer(bundle_folder)
    variants = [Variant("", Options())]
    ledger = begin(player, "put_back_block", variants, SEEDS, tmp_path)

    def stop(variant, outcome):
        if outcome.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_all(ledger, player, variants, parallel=2, progress=stop)
    results = comparable(ledger.folder)
    assert results["complete"] is False
    assert [episode["number"] for episode in results["variants"][0]["episodes"]] == [0, 1]
    assert (ledger.folder / "summary.html").is_file()
    assert not (ledger.folder / "_result.txt").exists()
    assert not list(ledger.folder.glob(".*"))


def test_staged_tasks_are_told_their_subtasks(bundle):
    asked = []

    class Planner:
        def next_subtask(self, situation):
            asked.append((situation.task, len(situation.finished)))
            raise PlannerError("no idea")

    options = Options(threshold=0.001, patience=1)
    for outcome in play(bundle, "press_button", [1, 2], options, parallel=2):
        assert outcome.error == ""
        assert outcome.stages == 6  # every frame but the first of an episode ends a subtask, as it would deployed
    failed = list(play(bundle, "press_button", [1, 2], options, planner=lambda env: Planner(), parallel=2))
    assert [outcome.error for outcome in failed] == ["planner: no idea"] * 2
    assert asked == [("press as often as shown, then confirm", 0)] * 2


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--n-action-steps", "4"], 1, "between 1 and the policy's horizon 3, got 4"),
        (["--sweep-horizon", "1,9"], 1, "got 9"),
        (["--sweep-horizon", "2,2"], 2, "--sweep-horizon"),
        (["--threshold", "2"], 1, "threshold must lie between 0 and 1"),
        (["--flow-steps", "0"], 1, "flow steps must be at least 1"),
        (["--episodes", "0"], 1, "--episodes"),
        (["--planner", "nobody"], 1, "'nobody'"),
        (["--planner", "server"], 1, "--server"),
        (["--server", "ws://127.0.0.1:1"], 2, "not allowed with"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(bundle_folder, tmp_path, capsys, flags, code, message):
    assert run(bundle_folder, tmp_path / "out", *flags) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_policy_of_a_camera_that_the_environments_lack_is_refused_by_name(bundle, tmp_path, capsys):
    inputs = dataclasses.replace(bundle.inputs, cameras=(Camera("observation.images.wrist", (32, 32)),))
    wrist = save_bundle(dataclasses.replace(bundle, inputs=inputs), tmp_path / "wrist")
    assert run(wrist, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "trained on the camera 'wrist'; " in error
    assert "has head_camera alone" in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="'wrist'"):
        evaluate(load_bundle(wrist), "press_button", [1], n_action_steps=1)


def test_unknown_tasks_bundles_and_servers_are_named(tmp_path, capsys, monkeypatch):
    assert main(["eval", "closed", "put_back_blok", "--bundle", str(tmp_path)]) == 2
    assert "put_back_block" in capsys.readouterr().err
    assert main(["eval", "closed", "put_back_block", "--bundle", str(tmp_path / "none")]) == 1
    assert "no config.json" in capsys.readouterr().err
    monkeypatch.setattr("mem0_jax.eval.clients.server_metadata.__defaults__", (0.2,))
    assert main(["eval", "closed", "put_back_block", "--server", "ws://127.0.0.1:1"]) == 1
    assert "mem0-jax serve BUNDLE" in capsys.readouterr().err
