"""`mem0-jax eval openloop`: a policy watches a recorded dataset."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress
from mem0_jax.units import counted

SUMMARY = (
    "Shows the episodes of a LeRobot dataset to a policy, frame by frame, and compares the action chunks it samples "
    "with the recorded actions: errors of every joint at every offset, next to those of holding still, and precision "
    "and recall of the subtask-end classifier. Writes openloop.html and openloop.json."
)
EXAMPLES = [
    "mem0-jax eval openloop runs/demo/dataset --bundle runs/demo/with_memory/bundle --episodes 20",
    "mem0-jax eval openloop data/mine --bundle runs/mine/bundle --held-out 8",
]


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser("eval openloop", SUMMARY, EXAMPLES)
    flags.add_argument("dataset", metavar="DATASET", help="a folder, or an address such as gs://bucket/folder")
    flags.add_argument("--bundle", type=Path, metavar="DIR", required=True, help="the policy")
    chosen = flags.add_mutually_exclusive_group()
    chosen.add_argument("--episodes", type=int, metavar="N", help="the first so many episodes (default: all)")
    chosen.add_argument(
        "--held-out", type=int, metavar="N", help="those that training with data.held_out=N has never seen"
    )
    flags.add_argument("--held-out-seed", type=int, metavar="S", default=42, help="that training's data.seed")
    flags.add_argument("--every", type=int, metavar="K", default=1, help="sample a chunk at every K-th frame")
    flags.add_argument("--threshold", type=float, metavar="P", help="end-of-subtask probability (default: its own)")
    flags.add_argument("--seed", type=int, metavar="S", default=0, help="seed of the sampled chunks")
    flags.add_argument("--parallel", type=int, metavar="N", default=16, help="episodes side by side")
    flags.add_argument(
        "--camera",
        metavar="KEY",
        action="append",
        default=[],
        help="feature with the pictures; once a camera, in the policy's order (default: those it was trained on)",
    )
    flags.add_argument(
        "--text",
        choices=["subtask", "global_task", "task"],
        default="",
        help="feature with the instruction (default: that of training; not known of older bundles: subtask, else task)",
    )
    flags.add_argument("--out", type=Path, metavar="DIR", default=Path("openloop"), help="folder of the results")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write openloop.json to this file as well")
    return flags


def main(argv: Sequence[str]) -> int:
    """Shows the episodes, prints a table."""
    flags = parser().parse_args(argv)
    counts = [flags.every, flags.parallel, *(n for n in (flags.episodes, flags.held_out) if n is not None)]
    if min(counts) < 1 or min(flags.seed, flags.held_out_seed) < 0:
        raise UserError("--episodes, --held-out, --every and --parallel must be at least 1, seeds at least 0")
    if flags.threshold is not None and not 0 < flags.threshold < 1:
        raise UserError(f"--threshold must lie between 0 and 1, got {flags.threshold}")
    from mem0_jax.data.cameras import camera_name
    from mem0_jax.data.lerobot import LeRobotDataset
    from mem0_jax.data.pictures import EpisodeDataset
    from mem0_jax.data.subset import hold_out
    from mem0_jax.eval.closed import software
    from mem0_jax.eval.openloop import measure, replay, trained_cameras, trained_text
    from mem0_jax.eval.openloop_html import write_page
    from mem0_jax.eval.results import bundle_digest
    from mem0_jax.inference.compiled import keep_compiled_if_possible
    from mem0_jax.policies.bundle import load_bundle

    keep_compiled_if_possible()
    with Progress(f"opening {flags.bundle}"):
        bundle = load_bundle(flags.bundle)
    try:
        dataset: EpisodeDataset = LeRobotDataset(flags.dataset)
        if flags.held_out:
            dataset = hold_out(dataset, flags.held_out, flags.held_out_seed)[1]
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    cameras = tuple(flags.camera) or trained_cameras(bundle, dataset)
    trained = tuple(camera.feature for camera in bundle.inputs.cameras)
    for shown, own in zip(cameras, trained):
        if camera_name(shown) != camera_name(own):
            print(f"warning: the policy was trained on {own!r} and is shown {shown!r}", file=sys.stderr)
    episodes = dataset.episodes[: flags.episodes]
    total, text = sum(episode.length for episode in episodes), flags.text or trained_text(bundle, dataset)
    with Progress("showing", total, "frame") as progress:
        options = {
            "cameras": cameras,
            "text": text,
            "every": flags.every,
            "seed": flags.seed,
            "parallel": flags.parallel,
        }
        found = replay(bundle, dataset, episodes, **options, progress=progress.advance)
    threshold = bundle.policy.spec.end_threshold if flags.threshold is None else flags.threshold
    result = {
        "dataset": str(flags.dataset),
        "policy": {"bundle": str(flags.bundle), "sha256": bundle_digest(flags.bundle), "provenance": bundle.provenance},
        "settings": {
            "every": flags.every,
            "seed": flags.seed,
            "threshold": threshold,
            "flow_steps": bundle.flow_steps,
            "camera": ", ".join(cameras),
            "trained_camera": ", ".join(trained),
            "text": text,
            "held_out": flags.held_out or 0,
        },
        **software(),
        **measure(found, threshold),
    }
    write_json(flags.out / "openloop.json", result)
    write_page(flags.out / "openloop.html", result, found)
    print(table(result))
    print(f"\nresults: {flags.out}")
    if flags.json:
        write_json(flags.json, result)
    return 0


def table(result: dict[str, Any]) -> str:
    """The figures to read in a terminal."""
    shown = f"{counted(len(result['episodes']), 'episode')}, {counted(result['chunks'], 'chunk')}"
    lines = [f"{result['dataset']}: {shown}", *filter(None, [result["broken"]]), ""]
    offsets = sorted({0, result["horizon"] // 2, result["horizon"] - 1})
    heads = "".join(f"{f'offset {k}':>11s}" for k in offsets)
    lines.append(f"{'mean absolute error':20s}{'all':>9s}{heads}{'holding still':>15s}")
    for joint in result["joints"]:
        values = (joint["mae_by_offset"][k] for k in offsets)
        cells = "".join(f"{'-' if value is None else f'{value:.4f}':>11s}" for value in values)
        held = "-" if joint["mae_hold"] is None else f"{joint['mae_hold']:.4f}"
        lines.append(f"{joint['name']:20s}{joint['mae']:9.4f}{cells}{held:>15s}")
    quality = result["classifier"]
    if quality is None:
        return "\n".join([*lines, "", "subtask-end classifier: the dataset has no positive label"])
    at = quality["at_threshold"]
    precision = "none said" if at["precision"] is None else f"{at['precision']:.3f}"
    text = f"precision {precision}, recall {at['recall']:.3f}, F1 {at['f1']:.3f} at threshold {at['threshold']:g}"
    return "\n".join([*lines, "", f"subtask-end classifier: {text}; {quality['positives']} positive frames"])
