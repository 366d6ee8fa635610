"""From a LeRobot dataset of a staged task to questions that a planner is trained on.

A question is asked at the first frame, and at each frame with `subtask_end` 1 after which it falls to 0 or the subtask
changes; that frame is the image of the subtask that ends there. (The reference looks at `subtask_end` alone and misses
subtasks so short that all of their frames are marked.) Frames whose subtask is "null" or empty are passed over, as they
are when policies are trained. Source: RMBench `policy/Mem-0/scripts/llama_data_preparation` (behaviour), whose file
names are kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mem0_jax.data.files import DatasetError
from mem0_jax.data.pictures import open_frames
from mem0_jax.disk import behind, disk_told
from mem0_jax.errors import UserError
from mem0_jax.inference.planning import Plan, PlannerError
from mem0_jax.lock import hold_output
from mem0_jax.planner.prompt import MAX_SUBTASK, answer, parse_answer, summarize
from mem0_jax.planner.questions import ROWS, Question
from mem0_jax.planner.render import sharegpt_row

CAMERA = "observation.image.head_camera"
NULL = ("null", "")


@dataclass(frozen=True)
class Prepared:
    """What was written: questions, of so many episodes; `skipped` names episodes without a subtask, `silent` counts
    changes of the subtask that `subtask_end` does not mark, so that no question is asked."""

    questions: int
    images: int
    episodes: int
    skipped: tuple[int, ...]
    silent: int


def prepare(
    dataset: Any,
    out: Path,
    *,
    camera: str | None = None,
    summaries: bool = False,
    form: str = "rows",
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Prepared:
    """Writes the questions of a dataset and their images to the folder `out`, which appears when it is complete.

    Args:
        dataset: see `data.pictures.EpisodeDataset`; one that has `subtask` and `subtask_end`.
        out: must not exist.
        camera: by default the head camera, or the only one.
        summaries: ask with running summaries, made by `prompt.summarize`, in place of lists of key frames.
        form: "rows" (see `questions`), or "sharegpt", the layout of LLaMA-Factory, its dataset called like `out`.
        progress: called with (episodes done, episodes in all).

    Raises:
        UserError: the dataset cannot be used, `out` exists, another process makes it, or the disk refused.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder or remove it first")
    camera = _camera(dataset) if camera is None else camera
    dataset.image_shape(camera)  # names the cameras there are
    labels = _Labels(dataset)
    images = "images" if form == "rows" else f"{out.name}_images"
    with _new_folder(out) as partial:
        reader, found, skipped = open_frames(dataset, camera), [], []
        for done, episode in enumerate(dataset.episodes, 1):
            turns = labels.turns(episode)
            asked = list(_ask(labels, episode, turns, images, summaries))
            if asked:
                frames = np.array([0, *(frame for frame, _ in turns[1:])])
                _save(reader, episode, frames, partial / images / f"episode_{episode.index}")
            else:
                skipped.append(episode.index)
            found += asked
            progress(done, len(dataset.episodes))
        reader.close()
        _check(dataset, found)
        pictures = {image for question in found for image in question.prompt.images}
        _write(found, partial, form, out.name)
    return Prepared(len(found), len(pictures), len(dataset.episodes) - len(skipped), tuple(skipped), labels.silent)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to fill, which takes its place when the block ends well."""
    out = behind(out)
    partial = out.with_name(f".{out.name}.unfinished")
    with hold_output(out), disk_told(out, "nothing of it is kept"):
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process
        partial.mkdir()
        try:
            yield partial
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class _Labels:
    """The dataset's labels, frame by frame."""

    def __init__(self, dataset: Any):
        missing = [key for key in ("subtask", "subtask_end") if key not in dataset.features]
        if missing:
            raise DatasetError(
                f"{dataset.root} has no {' and no '.join(map(repr, missing))}; questions for a planner are made of a "
                "staged task's subtasks"
            )
        self._ids, self._texts = dataset.texts("subtask")
        self._ends = dataset.column("subtask_end") == 1
        self._tasks, self._task_texts = dataset.texts("global_task" if "global_task" in dataset.features else "task")
        self._null = np.isin(self._ids, [i for i, text in enumerate(self._texts) if text in NULL])
        self.silent = 0

    def turns(self, episode: Any) -> list[tuple[int, int]]:
        """(frame a question is asked at, frame whose subtask is the answer): of each question of an episode."""
        rows = slice(episode.start, episode.start + episode.length)
        kept = np.flatnonzero(~self._null[rows])
        if not len(kept):
            return []
        ends, ids = self._ends[rows][kept], self._ids[rows][kept]
        changes = np.diff(ids) != 0
        asked = ends[:-1] & (~ends[1:] | changes)
        self.silent += int((changes & ~asked).sum())
        return [(0, int(kept[0])), *((int(kept[i]), int(kept[i + 1])) for i in np.flatnonzero(asked))]

    def subtask(self, episode: Any, frame: int) -> str:
        return self._texts[self._ids[episode.start + frame]]

    def task(self, episode: Any, frame: int) -> str:
        return self._task_texts[self._tasks[episode.start + frame]]


