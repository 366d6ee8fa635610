"""Replays a folder of the reference's inputs and outputs through our Mem-0 and measures the differences.

A folder holds `config.json` (sizes and settings), `initial.pt` (the reference's checkpoint) and `golden.npz` (training
batches over a stream of episodes, gradient norms, parameters afterwards, inference steps). Everything runs in float32
with dropout off. Axis letters: B samples, P patches of all images, I images, C numbers of a patch.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.backbones.qwen3_vl.positions import layout, views_of_samples
from mem0_jax.convert.mem0 import mem0_rules
from mem0_jax.convert.optimizer import GROUPS, optimizer_config
from mem0_jax.convert.rules import Plan, export, load, make_plan
from mem0_jax.convert.settings import mem0_config, read_settings
from mem0_jax.convert.torch_pt import read_pt
from mem0_jax.errors import UserError
from mem0_jax.memory import bank
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.policies.bundle import Bundle
from mem0_jax.policies.mem0 import Mem0, Mem0Config
from mem0_jax.policies.mem0.policy import TABLES
from mem0_jax.progress import Progress
from mem0_jax.train.metrics import classifier_metrics
from mem0_jax.train.optim import learning_rates, make_optimizer

REFERENCE_NAMES = {"classifier_f1": "classifier_f1_score", "classifier_positive_rate": "classifier_prate"}
ROUNDING = 1e-6  # a gradient norm below this part of the global norm is rounding noise of a zero (a key bias, say)
MAX_BYTES = 4 * 2**30  # of the unpacked arrays: far more than a golden needs, less than a machine has


@dataclass
class Check:
    """Greatest error of one quantity against its gate."""

    name: str
    gate: float
    error: float = 0.0
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the gate."""
        return self.error <= self.gate


class Report:
    """Collects the greatest error of every quantity."""

    def __init__(self):
        self.checks: dict[str, Check] = {}

    def add(self, name: str, gate: float, error: float, where: str) -> None:
        """Keeps the greatest error seen of `name`; NaN counts as infinite."""
        check = self.checks.setdefault(name, Check(name, gate, where=where))
        error = float("inf") if np.isnan(error) else float(error)
        if error > check.error:
            check.error, check.where = error, where

    def compare(self, name: str, gate: float, value: Any, reference: Any, where: str) -> None:
        """Adds the `relative` error of `value`; UserError when its size is not the reference's."""
        value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
        if value.size != reference.size:
            raise UserError(f"{name} ({where}): the golden holds {reference.shape}, expected {value.shape}")
        self.add(name, gate, relative(value.ravel(), reference.ravel()), where)

    @property
    def passed(self) -> bool:
        """Whether anything was compared and nothing went past its gate."""
        return bool(self.checks) and all(check.passed for check in self.checks.values())


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """|value - reference| / |reference| in the L2 norm."""
    difference, scale = np.linalg.norm(value - reference), np.linalg.norm(reference)
    return 0.0 if difference == 0 else float(difference / scale) if scale else float("inf")


