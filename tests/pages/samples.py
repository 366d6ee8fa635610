"""Every page of the product that is a file, made small, with names and texts of strangers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mem0_jax.data.robot import RMBENCH
from mem0_jax.data.show import show_dataset
from mem0_jax.eval.openloop import Replay, measure
from mem0_jax.eval.openloop_html import write_page
from mem0_jax.eval.report import Attention, Curve, Facts, Results, Side, Video, write_report
from mem0_jax.eval.statistics import wilson_interval
from mem0_jax.eval.summary_html import write_summary

DATASETS = Path(__file__).parents[1] / "data/assets"
EVIL = "<script>document.title='pwned'</script>\"'&" + "x" * 90
ABLATION = ("memory both", "memory anchor only", "memory window only", "memory none")
SWEEP = tuple(f"horizon {number}" for number in (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 30))


def write_pages(folder: Path) -> dict[str, Path]:
    """All pages by name."""
    found = {f"show {name}": folder / f"{name}.html" for name in ("lerobot_v30", "lerobot_v21_cameras")}
    for page in found.values():
        show_dataset(DATASETS / page.stem, page, episodes=3)
    for name, variants in {"one": ("",), "ablation": ABLATION, "sweep": SWEEP, "evil": (EVIL, "b" * 200)}.items():
        found[f"summary {name}"] = folder / name / "summary.html"
        (folder / name).mkdir()
        write_summary(folder / name, summary(variants, task=EVIL if name == "evil" else "put_back_block"))
    for name, joints in {"openloop": 14, "openloop still": 0}.items():
        found[name] = folder / f"{name.replace(' ', '_')}.html"
        write_page(found[name], *openloop(joints))
    found["report"], found["report bare"] = folder / "full/report.html", folder / "bare/report.html"
    write_report(folder / "full", results())
    write_report(folder / "bare", results(bare=True))
    return found


def summary(variants: Sequence[str], task: str, episodes: int = 6) -> dict[str, Any]:
    """What results.json holds of variants of which each solves fewer episodes, the last has no results."""
    made = [variant(i, name, episodes) for i, name in enumerate(variants)]
    pairs = {"both": 1, "neither": 1, "only_first": 2, "only_second": 0}
    difference = {"against": variants[0], "trials": 6, "difference": -0.3, "interval": [-0.7, 0.2], "p_value": 0.125}
    return {
        "complete": len(variants) == 1,
        "task": task,
        "instruction": f"put the block back where it was {task}",
        "setting": "bundle",
        "timestamp": "2026-01-02 03:04:05",
        "seeds": list(range(100, 100 + episodes)),
        "chance": 0.25,
        "command": ["mem0-jax", "eval", "closed", task, "--bundle", "a/very/long/path/of/a/bundle" * 4],
        "policy": {"bundle": f"runs/{task}", "sha256": "0" * 64, "provenance": {"made_by": task}},
        "versions": {"jax": "0.9"},
        "variants": made,
        "differences": [{"variant": name, "pairs": pairs, **difference} for name in variants[1:]],
        "timing": {name or "all": {"seconds": 12.0, "episodes_per_minute": 30.0} for name in variants},
    }


def variant(number: int, name: str, episodes: int) -> dict[str, Any]:
    """One of them; every third has an error."""
    failed = number % 3 == 2
    solved = [i >= number for i in range(episodes)][: 0 if failed else None]
    rate = {"number": sum(solved), "trials": len(solved), "rate": np.mean(solved) if solved else None}
    rate |= {"interval": list(wilson_interval(sum(solved), len(solved)))}
    entries = [
        {"number": i, "seed": 100 + i, "steps": 40, "reward": 0.5, "success": i >= number, "film": f"episode{i}.mp4"}
        | {"error": f"planner: {name}" if failed else "", "film": None if failed else f"{i}.mp4"}
        for i in range(episodes)
    ]
    return {
        "name": name,
        "settings": {"n_action_steps": number + 1, "planner": "none"},
        "success": rate,
        "right_given_placed": rate,
        "reward": None if failed else 0.512345,
        "steps": None if failed else 123.4,
        "errors": episodes if failed else 0,
        "episodes": entries,
    }


def openloop(joints: int) -> tuple[dict[str, Any], Replay]:
    """What openloop.json holds of two episodes in which so many joints move, and what was predicted."""
    rng, chunks, horizon = np.random.default_rng(0), 24, 30
    moves = (np.arange(16) < joints).astype(np.float32)
    recorded = [np.sin(np.arange(16) + 0.1 * (np.arange(horizon)[:, None] + i)) * moves for i in range(chunks)]
    found = Replay(
        predicted=[(chunk + rng.normal(0, 0.1, chunk.shape) * moves).astype(np.float32) for chunk in recorded],
        recorded=[chunk.astype(np.float32) for chunk in recorded],
        is_pad=[np.arange(horizon) >= horizon - i for i in range(chunks)],
        state=[np.zeros(16, np.float32)] * chunks,
        episode=[3] * 12 + [4] * 12,
        frame=[*range(0, 120, 10)] * 2,
        probability=rng.uniform(0, 1, 240).tolist(),
        label=[int(i % 40 > 37) for i in range(240)] if joints else [],
    )
    about = {
        "dataset": f"datasets/{EVIL}",
        "frames": 240,
        "chunks": chunks,
        "command": ["mem0-jax", "eval", "openloop", EVIL],
        "policy": {"bundle": EVIL, "sha256": "0" * 64, "provenance": {EVIL: EVIL}},
        "settings": {"threshold": 0.5, "every": 10},
        "versions": {"jax": "0.9"},
    }
    assert len(RMBENCH.action.names) == 16
    return measure(found, 0.5) | about, found


def results(bare: bool = False) -> Results:
    """Of a demo; bare: nothing was placed, filmed or measured."""
    step, rng = np.arange(10, 1010, 10), np.random.default_rng(0)
    falling = np.exp(-step / 300) + 0.05 + 0.02 * rng.random(len(step))
    film = rng.integers(0, 255, (6, 48, 64, 3), np.uint8)
    facts = Facts(EVIL, EVIL, 0.25, 700_000, 1000, 271.3, {"record": 21.4}, {"training": "0 to 9"}, EVIL, {EVIL: EVIL})
    if bare:
        curve = Curve(np.array([1]), np.array([np.nan]), np.array([0.5]), np.array([np.nan]))
        side = Side((False,), (False,), (False,), curve)
        return Results(side, side, facts)
    sides = [
        Side(
            success=tuple(i < solved for i in range(12)),
            placed=(True,) * 12,
            placed_right=tuple(i < solved for i in range(12)),
            curve=Curve(step, factor * falling, factor * falling, falling),
            videos=(Video(film, EVIL, True), Video(film, "seed 2", False)),
        )
        for solved, factor in ((11, 1.0), (4, 1.4))
    ]
    weights = np.full(6, 1 / 6)
    return Results(sides[0], sides[1], facts, Attention(film, weights, film[0], film[1], step=34))
