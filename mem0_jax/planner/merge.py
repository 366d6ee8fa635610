"""From a planner's training run to a bundle that plans, and to a Hugging Face folder that vLLM serves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax

from mem0_jax.config import from_dict, to_dict
from mem0_jax.convert.exporter import to_safetensors
from mem0_jax.convert.importer import PROCESSOR_FILES
from mem0_jax.convert.models import format_of
from mem0_jax.convert.sources import open_source
from mem0_jax.errors import UserError
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.planner.job import PlannerJob
from mem0_jax.planner.local import IMAGES
from mem0_jax.planner.render import CHAT_TEMPLATE
from mem0_jax.planner.training import JOB, TOKENIZER, make_policy
from mem0_jax.policies.base import Params
from mem0_jax.policies.bundle import new_folder, save_params, write_description
from mem0_jax.train.checkpoint import Checkpoints
from mem0_jax.train.lora import LoraPolicy
from mem0_jax.train.state import TrainState, blueprint

IMAGES_FILE, TOKENIZER_FILE = "preprocessor_config.json", "tokenizer_config.json"


@same_numbers
def merge(run: Path, out: Path, hugging_face: Path | None = None) -> dict[str, Any]:
    """Writes the planner of the newest checkpoint of `run` as the bundle `out`, low-rank factors multiplied in.

    The moving averages are taken where the run keeps them. Each folder appears when it is complete.

    Args:
        run: of `train_planner`; it may still be under way.
        out: a bundle of a backbone alone, which remembers the sizes of images it was trained on.
        hugging_face: where to write it for transformers and vLLM too, with the tokenizer, and the processor files of
            the model the run began from.

    Returns:
        `step` of the checkpoint, number of `parameters`.

    Raises:
        UserError: no run, one without a checkpoint, or a folder that is in the way.
    """
    if hugging_face is not None and hugging_face.exists():
        raise UserError(f"{hugging_face} exists: name a new folder")
    job, rows = _read_job(run)
    state = _restore(run, job, rows)
    policy, params = make_policy(job), state.averaged_params
    if isinstance(policy, LoraPolicy):
        params = policy.merge(params)
    _save(run, out, job, params, int(state.step))
    if hugging_face is not None:
        to_safetensors(open_source(out), hugging_face)
    return {"step": int(state.step), "parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}


def _read_job(run: Path) -> tuple[PlannerJob, int]:
    """The completed settings of a run and the number of its rows."""
    path = run / JOB
    if not path.is_file():
        raise UserError(f"{run} is no run of 'mem0-jax plan train': it has no {JOB}")
    try:
        described = json.loads(path.read_text("utf-8"))
        return from_dict(PlannerJob, described["job"]), int(described["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as the settings of a planner's run: {error}") from error


def _restore(run: Path, job: PlannerJob, rows: int) -> TrainState:
    """The newest checkpoint, on one device."""
    config = job.train_config(rows)
    template = blueprint(make_policy(job), config).template
    folder = run / "checkpoints"
    if folder.is_dir():
        with Checkpoints(folder, config.keep, read_only=True) as checkpoints:
            if (restored := checkpoints.restore(template)) is not None:
                return restored.state
    raise UserError(f"{run} has no checkpoint yet: it saves one every {config.save_every} steps and at the end")


def _save(run: Path, out: Path, job: PlannerJob, params: Params, step: int) -> None:
    config = job.model.backbone
    made = {"made_by": "mem0-jax plan merge", "steps": step, "init_from": job.init_from}
    entries = {"provenance": made | {"questions": list(job.data.questions)}, IMAGES: to_dict(job.data.images)}
    with new_folder(out) as folder:
        write_description(folder, config, **entries)
        shutil.copyfile(run / TOKENIZER, folder / TOKENIZER)
        (folder / "processor").mkdir()
        _write_processor(folder / "processor", job)
        save_params(folder, params)


def _write_processor(folder: Path, job: PlannerJob) -> None:
    """The processor files of the model that training began from, and what they lack; images of the trained sizes."""
    for name in PROCESSOR_FILES:
        begun = Path(job.init_from) / "processor" / name
        if job.init_from and begun.is_file():
            shutil.copyfile(begun, folder / name)
    bounds, backbone = job.data.images, job.model.backbone
    files = format_of(backbone).processor(backbone, bounds.min_pixels, bounds.max_pixels)
    known = folder / IMAGES_FILE
    begun = json.loads(known.read_text("utf-8")) if known.is_file() else {}
    known.write_text(json.dumps(begun | files.pop(IMAGES_FILE, {}), indent=1))
    if (folder / TOKENIZER_FILE).is_file():
        return
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    if not (folder / "chat_template.json").is_file():
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
