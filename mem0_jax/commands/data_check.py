"""`mem0-jax data check`: validate a dataset and name everything wrong with it."""

from collections.abc import Sequence
from pathlib import Path

from mem0_jax.cli import CommandParser
from mem0_jax.disk import write_json
from mem0_jax.errors import UserError
from mem0_jax.progress import Progress

SUMMARY = (
    "Reads every file of a LeRobot dataset (v2.0, v2.1, v3.0; a folder or an address such as gs://bucket/folder) and "
    "lists everything wrong with it by episode and frame: missing and damaged files, lengths, timestamps, index "
    "columns, NaN, shapes, tasks, subtask ends, pictures, statistics. Exit code 1 if there is an error."
)


def parser() -> CommandParser:
    """The flags."""
    flags = CommandParser(
        "data check", SUMMARY, ["mem0-jax data check datasets/put_back_block --no-video --json findings.json"]
    )
    flags.add_argument("folder", metavar="DIR", help="the dataset")
    flags.add_argument("--no-video", action="store_true", help="do not decode pictures: a fast pass")
    flags.add_argument("--workers", type=int, metavar="N", help="files checked at once (default: one a core)")
    flags.add_argument("--json", type=Path, metavar="FILE", help="write the findings to this file as well")
    return flags


def main(argv: Sequence[str]) -> int:
    """Checks a dataset."""
    flags = parser().parse_args(argv)
    if flags.workers is not None and flags.workers < 1:
        raise UserError(f"--workers is {flags.workers}; expected at least 1")
    if flags.json and not flags.json.parent.is_dir():
        raise UserError(f"--json: the folder {flags.json.parent} does not exist")
    from mem0_jax.data.check import check_dataset

    with Progress("checking", None, "file") as progress:
        report = check_dataset(flags.folder, video=not flags.no_video, workers=flags.workers, progress=progress.reach)
    for finding in report.findings:
        named = not finding.file or finding.file in finding.message
        print(f"{finding.severity:<8} {finding}" + ("" if named else f"  [{finding.file}]"))
    if flags.json:
        write_json(flags.json, report.to_json())
    warnings = len(report.findings) - report.errors
    seen = "pictures not decoded" if flags.no_video else "every picture decoded"
    print(
        f"{report.errors} errors, {warnings} warnings in {report.episodes} episodes, {report.frames} frames, "
        f"{report.files} files ({seen})"
    )
    return 1 if report.errors else 0