def _ask(
    labels: _Labels, episode: Any, turns: Sequence[tuple[int, int]], images: str, summaries: bool
) -> Iterator[Question]:
    folder = PurePosixPath(images) / f"episode_{episode.index}"
    finished: tuple[tuple[str, PurePosixPath], ...] = ()
    summary, subtask = "" if summaries else None, ""
    for number, (frame, answering) in enumerate(turns):
        if number:
            finished += ((subtask, folder / f"frame_{number}.png"),)
        subtask = labels.subtask(episode, answering)
        updated = summarize([text for text, _ in finished]) if summaries else ""
        yield Question(
            episode.index,
            frame,
            labels.task(episode, frame),
            folder / "initial_observation.png",
            finished,
            summary,
            Plan(subtask, updated),
        )
        summary = updated if summaries else None


def _save(reader: Any, episode: Any, frames: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(len(frames)):  # one by one: an episode may have many, of the camera's size
        name = f"frame_{number}.png" if number else "initial_observation.png"
        Image.fromarray(reader.read_frames(episode, frames[number : number + 1])[0]).save(folder / name)


def _check(dataset: Any, questions: Sequence[Question]) -> None:
    """Raises unless there is something to learn, and every answer can be read back."""
    if all(not question.finished for question in questions):
        raise DatasetError(
            f"{dataset.root}: no subtask ends before its episode does, so there is nothing to plan; a staged task is "
            "needed"
        )
    for question in questions:
        summary = question.summary is not None
        try:
            read = parse_answer(answer(question.plan, summary), summary)
        except PlannerError:
            read = None
        if read != question.plan:
            raise DatasetError(
                f"{dataset.root}, episode {question.episode}, frame {question.frame}: the subtask "
                f"{question.plan.subtask!r} cannot be read back from an answer; a subtask is one line of at most "
                f"{MAX_SUBTASK} letters without spaces around it, has no full stop but at its end, and no <image> or <|"
            )


def _write(questions: Sequence[Question], folder: Path, form: str, name: str) -> None:
    if form == "rows":
        lines = [json.dumps(question.to_json(), ensure_ascii=False) + "\n" for question in questions]
        (folder / ROWS).write_text("".join(lines), "utf-8")
        return
    file_name = f"{name}_high_level_finetune_data.json"
    rows = [sharegpt_row(question.prompt, question.answer) for question in questions]
    (folder / file_name).write_text(json.dumps(rows, indent=2, ensure_ascii=False), "utf-8")
    roles = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
    entry = {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content"} | roles,
    }
    (folder / "dataset_info.json").write_text(json.dumps({name: entry}, indent=2), "utf-8")


def _camera(dataset: Any) -> str:
    cameras = [key for key, value in dataset.features.items() if value["dtype"] in ("video", "image")]
    if CAMERA in cameras:
        return CAMERA
    if len(cameras) != 1:
        raise DatasetError(f"{dataset.root} has the cameras {cameras}; choose one of them with --camera")
    return cameras[0]
