"""The numbers of Mem-0's reference: where they lie in a golden folder, and what of ours they are compared with.

Axis letters: B samples, P patches of all images, I images, C numbers of a patch.
"""

from typing import Any

import jax
import numpy as np

from mem0_jax.backbones.qwen3_vl.positions import arrays_of, views_of_samples
from mem0_jax.errors import UserError
from mem0_jax.golden.stream import Opened, Replay
from mem0_jax.policies.mem0.policy import TABLES
from mem0_jax.progress import Progress
from mem0_jax.reference import Report


def observation(golden: Opened, prefix: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    """Backbone inputs of some rows of `prefix`, which stores pixels [P, C] and grids [I, 3] image after image."""
    given, config = golden.arrays.below(prefix), golden.config.backbone
    ids, pixels = given["input_ids"], given["pixel_uint8"]
    try:
        # Inference may leave out the grids: all images then have the grid of the first training batch's first.
        grids = given.get("image_grid_thw")
        if grids is None:
            grid = golden.arrays["train0/image_grid_thw"][:1]
            grids = np.repeat(grid, len(pixels) // grid.prod(), 0)
        images = np.split(pixels, np.cumsum(grids.prod(-1))[:-1])
        chosen = [image for own in views_of_samples(ids, grids.tolist(), config)[rows] for image in own]
        patches = np.concatenate([images[image] for image in chosen])
        return arrays_of(ids[rows], given["attention_mask"][rows], patches, grids[chosen].tolist(), config)
    except (ValueError, IndexError) as error:
        raise UserError(f"{golden.arrays.file}: images and prompts of {prefix} do not fit: {error}") from error


def batch(golden: Opened, index: int) -> dict[str, np.ndarray]:
    """Training batch `index` as one lane [1, B, ...]."""
    given = golden.arrays.below(f"train{index}")
    lane = {k: v if k in TABLES else v[None] for k, v in observation(golden, f"train{index}").items()}
    return lane | {
        "state": given["state"][None, :, 0],
        "action": given["action"][None],
        "episode": given["episode_id"].astype(np.int32)[None],
        "subtask_end": given["subtask_end"].astype(np.int32)[None],
        "noise": given["noise"],
        "time": given["time"],
    }


def insides(policy: Any):
    """(params, state, batch) -> hidden states, features and memory outputs of a training batch, flat [B, ...]."""

    def look(params, state, batch):
        whole = (*TABLES, "noise", "time")
        hidden, image, text = policy.features(params, {k: v if k in whole else v[0] for k, v in batch.items()})
        memory = policy.bind(params).memory
        reading, _ = memory.sequence(state, image[None], batch["episode"], batch["subtask_end"])
        return {
            "features: last_hidden": hidden,
            "features: image_feature": image,
            "features: text_feature": text,
            "memory: fused_window": reading.window,
            "memory: fused_anchor": reading.anchor,
        }

    return look


def inference(golden: Opened, params: Any, report: Report) -> None:
    """Deployment steps of the trained parameters with memory, one session: summaries, end probabilities, chunks."""
    policy, settings, reference = golden.policy, golden.raw["inference"], golden.arrays.below("infer")
    if settings["batch_size"] != 1:
        raise UserError(f"{golden.raw.file}: inference.batch_size: expected 1, got {settings['batch_size']}")
    observe, decide = jax.jit(policy.observe), jax.jit(policy.decide)
    state, episode = policy.init_state(1), np.full((1,), settings["episode_id"], np.int32)
    with Progress("compiling and replaying inference", settings["steps"], "step") as progress:
        for step in progress.over(range(settings["steps"])):
            frame = observation(golden, "infer", slice(step, step + 1)) | {"episode": episode}
            context, info, state = observe(params, state, frame)
            chunk = decide(params, context, reference["state"][step, :, 0], reference["noise"][step])
            where, probability = f"step {step}", float(info["end_probability"][0])
            flagged = probability >= golden.config.classifier.threshold
            report.compare("inference: summary", 1e-5, context, reference["summary"][step], where)
            report.compare("inference: end probability", 1e-5, probability, reference["prob"][step], where)
            report.add("inference: end flag", 0.0, float(flagged != bool(reference["subtask_end"][step])), where)
            report.compare("inference: action chunk", 1e-5, chunk, reference["actions"][step], where)
            if step == settings["memory_reset_after_step"]:
                state = policy.reset(state, np.array([True]))


NUMBERS = Replay(
    batch, insides, inference, {"classifier_f1": "classifier_f1_score", "classifier_positive_rate": "classifier_prate"}
)
