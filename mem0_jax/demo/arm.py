"""One arm of the demo: trains a policy from the recorded dataset and evaluates it. Runs as a process of its own."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mem0_jax.config import from_dict
from mem0_jax.data.lerobot import LeRobotDataset
from mem0_jax.data.normalize import NormStats
from mem0_jax.data.pipeline import make_loader
from mem0_jax.data.transforms import ColorJitter
from mem0_jax.demo.settings import ARMS, FAILED, TEST_SEEDS, Demo, load_demo
from mem0_jax.disk import explained
from mem0_jax.errors import UserError
from mem0_jax.eval.rollout import evaluate
from mem0_jax.family import PolicyFamily, policy_family
from mem0_jax.inference.compiled import keep_compiled_if_possible
from mem0_jax.policies.base import Trainable
from mem0_jax.policies.bundle import Bundle, load_bundle, save_bundle
from mem0_jax.policies.inputs import Camera, Inputs, make_source
from mem0_jax.train.config import OptimizerConfig, TrainConfig
from mem0_jax.train.loop import fit

LOG_EVERY = 50
Tell = Callable[[dict[str, Any]], None]


def train_arm(demo: Demo, arm: str, tell: Tell) -> Path:
    """Trains one arm and writes its bundle; does nothing if it is there. Returns the bundle's folder."""

    folder = demo.out / arm
    if (folder / "bundle").exists():
        return folder / "bundle"
    dataset, settings = LeRobotDataset(demo.dataset), demo.config["data"]
    stats = NormStats.from_dataset(dataset)
    family = policy_family(demo.config["policy"])
    tokenizer = family.word_tokenizer(dataset.texts("subtask")[1])
    config = policy_config(family, demo.config, tokenizer, ARMS[arm])
    inputs = Inputs(
        cameras=(Camera(size=tuple(settings["camera_size"])),),
        deploy_resample="bilinear",
        text="subtask",
        max_length=settings["max_length"],
    )
    policy = family.policy(config)
    processor = family.processor(tokenizer, config, inputs)
    jitter = settings["jitter"]
    train = train_config(demo, policy)
    source = make_source(
        dataset,
        inputs,
        stats,
        policy.spec,
        processor,
        lanes=train.lanes,
        frames=1,
        seed=demo.seed,
        cache_frames=True,
        jitter=ColorJitter(jitter, jitter, jitter),
    )
    with make_loader(source, threads=1, prefetch=4) as loader:
        result = fit(policy, lambda: loader, train, folder / "run", tell)
    provenance = {"made_by": "mem0-jax demo", "task": demo.task, "seed": demo.seed, "steps": train.steps}
    bundle = Bundle(config, result.state.params, stats, tokenizer, inputs, provenance)
    return save_bundle(bundle, folder / "bundle")


def policy_config(family: PolicyFamily, config: dict[str, Any], tokenizer: Tokenizer, branches: tuple[str, ...]) -> Any:
    """The demo's policy for a tokenizer; `branches` are the memory branches that it reads."""
    model = config["model"] | {"memory": config["model"]["memory"] | {"branches": list(branches)}}
    plain = from_dict(family.config, model)
    return family.completed(plain, tokenizer, tokenizer.get_vocab_size(), plain.dtype)


def train_config(demo: Demo, policy: Trainable) -> TrainConfig:
    """Settings of the trainer."""

    train = demo.config["train"]
    rates = {group: train["learning_rate"] for group, _ in policy.learning_rate_groups}
    optimizer = OptimizerConfig(
        learning_rates=rates,
        floors={group: train["floor"] * rate for group, rate in rates.items()},
        total_steps=train["steps"],
        warmup_ratio=train["warmup_steps"] / train["steps"],
        b2=train["b2"],
    )
    return TrainConfig(
        steps=train["steps"],
        lanes=train["lanes"],
        optimizer=optimizer,
        seed=demo.seed,
        log_every=LOG_EVERY,
        save_every=max(train["steps"] // 8, 1),
    )


def evaluate_arm(demo: Demo, arm: str, tell: Tell) -> None:
    """Plays the test seeds with an arm's bundle and writes `evaluation.npz`; does nothing if it is there."""

    folder, settings = demo.out / arm, demo.config["eval"]
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
        execute=settings["execute"],
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


def run_arm(out: Path, arm: str) -> None:
    """The worker process of one arm: trains, evaluates, tells its progress as JSON lines on standard output."""
    demo = load_demo(out)

    def tell(phase: str) -> Tell:
        return lambda row: print(json.dumps({"phase": phase, **row}), flush=True)

    train_arm(demo, arm, tell("train"))
    evaluate_arm(demo, arm, tell("eval"))


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
        run_arm(Path(sys.argv[1]), sys.argv[2])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        told = error if isinstance(error, UserError) else explained(error, sys.argv[1])
        if told is None:
            raise
        print(json.dumps({"phase": FAILED, "reason": str(told)}), flush=True)
        sys.exit(1)
