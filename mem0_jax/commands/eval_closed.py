"""`mem0-jax eval closed`: episodes of a built-in task, results in RMBench's layout."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem0_jax.cli import CommandParser
from mem0_jax.commands.acting import add_acting, add_planner, options_of, planner_of, secret
from mem0_jax.disk import write_json
from mem0_jax.envs import TASKS
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress
from mem0_jax.units import counted

if TYPE_CHECKING:
    from mem0_jax.eval.closed import Player
    from mem0_jax.eval.lockstep import Planners

SUMMARY = (
    "Plays episodes of a built-in task and writes the results in RMBench's layout (_result.txt, eval_log.txt, an mp4 "
    "an episode) with results.json and summary.html. The policy is a bundle, computed here, or a running server. "
    "Several variants play the same episodes, so they are compared in pairs. Ctrl-C keeps what is finished."
)
EXAMPLES = [
    "mem0-jax eval closed put_back_block --bundle runs/demo/with_memory/bundle --n-action-steps 2",
    "mem0-jax eval closed put_back_block --bundle runs/demo/with_memory/bundle --sweep-horizon 1,2,4,6",
    "mem0-jax eval closed put_back_block --bundle runs/demo/with_memory/bundle --n-action-steps 2 --ablate",
    "mem0-jax eval closed press_button --bundle runs/proof/staged/bundle --planner runs/proof/planner --rearm",
    "mem0-jax eval closed press_button --server ws://127.0.0.1:8000 --planner server",
]


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser("eval closed", SUMMARY, EXAMPLES)
    flags.add_argument("task", choices=list(TASKS), metavar="TASK", help=f"one of {', '.join(TASKS)}")
    policy = flags.add_mutually_exclusive_group(required=True)
    policy.add_argument("--bundle", type=Path, metavar="DIR", help="the policy, computed in this process")
    policy.add_argument("--server", metavar="URL", help="the policy, on a server: ws://HOST:PORT")
    flags.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the server's token (default: the environment's MEM0_TOKEN)"
    )
    flags.add_argument("--episodes", type=int, metavar="N", default=100, help="episodes to play")
    flags.add_argument(
        "--first-seed", type=int, metavar="S", default=300_000_000, help="episodes have the seeds S, S + 1, ..."
    )
    flags.add_argument("--parallel", type=int, metavar="N", default=16, help="episodes side by side")
    add_acting(flags)
    who = "oracle (the environment, faultlessly), none (the policy is told the whole task), server (that of --server), "
    add_planner(flags, f"{who}a planner's bundle, or the address of an OpenAI-compatible API", "oracle")
    variants = flags.add_mutually_exclusive_group()
    variants.add_argument("--sweep-horizon", type=numbers, metavar="K,K,...", help="play once for each action horizon")
    variants.add_argument(
        "--ablate", action="store_true", help="play with both branches of memory, with one, and with none"
    )
    flags.add_argument("--videos", type=int, metavar="N", help="episodes to film, of each variant (default: all)")
    flags.add_argument("--out", type=Path, metavar="DIR", default=Path("eval_result"), help="root of the results")
    flags.add_argument("--setting", metavar="NAME", help="name of the policy's setting (default: the bundle's folder)")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write results.json to this file as well")
    return flags


def numbers(text: str) -> list[int]:
    """``"1,2,5"`` as numbers."""
    values = [int(part) for part in text.split(",")]
    if len(set(values)) != len(values):
        raise ValueError(text)
    return values


def main(argv: Sequence[str]) -> int:
    """Plays the episodes, prints a table."""
    flags = parser().parse_args(argv)
    if flags.episodes < 1 or flags.parallel < 1 or flags.first_seed < 0 or (flags.videos or 0) < 0:
        raise UserError("--episodes and --parallel must be at least 1, --first-seed and --videos at least 0")
    if flags.ablate and flags.server is not None:
        raise UserError("--ablate changes the policy itself: give --bundle instead of --server")
    from mem0_jax.eval.closed import Variant, begin, horizon_sweep, memory_ablation, play_all

    options = options_of(flags)
    variants = [Variant("", options)]
    if flags.sweep_horizon:
        variants = horizon_sweep(options, flags.sweep_horizon)
    if flags.ablate:
        variants = memory_ablation(options)
    seeds = range(flags.first_seed, flags.first_seed + flags.episodes)
    with Progress(f"opening {flags.bundle or flags.server}"):
        player = make_player(flags)
    ledger = begin(player, flags.task, variants, seeds, flags.out, flags.setting)
    try:
        with Progress(flags.task, len(variants) * len(seeds), "episode") as progress:
            count = {"parallel": flags.parallel, "videos": flags.videos}
            play_all(ledger, player, variants, **count, progress=lambda variant, outcome: progress.advance())
    finally:
        summary = ledger.summary()
        print(table(summary))
        print(f"\nresults: {ledger.folder}")
        if flags.json:
            write_json(flags.json, summary)
    return 0 if summary["complete"] else 1


def make_player(flags: argparse.Namespace) -> "Player":
    """The policy that the flags name."""
    from mem0_jax.eval.closed import LocalPlayer, RemotePlayer
    from mem0_jax.inference.compiled import keep_compiled_if_possible

    if flags.server is not None:
        who = {"oracle": "client", "server": "server", "none": "none"}.get(flags.planner)
        if who is None or flags.flow_steps:
            raise UserError("with --server, --planner is oracle, none or server, and the flow steps are the server's")
        return RemotePlayer(flags.server, who, secret("MEM0_TOKEN", "--token-file", flags.token_file))
    keep_compiled_if_possible()
    return LocalPlayer(flags.bundle, (flags.planner, make_planner(flags)), flags.flow_steps)


def make_planner(flags: argparse.Namespace) -> "Planners | None":
    """The planner that the flags name for a policy of this process."""
    from mem0_jax.eval.episode import Oracle

    who = flags.planner
    if who in ("oracle", "none"):
        return Oracle if who == "oracle" else None
    if who == "server":
        raise UserError("--planner server is that of --server; with --bundle give another")
    planner = planner_of(flags, "oracle", "none", "server")
    return lambda env: planner


def table(summary: dict[str, Any]) -> str:
    """The figures that matter most, to read in a terminal."""
    lines = [f"{summary['task']}: {counted(len(summary['seeds']), 'episode')}", ""]
    lines.append(f"{'':20s}{'success':>24s}{'right choice, if any':>28s}{'reward':>9s}{'steps':>8s}")
    for variant in summary["variants"]:
        reward, steps = (f"{variant[key]:.3g}" if variant[key] is not None else "-" for key in ("reward", "steps"))
        cells = [rate(variant["success"]), rate(variant["right_given_placed"])]
        lines.append(f"{variant['name'] or 'policy':20s}{cells[0]:>24s}{cells[1]:>28s}{reward:>9s}{steps:>8s}")
    lines += [""] * bool(summary["differences"])
    for entry in summary["differences"]:
        if entry["difference"] is not None:
            low, high = entry["interval"]
            lines.append(
                f"{entry['variant']} against {entry['against']}: {100 * entry['difference']:+.0f} points "
                f"({100 * low:+.0f} to {100 * high:+.0f}), p = {entry['p_value']:.2g}"
            )
    for variant in summary["variants"]:
        errors = [episode for episode in variant["episodes"] if episode["error"]]
        for episode in errors[:5]:
            lines.append(f"{variant['name']} episode {episode['number']} is no result: {episode['error']}".strip())
    return "\n".join(lines)


def rate(counts: dict[str, Any]) -> str:
    """A rate with its 95 % interval."""
    low, high = counts["interval"]
    return "none" if counts["rate"] is None else f"{counts['rate']:.0%} ({low:.0%} to {high:.0%})"
