"""From the files of a finished run to its report."""

import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mem0_jax import __version__
from mem0_jax.demo.settings import FPS, TEST_SEEDS, TRAIN_SEEDS, Demo
from mem0_jax.envs import make
from mem0_jax.eval.report import Attention, Curve, Facts, Results, Side, Video, write_report
from mem0_jax.policies.bundle import load_bundle
from mem0_jax.train.log import read_rows


def report(demo: Demo) -> dict[str, Any]:
    """Writes report.html, report.json and hero.png; returns what report.json holds."""
    evaluations = {}
    for side in ("with_memory", "without_memory"):
        with np.load(demo.out / side / "evaluation.npz", allow_pickle=False) as arrays:
            evaluations[side] = {key: arrays[key] for key in arrays.files}
    results = Results(
        **{side: _side(demo.out / side, evaluation) for side, evaluation in evaluations.items()},
        facts=_facts(demo),
        attention=_attention(evaluations["with_memory"]),
    )
    return write_report(demo.out, results)


def _side(folder: Path, evaluation: dict[str, np.ndarray]) -> Side:
    rows = read_rows(folder / "run" / "metrics.jsonl")
    curve = Curve(*(np.array([row[key] for row in rows]) for key in ("step", "loss", "action_loss", "classifier_loss")))
    count = sum(key.startswith("frames_") for key in evaluation)
    videos = tuple(
        Video(evaluation[f"frames_{i}"], f"seed {evaluation['seed'][i]}", bool(evaluation["success"][i]), FPS)
        for i in range(count)
    )
    outcomes = (tuple(map(bool, evaluation[key])) for key in ("success", "placed", "placed_right"))
    return Side(*outcomes, curve=curve, videos=videos)


def _attention(evaluation: dict[str, np.ndarray]) -> Attention | None:
    """The window as it was read when the last stage began, in the first recorded success."""
    recorded = [i for i in range(len(evaluation["seed"])) if f"frames_{i}" in evaluation and evaluation["success"][i]]
    if not recorded:
        return None
    frames, weights, stages = (evaluation[f"{name}_{recorded[0]}"] for name in ("frames", "attention", "stages"))
    step = int(np.argmax(stages == stages.max()))
    remembered = min(step, weights.shape[1])
    if not remembered:
        return None
    newest_last = weights[step, :remembered][::-1]
    return Attention(frames[step - remembered : step], newest_last, frames[0], frames[step], step)


def _facts(demo: Demo) -> Facts:
    env, folder = make(demo.task, render=False), demo.out / "with_memory"
    rows = read_rows(folder / "run" / "metrics.jsonl")
    bundle = load_bundle(folder / "bundle")
    episodes = {"training": (TRAIN_SEEDS, demo.config["data"]["episodes"])}
    episodes["evaluation"] = (TEST_SEEDS, demo.config["eval"]["episodes"])
    seeds = {name: demo.seeds(*which) for name, which in episodes.items()}
    return Facts(
        task=demo.task,
        instruction=env.instruction,
        chance=env.chance,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(bundle.params)),
        steps=demo.config["train"]["steps"],
        frames_per_second=float(np.median([row["frames_per_second"] for row in rows])),
        wall_seconds=demo.seconds(),
        seeds={name: f"{numbers[0]} to {numbers[-1]}" for name, numbers in seeds.items()},
        command=f"mem0-jax demo --out {demo.out.name} --task {demo.task} --seed {demo.seed}",
        software={
            "mem0_jax": __version__,
            "jax": jax.__version__,
            "Python": platform.python_version(),
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        },
    )