class Entries(dict):
    """The entries of a file, nested or not; a missing one is a UserError that names file and entry."""

    def __init__(self, file: Path, entries: Mapping[str, Any], prefix: str = ""):
        inner = {k: Entries(file, v, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in entries.items()}
        super().__init__(inner)
        self.file, self.prefix = file, prefix

    def __missing__(self, key: str):
        raise UserError(f"{self.file}: {self.prefix}{key} is missing")

    def below(self, prefix: str) -> "Entries":
        """The entries `prefix/...` without their prefix."""
        own = {key[len(prefix) + 1 :]: value for key, value in self.items() if key.startswith(prefix + "/")}
        return Entries(self.file, own, f"{self.prefix}{prefix}/")


def read_entries(path: Path) -> Entries:
    """All entries of a JSON file. Raises UserError."""
    try:
        return Entries(path, json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from error


def read_arrays(path: Path) -> Entries:
    """All arrays of an npz file. Raises UserError for a damaged or oversized file."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size} bytes unpacked, expected at most {MAX_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return Entries(path, {key: arrays[key] for key in arrays.files})
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, MemoryError) as error:
        raise UserError(f"{path}: not a readable npz file ({error})") from error


class Golden:
    """A golden folder, opened: configuration, policy, parameters and arrays."""

    def __init__(self, folder: str | Path, policy: type[Mem0] = Mem0):
        folder = Path(folder)
        for name in ("config.json", "initial.pt", "golden.npz"):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder / name} is missing: a golden folder holds config.json, initial.pt, golden.npz"
                )
        settings, self.raw = read_settings(folder / "config.json"), read_entries(folder / "config.json")
        source = read_pt(folder / "initial.pt")
        state = source.get("model_state_dict", source)
        shapes = {name: tensor.shape for name, tensor in state.items()}
        self.config = replace(mem0_config(shapes, settings), dtype="float32")
        self.policy = policy(self.config)
        training = self.raw["training"]
        self.optimizer = optimizer_config(training, training["learning_rate"], training["weight_decay"])
        abstract = jax.eval_shape(self.policy.init, jax.random.key(0))
        self.plan: Plan = make_plan(mem0_rules(self.config), shapes, abstract)
        self.params = jax.tree.map(jnp.asarray, load(self.plan, state))
        self.arrays = read_arrays(folder / "golden.npz")

    def observation(self, prefix: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Backbone inputs of some rows of `prefix`, which stores pixels [P, C] and grids [I, 3] image after image."""
        given, config = self.arrays.below(prefix), self.config.backbone
        ids, pixels = given["input_ids"], given["pixel_uint8"]
        try:
            # Inference may leave out the grids: all images then have the grid of the first training batch's first.
            grids = given.get("image_grid_thw")
            if grids is None:
                grid = self.arrays["train0/image_grid_thw"][:1]
                grids = np.repeat(grid, len(pixels) // grid.prod(), 0)
            images = np.split(pixels, np.cumsum(grids.prod(-1))[:-1])
            chosen = [image for own in views_of_samples(ids, grids.tolist(), config)[rows] for image in own]
            patches = np.concatenate([images[image] for image in chosen])
            return layout(ids[rows], given["attention_mask"][rows], patches, grids[chosen].tolist(), config)
        except (ValueError, IndexError) as error:
            raise UserError(f"{self.arrays.file}: images and prompts of {prefix} do not fit: {error}") from error

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """Training batch `index` as one lane [1, B, ...]."""
        given = self.arrays.below(f"train{index}")
        lane = {k: v if k in TABLES else v[None] for k, v in self.observation(f"train{index}").items()}
        return lane | {
            "state": given["state"][None, :, 0],
            "action": given["action"][None],
            "episode": given["episode_id"].astype(np.int32)[None],
            "subtask_end": given["subtask_end"].astype(np.int32)[None],
            "noise": given["noise"],
            "time": given["time"],
        }

    def gradient_norms(self) -> tuple[Entries, float, set[str]]:
        """Norm of every parameter's gradient in batch 0, their global norm, and the keys of mere rounding noise."""
        norms = self.arrays.below("grad0_norm")
        total = float(np.linalg.norm(list(norms.values())))
        return norms, total, {key for key, norm in norms.items() if norm <= ROUNDING * total}


@same_numbers
def replay(folder: str | Path, policy: type[Mem0] = Mem0, bundle: Bundle | None = None) -> Report:
    """Replays everything in a golden folder.

    Args:
        folder: the golden folder.
        policy: can be a deliberately wrong one.
        bundle: its parameters take the place of those in the folder's initial.pt.

    Raises:
        UserError: the folder is damaged, or the bundle is of another configuration.
    """
    with Progress(f"opening {folder}"):
        golden, report = Golden(folder, policy), Report()
    if bundle is not None:
        check_same_model(bundle.config, golden.config)
        golden.params = bundle.params
    with jax.default_matmul_precision("highest"):
        check_schedule(golden, report)
        replay_inference(golden, replay_training(golden, report), report)
    return report


def check_same_model(config: Mem0Config, expected: Mem0Config) -> None:
    """Raises UserError, naming every setting that differs, apart from those a golden sets for itself."""
    free = {"image_size", "dtype", "remat"}

    def settings(value: Any, prefix: str = "") -> dict[str, Any]:
        inner = {}
        for f in fields(value):
            child = getattr(value, f.name)
            inner |= settings(child, f"{prefix}{f.name}.") if is_dataclass(child) else {prefix + f.name: child}
        return inner

    ours, theirs = settings(config), settings(expected)
    differing = [
        f"{name} is {ours[name]}, the golden's {theirs[name]}"
        for name in ours
        if ours[name] != theirs[name] and name not in free and not name.endswith(".dropout")
    ]
    if differing:
        raise UserError("bundle and golden are of different models: " + "; ".join(differing))


def replay_forward(golden: Golden, report: Report) -> None:
    """The first training batch without gradients: features, memory, losses, metrics. Quick, for a first look."""
    batch, state = golden.batch(0), golden.policy.init_state(1)
    with jax.default_matmul_precision("highest"):
        check_insides(golden, jax.jit(insides(golden.policy))(golden.params, state, batch), 0, report)
        _, (metrics, _) = jax.jit(deterministic_loss(golden.policy))(golden.params, state, batch)
    check_metrics(golden, metrics, 0, report)


def replay_training(golden: Golden, report: Report) -> Any:
    """All training batches: features, memory, losses, metrics, gradients, AdamW steps. Returns the parameters."""
    policy, params = golden.policy, golden.params
    optimizer = make_optimizer(golden.optimizer, policy.learning_rate_groups, policy.no_gradient, (), params)
    opt_state, state = optimizer.init(params), policy.init_state(1)
    differentiate = jax.jit(jax.value_and_grad(deterministic_loss(policy), has_aux=True))
    update, look = jax.jit(optimizer.update), jax.jit(insides(policy))
    count = golden.raw["training"]["batches"]
    with Progress("compiling and replaying training", count, "step") as progress:
        for index in progress.over(range(count)):
            batch = golden.batch(index)
            check_insides(golden, look(params, state, batch), index, report)
            (_, (metrics, state)), gradients = differentiate(params, state, batch)
            check_metrics(golden, metrics, index, report)
            if index == 0:
                check_gradients(golden, gradients, report)
            updates, opt_state = update(gradients, opt_state, params)
            check_updates(golden, updates, index, report)
            expected = golden.arrays[f"train{index}/grad_norm"]
            report.compare("gradient norm", 1e-4, opt_state.grad_norm, expected, f"batch {index}")
            params = jax.tree.map(jnp.add, params, updates)
    check_parameters(golden, params, report)
    return params


def deterministic_loss(policy: Mem0):
    """(params, state, batch) -> loss, (metrics, state) without dropout."""

    def loss(params, state, batch):
        value, metrics, state = policy.loss(params, state, batch, jax.random.key(0), train=False)
        return value, (metrics, state)

    return loss


def insides(policy: Mem0):
    """(params, state, batch) -> hidden states, features and memory outputs of a training batch, flat [B, ...]."""

    def look(params, state, batch):
        whole = (*TABLES, "noise", "time")
        hidden, image, text = policy.features(params, {k: v if k in whole else v[0] for k, v in batch.items()})
        memory = policy.bind(params).memory
        reading, _ = memory.sequence(state, image[None], batch["episode"], batch["subtask_end"])
        return {
            "last_hidden": hidden,
            "image_feature": image,
            "text_feature": text,
            "fused_window": reading.window,
            "fused_anchor": reading.anchor,
        }

    return look


def check_insides(golden: Golden, values: Mapping[str, Any], index: int, report: Report) -> None:
    """What `insides` gives for batch `index`."""
    for name, value in values.items():
        kind = "memory" if name.startswith("fused") else "features"
        report.compare(f"{kind}: {name}", 1e-5, value, golden.arrays[f"train{index}/{name}"], f"batch {index}")


def check_metrics(golden: Golden, metrics: Mapping[str, Any], index: int, report: Report) -> None:
    """Losses and classifier metrics of batch `index`."""
    ours = {k: float(v) for k, v in metrics.items()}
    ours |= {REFERENCE_NAMES.get(name, name): value for name, value in classifier_metrics(ours).items()}
    for name, expected in golden.arrays.below(f"train{index}/out").items():
        kind = f"losses: {name}" if name.endswith("loss") else "classifier metrics"
        if name not in ours:
            raise UserError(f"{golden.arrays.file}: train{index}/out/{name} is unknown, expected one of {sorted(ours)}")
        report.compare(kind, 1e-5, ours[name], expected, f"batch {index}")


def check_gradients(golden: Golden, gradients: Any, report: Report) -> None:
    """Gradient norm of every parameter in batch 0.

    Writers take the norms before or after clipping; the global norm of what they stored tells which.
    """
    reference, stored, noise = golden.gradient_norms()
    raw, clip = float(golden.arrays["train0/grad_norm"]), golden.optimizer.clip_norm
    scale = min(1.0, clip / raw) if abs(stored - clip) < abs(stored - raw) else 1.0
    norms = {key: scale * float(np.linalg.norm(value)) for key, value in export(golden.plan, gradients).items()}
    for key, norm in norms.items():
        if key not in reference:
            report.add("gradients of parameters without one", 0.0, norm, key)
        elif key in noise:
            report.add("gradients that are rounding noise", ROUNDING, norm / stored, key)
        else:
            report.compare("gradient norms by parameter", 1e-4, norm, reference[key], key)
    if unknown := reference.keys() - norms.keys():
        raise UserError(f"{golden.arrays.file}: grad0_norm of unknown parameters: {', '.join(sorted(unknown))}")


def check_updates(golden: Golden, updates: Any, index: int, report: Report) -> None:
    """Parameters that get no gradient must not move at all, not even by weight decay."""
    reference, _, _ = golden.gradient_norms()
    for key, value in export(golden.plan, updates).items():
        if key not in reference:
            report.add("updates of parameters without gradient", 0.0, np.abs(value).max(), f"{key}, batch {index}")


def check_parameters(golden: Golden, params: Any, report: Report) -> None:
    """L2 norm and sum of every parameter after the last step, relative to the norm (times sqrt(n) for the sum).

    AdamW turns a gradient of rounding noise into steps of the size of the learning rate and of random sign: such
    parameters are only held to the greatest distance that two runs can come to lie apart.
    """
    ours, (_, _, noise) = export(golden.plan, params), golden.gradient_norms()
    steps = [learning_rates(golden.optimizer, step).values() for step in range(golden.raw["training"]["batches"])]
    move = 2 * sum(map(max, steps))
    for key, (norm, total) in golden.arrays.below("param_after").items():
        if key not in ours:
            continue  # the tied head and the constant
        value = ours[key].astype(np.float64)
        errors = {"norm": abs(np.linalg.norm(value) - norm), "sum": abs(value.sum() - total) / np.sqrt(value.size)}
        for what, error in errors.items():
            if key in noise:
                report.add("parameters moved by noise", 1.0, error / (move * np.sqrt(value.size)), key)
            else:
                report.add(f"parameters after training: {what}", 1e-5, error / max(norm, 1e-30), key)


def check_schedule(golden: Golden, report: Report) -> None:
    """Learning rates of all groups at every step of the schedule."""
    given = [str(name) for name in golden.arrays["lr_group_names"]]
    if unknown := set(given) - GROUPS.keys():
        raise UserError(f"{golden.arrays.file}: lr_group_names: expected {', '.join(GROUPS)}, got {unknown}")
    for step, expected in enumerate(golden.arrays["lr_schedule"]):
        ours = learning_rates(golden.optimizer, step)
        rates = [ours[GROUPS[name]] for name in given]
        report.compare("learning rates", 1e-5, rates, expected, f"step {step}")


def replay_inference(golden: Golden, params: Any, report: Report) -> None:
    """Deployment steps of the trained parameters with memory, one session: summaries, end probabilities, chunks."""
    policy, settings, reference = golden.policy, golden.raw["inference"], golden.arrays.below("infer")
    if settings["batch_size"] != 1:
        raise UserError(f"{golden.raw.file}: inference.batch_size: expected 1, got {settings['batch_size']}")
    observe, decide = jax.jit(policy.observe), jax.jit(policy.decide)
    state, episode = policy.init_state(1), np.full((1,), settings["episode_id"], np.int32)
    with Progress("compiling and replaying inference", settings["steps"], "step") as progress:
        for step in progress.over(range(settings["steps"])):
            observation = golden.observation("infer", slice(step, step + 1)) | {"episode": episode}
            context, info, state = observe(params, state, observation)
            chunk = decide(params, context, reference["state"][step, :, 0], reference["noise"][step])
            where, probability = f"step {step}", float(info["end_probability"][0])
            flagged = probability >= golden.config.classifier.threshold
            report.compare("inference: summary", 1e-5, context, reference["summary"][step], where)
            report.compare("inference: end probability", 1e-5, probability, reference["prob"][step], where)
            report.add("inference: end flag", 0.0, float(flagged != bool(reference["subtask_end"][step])), where)
            report.compare("inference: action chunk", 1e-5, chunk, reference["actions"][step], where)
            if step == settings["memory_reset_after_step"]:
                state = bank.reset(state, np.array([True]))
