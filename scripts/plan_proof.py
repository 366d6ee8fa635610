"""What a planner is worth: the built-in staged task, from recorded experts to closed-loop success rates.

    python scripts/plan_proof.py --out runs/proof

Records experts of `press_button`, trains on a CPU, from random weights: a planner on the questions of the recordings,
and one that carries a running summary in place of key frames; a policy that is told one subtask after the other; and a
policy alone, of the same size and recipe, that is told the whole task. Then unseen episodes are played by the staged
system (policy and planner, each of them), by the same policy with a faultless planner, and by the policy alone. What is
finished is kept: the same command goes on where it was stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mem0_jax.demo.processes import shares_of_cores
from mem0_jax.demo.record import record
from mem0_jax.demo.settings import TEST_SEEDS, Demo, open_demo
from mem0_jax.disk import write_json

TASK = "press_button"
POLICIES = {"staged": ["--config.data.text=subtask"], "alone": ["--config.data.text=task"]}
# Alone, a memory that is emptied where subtasks end would forget the count that it needs.
POLICIES["alone"].append("--config.model.memory.memory_accumulation=0")
PLANNERS = {"planner": [], "planner_summary": ["--summaries"]}
EXECUTED = 3  # actions of a chunk


def main() -> None:
    """Runs all steps that are not done and prints the figures."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--out", required=True, type=Path, help="folder of the run")
    flags.add_argument("--seed", default=0, type=int, help="of recordings, trainings and test episodes")
    flags.add_argument("--recorded", default=400, type=int, help="episodes of experts")
    flags.add_argument("--steps", default=8000, type=int, help="of each policy's training")
    flags.add_argument("--episodes", default=100, type=int, help="test episodes of each system")
    given = flags.parse_args()
    settings = {"data": {"episodes": given.recorded}, "train": {"steps": given.steps}}
    demo = open_demo(given.out, TASK, given.seed, settings)
    with demo.timed("record"):
        record(demo)
    with demo.timed("planners"):
        train_planners(demo)
    with demo.timed("policies"):
        train_policies(demo)
    with demo.timed("play"):
        results = play(demo, given.episodes)
    report = summary(results) | {"seconds": demo.seconds(), "settings": vars(given) | {"out": str(given.out)}}
    write_json(demo.out / "report.json", report)
    print(table(report))


def command(words: list[str], log: Path, cores: list[int]) -> subprocess.Popen:
    """`mem0-jax` as a process on its share of the cores."""

    def settle() -> None:
        if cores:
            os.sched_setaffinity(0, cores)

    print("mem0-jax", *words, flush=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "mem0_jax.cli", *words],
            stdout=file,
            stderr=file,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            preexec_fn=settle,
        )


def run(commands: dict[str, list[str]], out: Path) -> None:
    """Runs commands side by side; one that fails ends the script with the end of its log."""
    shares = shares_of_cores(max(len(commands), 1))
    logs = {name: out / f"{name}.log" for name in commands}
    started = {name: command(words, logs[name], cores) for (name, words), cores in zip(commands.items(), shares)}
    codes = {name: process.wait() for name, process in started.items()}
    for name, code in codes.items():
        if code:
            end = logs[name].read_text(errors="replace")[-2000:]
            raise SystemExit(f"{name} failed; the end of its log, {logs[name]}:\n{end}")


def train_planners(demo: Demo) -> None:
    """Questions of the recordings, the runs, their bundles: both planners side by side."""
    missing = [name for name in PLANNERS if not (demo.out / name).exists()]
    questions = {name: demo.out / f"{name}_questions" for name in missing}
    for name, folder in questions.items():
        if not folder.exists():
            run({name: ["plan", "prepare", str(demo.dataset), str(folder), *PLANNERS[name]]}, demo.out)
    runs = {name: demo.out / f"{name}_run" for name in missing}
    words = ["plan", "train", "--config=planner_small", f"--config.train.seed={demo.seed}"]
    asked = {name: f"--config.data.questions=({str(folder)!r},)" for name, folder in questions.items()}
    run({name: [*words, f"--workdir={runs[name]}", asked[name]] for name in missing}, demo.out)
    run({name: ["plan", "merge", str(runs[name]), str(demo.out / name)] for name in missing}, demo.out)


def train_policies(demo: Demo) -> None:
    """Both policies side by side."""
    commands = {}
    for name, differing in POLICIES.items():
        if not (demo.out / name / "bundle").exists():
            words = ["train", "--config=small", f"--workdir={demo.out / name}", *differing]
            words += [f"--config.data.datasets=({str(demo.dataset)!r},)", f"--config.train.seed={demo.seed}"]
            words += [f"--config.train.steps={demo.config['train']['steps']}"]
            commands[name] = [*words, "--config.data.held_out=0", "--config.train.validate_every=0"]
    if commands:
        run(commands, demo.out)


def play(demo: Demo, episodes: int) -> dict[str, list[dict[str, Any]]]:
    """Outcomes of the test episodes, by system; each system's are written when they are complete."""
    from mem0_jax.eval.rollout import Oracle, evaluate
    from mem0_jax.inference.session import Options
    from mem0_jax.planner.local import LocalPlanner, load_generator
    from mem0_jax.policies.bundle import load_bundle

    key_frames = LocalPlanner(load_generator(demo.out / "planner"))
    summary = LocalPlanner(load_generator(demo.out / "planner_summary"), summary=True)
    systems: dict[str, tuple[str, Callable | None]] = {
        "staged, with the planner": ("staged", lambda env: key_frames),
        "staged, running summary": ("staged", lambda env: summary),
        "staged, faultless planner": ("staged", Oracle),
        "policy alone": ("alone", None),
    }
    results = {}
    for name, (policy, namer) in systems.items():
        path = demo.out / f"{name.replace(', ', '_').replace(' ', '_')}_{episodes}.json"
        if not path.exists():
            began = time.perf_counter()
            found = evaluate(
                load_bundle(demo.out / policy / "bundle"),
                TASK,
                demo.seeds(TEST_SEEDS, episodes),
                n_action_steps=EXECUTED,
                options=Options(rearm=True),
                planner=namer,
            )
            write_json(path, [{"seed": r.seed, "success": bool(r.success), "steps": r.steps} for r in found])
            print(f"{name}: {sum(r.success for r in found)} of {episodes}, {time.perf_counter() - began:.0f} s")
        results[name] = json.loads(path.read_text())
    return results


def summary(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Success counts with 95 % Wilson intervals, and Newcombe's interval of the staged system's lead."""
    from mem0_jax.envs import make
    from mem0_jax.eval.statistics import difference_interval, wilson_interval

    counts = {name: (sum(r["success"] for r in rows), len(rows)) for name, rows in results.items()}
    first, *_, last = counts.values()
    return {
        "task": TASK,
        "chance": make(TASK, render=False).chance,
        "success": {name: {"count": c, "interval": wilson_interval(*c)} for name, c in counts.items()},
        "lead": {"rate": first[0] / first[1] - last[0] / last[1], "interval": difference_interval(first, last)},
    }


def table(report: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [f"{TASK}: best without memory {report['chance']:.0%}"]
    for name, row in report["success"].items():
        (right, trials), (low, high) = row["count"], row["interval"]
        lines.append(f"  {name:28s}{right:4d} of {trials} ({low:.0%} to {high:.0%})")
    low, high = report["lead"]["interval"]
    lines.append(f"  lead over the policy alone {report['lead']['rate']:+.0%} ({low:+.0%} to {high:+.0%})")
    return "\n".join([*lines, f"  {sum(report['seconds'].values()):.0f} seconds in all"])


if __name__ == "__main__":
    main()
