"""`mem0-jax train`: train a policy as a configuration file says."""

import runpy
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.errors import UserError, did_you_mean
from mem0_jax.progress import duration

if TYPE_CHECKING:
    from mem0_jax.train.loop import FitResult

SUMMARY = (
    "Trains a policy on LeRobot datasets or packed shards, as a configuration file says, and writes a bundle. Every "
    "field of the file can be set as a flag, such as --config.train.steps=2000; --config.policy=NAME takes another "
    "policy, with its own model and learning rates. The same command continues a run that "
    "was stopped or killed, exactly where its last checkpoint was. In the folder: metrics.jsonl, validation.jsonl, "
    "checkpoints/, bundle/."
)


class FlagError(UserError):
    """A configuration file or an override that cannot be used."""


def parser() -> CommandParser:
    """The flags besides the overrides."""
    return parser_of_runs(
        "train",
        SUMMARY,
        [
            "mem0-jax train --config=configs/small.py --workdir=runs/small \\",
            "    --config.data.datasets=\"('runs/demo/dataset',)\" --config.train.steps=2000",
            "mem0-jax train --config=m1_mix --workdir=runs/m1 --config.hardware=v5e-16 --config.train.batch_size=512",
        ],
    )


def parser_of_runs(name: str, summary: str, examples: Sequence[str]) -> CommandParser:
    """The flags of a command that trains."""
    flags = CommandParser(name, summary, examples)
    flags.add_argument(
        "--config", required=True, metavar="FILE", help="a file of configs/, or the name of one that is installed"
    )
    flags.add_argument(
        "--workdir", required=True, type=Path, metavar="DIR", help="folder of the run, made or continued"
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="write what came out to this file as well")
    return flags


def main(argv: Sequence[str]) -> int:
    """Trains."""
    flags, overrides = parser().parse_known_args(argv)
    from mem0_jax.train.job import Job
    from mem0_jax.train.terminal import number

    result = trained("train", flags, overrides, Job)
    if result is None:
        return 130
    last, bundle = result.rows[-1] if result.rows else {}, flags.workdir / "bundle"
    loss = number(last.get("loss"))
    print(f"{bundle}: {int(result.state.step)} steps, loss {loss}, {duration(result.seconds)}")
    tell(flags.json, result, bundle=str(bundle))
    return 0


def trained(name: str, flags: Any, overrides: Sequence[str], kind: Any, *read: Any) -> "FitResult | None":
    """The run of a job of the class `kind`, whose lessons `read` makes; None: it was stopped, which was said."""
    from mem0_jax.config import from_dict
    from mem0_jax.distributed.startup import start

    config = read_config(flags.config, overrides, kind)
    start()
    from mem0_jax.inference.compiled import keep_compiled_if_possible
    from mem0_jax.train.loop import TrainingInterrupted
    from mem0_jax.train.run import run
    from mem0_jax.train.terminal import told

    job = from_dict(kind, config)
    keep_compiled_if_possible()
    try:
        with told(job.train.steps) as progress:
            return run(job, flags.workdir, progress, *read)
    except TrainingInterrupted as stopped:
        print(f"mem0-jax {name}: {stopped}", file=sys.stderr)
        return None


def tell(path: Path | None, result: "FitResult", **more: Any) -> None:
    """Writes what came out, where it was asked for."""
    if path:
        last = result.rows[-1] if result.rows else {}
        write_json(path, {**more, "steps": int(result.state.step), "seconds": result.seconds, "last_row": last})


def read_config(file: str, overrides: Sequence[str], kind: type | None = None) -> dict[str, Any]:
    """The settings of a configuration file with overrides `--config.path=value`.

    Where one sets a field of the class `kind` that decides others, such as `--config.policy=NAME`, these are the
    class's own, not the file's, before further overrides.

    Raises:
        FlagError: no such file, an unknown field (with the closest known one), or a value of another type.
    """
    from absl import flags as absl_flags
    from ml_collections import config_flags

    config = _load(_find(file))
    if kind is not None:
        config = _decide(kind, config, overrides)
    for word in overrides:
        _check_field(word.partition("=")[0], config)
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["train", *overrides])
    try:
        rest = values(["train", *overrides])
    except absl_flags.Error as error:
        raise FlagError(str(error)) from error
    if len(rest) > 1:
        raise FlagError(f"unexpected argument {rest[1]!r}; settings are given as --config.path=value")
    return config.to_dict()  # the flags wrote into it


def _find(file: str) -> Path:
    import mem0_jax.configs

    path, installed = Path(file), Path(mem0_jax.configs.__path__[0])
    if path.is_file():
        return path
    known = sorted(p.stem for p in installed.glob("*.py") if not p.stem.startswith("_"))
    if path.stem in known and str(path.parent) in (".", "configs"):
        return installed / f"{path.stem}.py"
    raise FlagError(
        f"there is no configuration {file!r}{did_you_mean(path.stem, known)}; installed: {', '.join(known)}"
    )


def _load(path: Path) -> Any:
    """What `get_config()` of a file returns."""
    settings = runpy.run_path(str(path))
    if "get_config" not in settings:
        raise FlagError(f"{path} is no configuration: it defines no get_config()")
    return settings["get_config"]()


def _decide(kind: type, config: Any, overrides: Sequence[str]) -> Any:
    from ml_collections import ConfigDict

    from mem0_jax.config import DECIDES, decided

    given = dict(word.removeprefix("--config.").split("=", 1) for word in overrides if "=" in word)
    for field in fields(kind):
        value = given.get(field.name) if DECIDES in field.metadata else None
        if value is not None and value != config.get(field.name):
            config = ConfigDict(decided(kind, config.to_dict(), field.name, value))
    return config


def _check_field(name: str, config: Any) -> None:
    if not name.startswith("--config."):
        raise FlagError(f"unknown argument {name!r}; settings are given as --config.path=value")
    from ml_collections import ConfigDict

    node: Any = config
    place = "--config"
    for key in name.split(".")[1:]:
        known = list(node) if isinstance(node, ConfigDict) else []
        if key not in known:
            hint = did_you_mean(key, known)
            raise FlagError(f"{name}: {place} has no field {key!r}{hint}; its fields: {', '.join(known) or 'none'}")
        node, place = node[key], f"{place}.{key}"
