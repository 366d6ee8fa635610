"""What commands that let a policy act have in common: flags of how it acts, of its planner, and secrets."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mem0_jax.errors import UserError

if TYPE_CHECKING:
    from mem0_jax.inference.planning import Planner
    from mem0_jax.inference.session import Options


def add_acting(flags: argparse.ArgumentParser, note: str = "") -> None:
    """The flags of `inference.session.Options`, and of the flow solver."""
    group = flags.add_argument_group("acting", note)
    group.add_argument("--n-action-steps", type=int, metavar="K", help="actions of a chunk to execute (default: all)")
    group.add_argument("--average", action="store_true", help="average what overlapping chunks predict")
    group.add_argument("--threshold", type=float, metavar="P", help="end-of-subtask probability (default: trained)")
    group.add_argument("--patience", type=int, default=2, metavar="N", help="positive frames that end a subtask")
    group.add_argument(
        "--rearm", action="store_true", help="a subtask ends only after a frame of it that was not positive"
    )
    group.add_argument("--flow-steps", type=int, metavar="N", help="steps of the flow solver (default: trained)")


def options_of(flags: argparse.Namespace) -> "Options":
    """How the policy acts, by the flags of `add_acting`."""
    from mem0_jax.inference.session import Options

    return Options(flags.n_action_steps, flags.average, flags.threshold, flags.patience, rearm=flags.rearm)


def add_planner(flags: argparse.ArgumentParser, who: str, default: str | None = None) -> None:
    """The flags of a planner; `who` says what may be given."""
    note = "The environment variable OPENAI_API_KEY holds the key of the planner's API, if it has one."
    group = flags.add_argument_group("staged tasks", note)
    group.add_argument("--planner", metavar="WHO", default=default, help=f"who names the subtasks: {who}")
    group.add_argument("--planner-model", metavar="NAME", help="model of the planner's API (default: its first)")
    group.add_argument("--planner-key-file", type=Path, metavar="FILE", help="the key, in a file")
    group.add_argument("--planner-timeout", type=float, default=60.0, metavar="S", help="for one of 4 attempts")
    group.add_argument(
        "--planner-summary", action="store_true", help="it carries a running summary in place of key frames"
    )


def planner_of(flags: argparse.Namespace, *words: str) -> "Planner":
    """The planner that `--planner` names: a bundle's folder, or the address of an OpenAI-compatible API. The command
    knows `words` beside.

    Raises:
        UserError: it is neither, or cannot be had.
    """
    who, summary = flags.planner, flags.planner_summary
    if Path(who).is_dir():
        from mem0_jax.planner.local import LocalPlanner, load_generator

        if flags.planner_model or flags.planner_key_file:
            raise UserError("--planner-model and --planner-key-file are for the address of a planner, not for a folder")
        return LocalPlanner(load_generator(who, batch=1), summary=summary)
    if "://" not in who:
        known = ", ".join([*words, "a planner's folder, or an address such as http://localhost:8001/v1"])
        raise UserError(f"--planner is {who!r}; expected {known}")
    from mem0_jax.planner.remote import RemotePlanner

    key = secret("OPENAI_API_KEY", "--planner-key-file", flags.planner_key_file)
    timeout = flags.planner_timeout
    return RemotePlanner(who, flags.planner_model, api_key=key or "EMPTY", timeout=timeout, summary=summary)


def secret(variable: str, flag: str, file: Path | None) -> str | None:
    """A token or a key, from the flag's file or else from the environment. Raises UserError: it cannot be one."""
    try:
        value = os.environ.get(variable, "") if file is None else file.read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {file}: {error}") from None
    value = value.strip()
    if file is not None and not value:
        raise UserError(f"{flag} {file} is empty")
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise UserError(f"{flag}, {variable}: it must be of printable ASCII characters, without spaces")
    return value or None
