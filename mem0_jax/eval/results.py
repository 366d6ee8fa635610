"""Results on disk in the benchmark's layout, always whole: whatever interrupts a run, what is finished can be read.

    eval_result/TASK/POLICY/CONFIG/SETTING/TIMESTAMP/
        _result.txt     success rate and reward; written when all episodes have an outcome, as the benchmark does
        eval_log.txt    one line an episode
        episodeN.mp4    what the policy saw
        results.json    everything: settings, provenance, outcomes, seeds, versions, timing
        summary.html    the same, to look at

A run of several variants has a folder for each, with the first three, and the last two beside these folders.
Source of the text files' form: RMBench `script/eval_policy.py`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mem0_jax.disk import disk_told, safe_name, write_whole
from mem0_jax.errors import UserError
from mem0_jax.eval.episode import Outcome
from mem0_jax.eval.statistics import Paired, wilson_interval

POLICY, CONFIG = "mem0_jax", "builtin"  # what stands for the benchmark's policy_name and task_config
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"  # in the files, as the benchmark has it
FOLDER_FORMAT = "%Y-%m-%d_%H-%M-%S"


def bundle_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a bundle's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        total.update(f"{path.relative_to(folder).as_posix()}\n{content.hexdigest()}\n".encode())
    return total.hexdigest()


def new_folder(root: Path, task: str, setting: str, now: datetime) -> Path:
    """The folder of a run that starts now. Raises UserError where it cannot be made."""
    parent = root / safe_name(task) / POLICY / CONFIG / safe_name(setting)
    name = now.strftime(FOLDER_FORMAT)
    with disk_told(f"cannot write results under {root}"):
        parent.mkdir(parents=True, exist_ok=True)
        for folder in (parent / f"{name}{suffix}" for suffix in ("", *(f"_{i}" for i in range(2, 100)))):
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise UserError(f"{parent} has a hundred folders of {name}: wait a second")


@dataclasses.dataclass
class VariantResult:
    """One way to play the task.

    Attributes:
        name: such as "memory none"; "" where there is only one.
        settings: all that decides how the policy acts.
        outcomes: by number of the episode; those without an error are results.
        seconds: wall time.
    """

    name: str
    settings: dict[str, Any]
    outcomes: dict[int, Outcome] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def folder(self) -> str:
        """Name of its folder within the run's."""
        return safe_name(self.name) if self.name else ""

    @property
    def played(self) -> list[Outcome]:
        """The results in order."""
        return [outcome for _, outcome in sorted(self.outcomes.items()) if not outcome.error]


