"""Questions to train a planner on: what `mem0-jax plan prepare` writes and `plan train` reads.

A folder holds its images as PNG files and `rows.jsonl`, one question a line in plain words, of which `planner.prompt`
makes the prompt:

    {"episode": 0, "frame": 41, "task": ..., "initial": "images/episode_0/initial_observation.png",
     "finished": [{"subtask": ..., "image": "images/episode_0/frame_1.png"}], "summary": null,
     "plan": {"subtask": ..., "summary": ""}}

`summary` is null for planners with key frames; else it is the running summary before, and the plan's is the one after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mem0_jax.data import files
from mem0_jax.data.files import AnyPath, DatasetError, dataset_path
from mem0_jax.inference.planning import Plan
from mem0_jax.planner.prompt import Prompt, answer, build

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Question:
    """One question and its answer; images are paths relative to the folder.

    Attributes:
        episode, frame: of the dataset; the question is asked at this frame.
        task: the whole task.
        initial: the episode's first image.
        finished: subtasks finished so far with the images of their ends, oldest first.
        summary: None, or the running summary before.
        plan: the right answer.
    """

    episode: int
    frame: int
    task: str
    initial: PurePosixPath
    finished: tuple[tuple[str, PurePosixPath], ...]
    summary: str | None
    plan: Plan

    @property
    def prompt(self) -> Prompt[PurePosixPath]:
        """As planners are asked."""
        return build(self.task, self.initial, self.finished, self.summary)

    @property
    def answer(self) -> str:
        """As planners shall answer."""
        return answer(self.plan, summary=self.summary is not None)

    def to_json(self) -> dict[str, Any]:
        """A line of `rows.jsonl`."""
        return {
            "episode": self.episode,
            "frame": self.frame,
            "task": self.task,
            "initial": str(self.initial),
            "finished": [{"subtask": text, "image": str(image)} for text, image in self.finished],
            "summary": self.summary,
            "plan": {"subtask": self.plan.subtask, "summary": self.plan.summary},
        }


def read_questions(folder: str | Path) -> list[Question]:
    """Reads `rows.jsonl` of a folder.

    Raises:
        MissingFile, DatasetError: naming the file, the line and the field.
    """
    root = dataset_path(folder)
    path = root / ROWS
    rows = files.read_json_lines(path)
    if not rows:
        raise DatasetError(f"{path} holds no questions; write it with 'mem0-jax plan prepare'")
    return [_question(root, row, f"{path}, question {i}") for i, row in enumerate(rows, 1)]


def _question(root: AnyPath, row: Mapping[str, Any], where: str) -> Question:
    def image(value: Any, what: str) -> PurePosixPath:
        files.inside(root, _of(value, str, where, what), where)
        return PurePosixPath(value)

    finished = [_of(done, dict, where, "finished") for done in _of(row.get("finished"), list, where, "finished")]
    plan = _of(row.get("plan"), dict, where, "plan")
    summary = row.get("summary")
    return Question(
        _of(row.get("episode"), int, where, "episode"),
        _of(row.get("frame"), int, where, "frame"),
        _of(row.get("task"), str, where, "task"),
        image(row.get("initial"), "initial"),
        tuple(
            (
                _of(done.get("subtask"), str, where, "finished.subtask"),
                image(done.get("image"), "finished.image"),
            )
            for done in finished
        ),
        None if summary is None else _of(summary, str, where, "summary"),
        Plan(*(_of(plan.get(name), str, where, f"plan.{name}") for name in ("subtask", "summary"))),
    )


def _of(value: Any, kind: type, where: str, what: str) -> Any:
    if not isinstance(value, kind):
        raise DatasetError(f"{where}: {what} is {str(value)[:80]!r}; expected {kind.__name__}")
    return value
