"""One side of the demo: trains a policy from the recorded dataset and evaluates it. Runs as a process of its own."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.config import from_dict
from mem0_jax.demo.settings import FAILED, SIDES, TEST_SEEDS, Demo, load_demo
from mem0_jax.disk import explained
from mem0_jax.distributed.hardware import FIRST
from mem0_jax.errors import UserError
from mem0_jax.eval.rollout import evaluate
from mem0_jax.family import policy_family
from mem0_jax.inference.compiled import keep_compiled_if_possible
from mem0_jax.policies.bundle import load_bundle
from mem0_jax.train.config import TrainSettings
from mem0_jax.train.episodes import Episodes
from mem0_jax.train.job import WORDS, DataSettings, Job
from mem0_jax.train.run import run

LOG_EVERY = 50
Tell = Callable[[dict[str, Any]], None]


class Recorded(Episodes):
    """The demo's own: what a run is, its `settings.json` holds, and the bundle lies beside the run's folder."""

    def settings(self) -> dict[str, Any]:
        return {}

    def folder(self, workdir: Path) -> Path:
        return workdir.parent / "bundle"


def train_side(demo: Demo, side: str, tell: Tell) -> Path:
    """Trains one side and writes its bundle; does nothing if it is there. Returns the bundle's folder."""
    folder = demo.out / side
    if not (folder / "bundle").exists():
        made = {"made_by": "mem0-jax demo", "task": demo.task, "seed": demo.seed}
        run(side_job(demo, side), folder / "run", tell, lambda job: replace(Recorded.read(job), made=made))
    return folder / "bundle"


def side_job(demo: Demo, side: str) -> Job:
    """How one side is trained."""
    data, train = demo.config["data"], demo.config["train"]
    family, model = policy_family(demo.config["policy"]), policy_config(demo.config, SIDES[side])
    rates = {group: train["learning_rate"] for group, _ in family.policy(model).learning_rate_groups}
    return Job(
        DataSettings(
            datasets=(str(demo.dataset),),
            camera_size=tuple(data["camera_size"]),
            deploy_resample="bilinear",
            jitter=data["jitter"],
            tokenizer=WORDS,
            max_length=data["max_length"],
            cache_gib=4.0,
            threads=1,
            prefetch=4,
            seed=demo.seed,
        ),
        model,
        TrainSettings(
            steps=train["steps"],
            batch_size=train["lanes"],
            lanes=train["lanes"],
            precision="float32",
            learning_rates=rates,
            floors={group: train["floor"] * rate for group, rate in rates.items()},
            warmup_ratio=train["warmup_steps"] / train["steps"],
            b2=train["b2"],
            seed=demo.seed,
            log_every=LOG_EVERY,
            save_every=max(train["steps"] // 8, 1),
        ),
        hardware=FIRST,
    )


def policy_config(config: dict[str, Any], branches: tuple[str, ...]) -> Any:
    """The demo's policy, without a tokenizer yet; `branches` are the memory branches that it reads."""
    model = config["model"] | {"memory": config["model"]["memory"] | {"branches": list(branches)}}
    return from_dict(policy_family(config["policy"]).config, model)


def evaluate_side(demo: Demo, side: str, tell: Tell) -> None:
    """Plays the test seeds with a side's bundle and writes `evaluation.npz`; does nothing if it is there."""

    folder, settings = demo.out / side, demo.config["eval"]
    if (folder / "evaluation.npz").exists():
        return
    finished = 0

    def progress(count: int) -> None:
        nonlocal finished
        finished += count
        tell({"finished": finished})

    started = time.perf_counter()
    results = evaluate(
        load_bundle(folder / "bundle"),
        demo.task,
        demo.seeds(TEST_SEEDS, settings["episodes"]),
        n_action_steps=settings["n_action_steps"],
        record=settings["recorded"],
        progress=progress,
    )
    arrays: dict[str, Any] = {
        name: np.array([getattr(result, name) for result in results])
        for name in ("seed", "success", "placed", "placed_right", "reward", "steps")
    }
    arrays["seconds"] = np.array(time.perf_counter() - started)
    for i, result in enumerate(results[: settings["recorded"]]):
        recording = result.recording
        assert recording is not None
        arrays[f"frames_{i}"], arrays[f"attention_{i}"] = np.stack(recording.frames), np.stack(recording.attention)
        arrays[f"stages_{i}"] = np.array(recording.subtasks)
    unfinished = folder / "unfinished.npz"
    np.savez_compressed(unfinished, **arrays)
    unfinished.rename(folder / "evaluation.npz")


def run_side(out: Path, side: str) -> None:
    """The worker process of one side: trains, evaluates, tells its progress as JSON lines on standard output."""
    demo = load_demo(out)

    def tell(phase: str) -> Tell:
        return lambda row: print(json.dumps({"phase": phase, **row}), flush=True)

    train_side(demo, side, tell("train"))
    evaluate_side(demo, side, tell("eval"))


def end_with_the_parent() -> None:
    """Ends this process when the one that started it ends, even killed: the pipe to standard input closes then."""

    def wait() -> None:
        while os.read(0, 1):  # not of sys.stdin, whose lock the interpreter's end would wait for
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_the_parent()
    keep_compiled_if_possible()
    try:
        run_side(Path(sys.argv[1]), sys.argv[2])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        told = error if isinstance(error, UserError) else explained(error, sys.argv[1])
        if told is None:
            raise
        print(json.dumps({"phase": FAILED, "reason": str(told)}), flush=True)
        sys.exit(1)