class Ledger:
    """The results of a run; every change is on disk at once.

    Args:
        folder: the run's.
        task: its name.
        setting: name of the policy's setting.
        seeds: of the episodes of every variant.
        facts: further entries of results.json.
        variants: names and settings.
        now: when it began.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        setting: str,
        seeds: Sequence[int],
        facts: dict[str, Any],
        variants: Sequence[tuple[str, dict[str, Any]]],
        now: datetime,
    ):
        self.folder, self.task, self.setting, self.seeds, self.facts = folder, task, setting, list(seeds), facts
        self.variants = [VariantResult(name, settings) for name, settings in variants]
        self.timestamp = now.strftime(TIME_FORMAT)
        for variant in self.variants:
            (folder / variant.folder).mkdir(exist_ok=True)
            self._log(variant)
        self._save()

    def add(self, variant: VariantResult, outcome: Outcome, seconds: float) -> None:
        """An episode is over; `seconds` since its variant began."""
        variant.outcomes[outcome.number], variant.seconds = outcome, seconds
        self._log(variant)
        if self.complete(variant):
            self._conclude(variant)
        self._save()

    def film(self, variant: VariantResult, number: int) -> Path:
        """Where the film of an episode goes."""
        return self.folder / variant.folder / f"episode{number}.mp4"

    def complete(self, variant: VariantResult) -> bool:
        """Every episode was played to its end."""
        return len(variant.played) == len(self.seeds)

    def summary(self) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "format": 1,
            "complete": all(map(self.complete, self.variants)),
            "task": self.task,
            "setting": self.setting,
            "timestamp": self.timestamp,
            "seeds": self.seeds,
            **self.facts,
            "variants": [self._numbers(variant) for variant in self.variants],
            "differences": [self._difference(variant) for variant in self.variants[1:]],
            "timing": {variant.name or "all": _timing(variant) for variant in self.variants},
        }

    def _numbers(self, variant: VariantResult) -> dict[str, Any]:
        played = variant.played
        episodes = [dataclasses.asdict(outcome) for _, outcome in sorted(variant.outcomes.items())]
        for episode in episodes:
            del episode["recording"]
            del episode["seconds"]  # in "timing": all else is the same whenever it is run again
            film = self.film(variant, episode["number"])
            episode["film"] = film.relative_to(self.folder).as_posix() if film.is_file() else None
        placed = [outcome for outcome in played if outcome.placed]
        return {
            "name": variant.name,
            "folder": variant.folder,
            "complete": self.complete(variant),
            "settings": variant.settings,
            "success": _rate([outcome.success for outcome in played]),
            "right_given_placed": _rate([outcome.placed_right for outcome in placed]),
            "reward": _mean([outcome.reward for outcome in played]),
            "steps": _mean([outcome.steps for outcome in played]),
            "errors": len(episodes) - len(played),
            "episodes": episodes,
        }

    def _difference(self, variant: VariantResult) -> dict[str, Any]:
        """A variant against the first one, over the seeds that both have results of."""
        first = self.variants[0]
        own, others = ({o.number: o.success for o in v.played} for v in (variant, first))
        common = sorted(own.keys() & others.keys())
        entry: dict[str, Any] = {"variant": variant.name, "against": first.name, "trials": len(common)}
        if not common:
            return entry | {"difference": None, "interval": None, "p_value": None}
        pairs = Paired.of([own[i] for i in common], [others[i] for i in common])
        return entry | {
            "difference": pairs.difference,
            "interval": list(pairs.interval()),
            "p_value": pairs.p_value(),
            "pairs": dataclasses.asdict(pairs),
        }

    def _save(self) -> None:
        write_whole(self.folder / "results.json", (json.dumps(self.summary(), indent=1) + "\n").encode())

    def _log(self, variant: VariantResult) -> None:
        lines = [
            f"Eval log for {self.task} | {POLICY} | {CONFIG} | {self.setting}",
            f"Timestamp: {self.timestamp}",
            "",
        ]
        for number, outcome in sorted(variant.outcomes.items()):
            result = "Error" if outcome.error else "Success" if outcome.success else "Fail"
            lines.append(f"episode_id={number}, seed={outcome.seed}, result={result}")
        write_whole(self.folder / variant.folder / "eval_log.txt", ("\n".join(lines) + "\n").encode())

    def _conclude(self, variant: VariantResult) -> None:
        rates = _rate([outcome.success for outcome in variant.played])["rate"]
        reward = _mean([outcome.reward for outcome in variant.played])
        text = (
            f"Timestamp: {self.timestamp}\n\nInstruction Type: builtin\n\nSuccess Rate: {rates}\n\nReward: {reward}\n"
        )
        write_whole(self.folder / variant.folder / "_result.txt", text.encode())


def _rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    number, trials = sum(outcomes), len(outcomes)
    interval = list(wilson_interval(number, trials))
    return {"number": number, "trials": trials, "rate": number / trials if trials else None, "interval": interval}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _timing(variant: VariantResult) -> dict[str, Any]:
    return {
        "seconds": variant.seconds,
        "episodes_per_minute": 60 * len(variant.outcomes) / variant.seconds if variant.seconds else None,
        "episode_seconds": [outcome.seconds for _, outcome in sorted(variant.outcomes.items())],
    }
