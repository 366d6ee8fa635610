"""What a planner is asked and how its answer is read: one builder for training rows and for deployment.

Two forms. With key frames, the reference's training form: the task, the first image, and every finished subtask with
the image of its end. With a running summary (`summary` is not None): the task, the first image, the planner's own
summary so far and the last finished subtask, so that the question does not grow with the episode. Images of more than
`MAX_PIXELS` are shrunk before anything else is done to them, in training and wherever a planner is asked.
Sources: RMBench `policy/Mem-0/scripts/llama_data_preparation` (behaviour); the summary follows MEM, arXiv:2603.03596.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
from PIL import Image as Picture

from mem0_jax.inference.planning import Plan, PlannerError, Situation
from mem0_jax.planner import system_prompt

MAX_PIXELS = 262_144  # of an image that a planner sees; what released planners were fine-tuned with
MAX_SUBTASK, MAX_SUMMARY = 500, 4000  # letters; longer answers are runaway generations
_QUOTED = 200  # letters of a bad answer that an error shows
_CONTROL = re.compile(r"<image>|<\|")  # what planners take for an image or a control token

Image = TypeVar("Image")


@dataclass(frozen=True)
class Prompt(Generic[Image]):
    """A question: what comes first of all, and the parts of the user's turn in their order, text or image."""

    system: str
    parts: tuple[str | Image, ...]

    @property
    def images(self) -> list[Image]:
        """The images, in the order of the text."""
        return [part for part in self.parts if not isinstance(part, str)]


def build(
    task: str, initial: Image, finished: Sequence[tuple[str, Image]] = (), summary: str | None = None
) -> Prompt[Image]:
    """The question for the next subtask.

    Args:
        task: the whole task.
        initial: first image of the episode, in whatever form (an array, a file's path), but not a `str`.
        finished: finished subtasks with the images of their ends, oldest first.
        summary: None: the list of key frames. Otherwise the running summary, "" where there is none yet.

    Raises:
        PlannerError: a text holds what would be taken for an image or a control token.
    """
    for text in (task, summary or "", *(subtask for subtask, _ in finished)):
        if found := _CONTROL.search(text):
            raise PlannerError(f"the text {text!r} holds {found[0]!r}, which planners take for an image or a control")
    parts: list[str | Image] = [f"<global_task>: {task}\n<initial_observation>: ", initial, ".\n"]
    if summary is None:
        head, listed = "<finished_subtasks>: ", [(f"{i}: {text}", image) for i, (text, image) in enumerate(finished)]
    else:
        head, listed = f"<summary>: {summary or 'null.'}\n<finished_subtask>: ", list(finished[-1:])
    parts.append(head)
    for i, (text, image) in enumerate(listed):
        parts += [f"{'. ' if i else ''}{text} The corresponding image is: ", image]
    parts.append(".\n" if listed else "null.\n")
    return Prompt(system_prompt.KEY_FRAMES if summary is None else system_prompt.SUMMARY, _joined(parts))


def ask(situation: Situation, summary: bool = False) -> Prompt[np.ndarray]:
    """`build` of a situation; images are uint8 [height, width, 3], of at most `MAX_PIXELS`."""
    finished = [(done.subtask, shrink(done.image)) for done in situation.finished]
    return build(situation.task, shrink(situation.initial), finished, situation.summary if summary else None)


def shrunk_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of an image of at most `MAX_PIXELS`, its aspect kept, as LLaMA-Factory shrinks in training."""
    if height * width <= MAX_PIXELS:
        return height, width
    factor = math.sqrt(MAX_PIXELS / (height * width))
    return max(1, int(height * factor)), max(1, int(width * factor))


def shrink(image: np.ndarray) -> np.ndarray:
    """An image uint8 [height, width, 3] of `shrunk_size`; the resize is bicubic."""
    height, width = shrunk_size(*image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Picture.fromarray(image).resize((width, height)))


def answer(plan: Plan, summary: bool = False) -> str:
    """What a planner shall answer."""
    return f"next_subtask: {plan.subtask}" + (f"\nsummary: {plan.summary}" if summary else "")


def summarize(finished: Sequence[str]) -> str:
    """A summary by rule, to train on: finished subtasks in order, repetitions counted; "null." for none.

    >>> summarize(["Open the lid.", "press", "press"])
    'Open the lid; press (2 times).'
    """
    runs = [(text.rstrip("."), len(list(run))) for text, run in groupby(finished)]
    return "; ".join(text if n == 1 else f"{text} ({n} times)" for text, n in runs) + "." if runs else "null."


def parse_answer(text: str, summary: bool = False, whole: bool = True) -> Plan:
    """The plan in a planner's answer, so that `parse_answer(answer(plan))` is the plan.

    The subtask is what follows the last "next_subtask:" up to the first full stop or the end of the line. It keeps the
    full stop: subtasks that planners and policies were trained on either have one or not (the reference's client drops
    it, and its policy is then told what it never saw in training).

    Args:
        text: the answer.
        summary: it holds an updated summary.
        whole: it came to its end. One that was cut off can be used if no more than what follows the plan is missing.

    Raises:
        PlannerError: the answer cannot be used, or not be put into the next question; it quotes it.
    """
    _, marker, said = text.rpartition("next_subtask:")
    said = said.strip()
    words, stop, _ = said.partition("\n")[0].partition(".")
    subtask, updated, ended = words.rstrip() + stop, "", stop or "\n" in said
    if not marker or not words:
        raise PlannerError(f"the planner answered {_quote(text)}; expected 'next_subtask: ' and a subtask")
    if summary:
        _, marker, updated = said[len(words + stop) :].partition("summary:")
        updated = updated.strip()
        if not marker or not updated:
            raise PlannerError(f"the planner answered {_quote(text)}; expected 'summary: ' after the subtask")
    if not whole and (summary or not ended):
        raise PlannerError(f"the planner's answer was cut off after {_quote(text)}")
    if found := _CONTROL.search(subtask + "\n" + updated):
        raise PlannerError(f"the planner answered {_quote(text)}; {found[0]!r} cannot be part of another question")
    if len(subtask) > MAX_SUBTASK or len(updated) > MAX_SUMMARY:
        raise PlannerError(
            f"the planner answered {_quote(text)}; expected at most {MAX_SUBTASK} letters of subtask and {MAX_SUMMARY} "
            f"of summary, got {len(subtask)} and {len(updated)}"
        )
    return Plan(subtask, updated)


def _joined(parts: Sequence[str | Image]) -> tuple[str | Image, ...]:
    """Neighbouring texts as one."""
    joined: list[str | Image] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


def _quote(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + " ...")
