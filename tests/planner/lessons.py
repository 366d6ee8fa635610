"""Questions to train a tiny planner on: pictures of two sizes, whose shade says how often to knock."""

import json
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.images import PixelBounds
from mem0_jax.inference.planning import Finished, Plan, Situation
from mem0_jax.planner.job import PlannerData, PlannerJob, PlannerTraining
from mem0_jax.planner.policy import PlannerConfig
from mem0_jax.planner.prompt import summarize
from mem0_jax.planner.questions import ROWS, Question

TASK = "knock as often as shown, then open"
KNOCK, OPEN = "knock", "open the door."
TIMES = (0, 1, 2, 2)
SIZES = ((32, 48), (64, 32))  # height and width


def picture(episode: int, stage: int) -> np.ndarray:
    """Of an episode after so many knocks, uint8."""
    shade = np.array([100 * TIMES[episode], 40 * stage, 20 * episode], np.uint8)
    return np.broadcast_to(shade, (*SIZES[episode % 2], 3))


def subtask(episode: int, stage: int) -> str:
    """What comes after so many knocks."""
    return KNOCK if stage < TIMES[episode] else OPEN


def situations(episode: int) -> list[Situation]:
    """What the planner knows each time it is asked."""
    finished = [Finished(KNOCK, picture(episode, stage)) for stage in range(1, TIMES[episode] + 1)]
    first = picture(episode, 0)
    return [Situation(TASK, first, picture(episode, n), tuple(finished[:n])) for n in range(TIMES[episode] + 1)]


def write(folder: Path, summaries: bool = False) -> Path:
    """The questions of all episodes."""
    lines = []
    for episode in range(len(TIMES)):
        for stage in range(TIMES[episode] + 1):
            path = folder / "images" / f"{episode}_{stage}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(episode, stage)).save(path)
            images = [PurePosixPath(f"images/{episode}_{n}.png") for n in range(stage + 1)]
            plan = Plan(subtask(episode, stage), summarize([KNOCK] * stage) if summaries else "")
            summary = (summarize([KNOCK] * (stage - 1)) if stage else "") if summaries else None
            finished = tuple((KNOCK, image) for image in images[1:])
            lines.append(Question(episode, stage, TASK, images[0], finished, summary, plan).to_json())
    (folder / ROWS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def model(tied: bool = True) -> PlannerConfig:
    """One layer of the vision tower, two of the text stack."""
    text = TextConfig(32, 2, 2, 1, 16, 32, 100, 1e4, (4, 2, 2), tie_word_embeddings=tied)
    vision = VisionConfig(1, 32, 32, 2, 16, (0,), 16, 1, 2, 32)
    return PlannerConfig(Qwen3VLConfig(text, vision), dtype="float32")


def job(folder: Path, tied: bool = True, init_from: str = "", cutoff: int = 2048, **training) -> PlannerJob:
    """A job on the questions of `folder`; `training` are fields of `PlannerTraining`."""
    data = PlannerData(
        (str(folder),),
        tokenizer="" if init_from else "words",
        images=PixelBounds(1024, 2048),
        cutoff=cutoff,
        threads=1,
        seed=3,
    )
    settings = {"per_device": 4, "precision": "float32", "preset": "full", "train_vision": True, "log_every": 5}
    settings |= {"steps": 6, "learning_rate": 3e-3, "save_every": 1000} | training
    return PlannerJob(data, model(tied), PlannerTraining(**settings), init_from)
