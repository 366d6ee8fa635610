"""Replays a folder of the reference's inputs and outputs through our Mem-0 and measures the differences.

A folder holds `config.json` (sizes and settings), `initial.pt` (the reference's checkpoint) and `golden.npz` (three
training batches over a stream of episodes, gradient norms, parameters afterwards, inference steps). Everything runs in
float32 with dropout off.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, TokenIds, VisionConfig
from mem0_jax.backbones.qwen3_vl.positions import layout
from mem0_jax.convert.mem0 import mem0_rules
from mem0_jax.convert.rules import Plan, export, load, make_plan
from mem0_jax.convert.torch_pt import read_pt
from mem0_jax.errors import UserError
from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory import bank
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.mem0 import Mem0, Mem0Config
from mem0_jax.train.metrics import classifier_metrics
from mem0_jax.train.optim import OptimizerConfig, learning_rates, make_optimizer

GROUPS = {"qwen_model": "backbone", "action_model": "action", "classifier": "classifier", "base": "memory"}
REFERENCE_NAMES = {"classifier_f1": "classifier_f1_score", "classifier_positive_rate": "classifier_prate"}


@dataclass
class Check:
    """Greatest error of one quantity against its gate."""

    name: str
    gate: float
    error: float = 0.0
    where: str = ""

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return self.error <= self.gate


class Report:
    """Collects the greatest error of every quantity."""

    def __init__(self):
        self.checks: dict[str, Check] = {}

    def add(self, name: str, gate: float, error: float, where: str) -> None:
        """Keeps the greatest error seen of `name`; NaN counts as infinite."""
        check = self.checks.setdefault(name, Check(name, gate))
        error = float("inf") if np.isnan(error) else float(error)
        if error > check.error:
            check.error, check.where = error, where

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks.values())


def relative(value: Any, reference: Any, floor: float = 0.0) -> float:
    """|value - reference| / max(|reference|, floor) in the L2 norm and float64; shapes must agree."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    if value.shape != reference.shape:
        raise UserError(f"shape {value.shape} where the golden has {reference.shape}")
    difference, scale = np.linalg.norm((value - reference).ravel()), max(np.linalg.norm(reference.ravel()), floor)
    return 0.0 if difference == 0 else float(difference / scale) if scale else float("inf")


def _pick(cls: type, data: dict[str, Any], **renamed: Any) -> Any:
    """A configuration from the entries of `data` that are its fields, plus `renamed`; lists become tuples."""
    known = {f.name: data[f.name] for f in fields(cls) if f.name in data} | renamed
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def read_config(path: Path) -> tuple[Mem0Config, dict[str, Any]]:
    """Our configuration (float32, no dropout) and the raw dict of a golden `config.json`."""
    raw = json.loads(path.read_text())
    if raw["memory_bank"].get("initial_anchor_size", 1) != 1:
        raise UserError("memory_bank.initial_anchor_size: only 1 is supported")
    backbone, action = raw["backbone"], raw["action_model"]
    config = Mem0Config(
        backbone=Qwen3VLConfig(
            _pick(TextConfig, backbone["text"]),
            _pick(VisionConfig, backbone["vision"]),
            _pick(TokenIds, backbone["tokens"]),
        ),
        memory=_pick(MemoryConfig, raw["memory_bank"], dropout=0.0),
        flow=_pick(
            FlowConfig,
            action,
            draws=action["repeated_diffusion_steps"],
            solver_steps=action["num_inference_timesteps"],
            buckets=action["num_timestep_buckets"],
        ),
        action=_pick(
            DiTConfig,
            action,
            num_heads=action["num_attention_heads"],
            context_width=action["cross_attention_dim"],
            horizon=action["action_horizon"],
            max_positions=action["max_seq_len"],
            dropout=0.0,
        ),
        classifier=_pick(ClassifierConfig, raw["classifier"], dropout=0.0),
        lambda_action=raw["loss_weights"]["lambda_action"],
        lambda_classifier=raw["loss_weights"]["lambda_classifier"],
        dtype="float32",
    )
    return config, raw


def optimizer_config(training: dict[str, Any]) -> OptimizerConfig:
    """The reference's optimizer settings under our group names."""
    return OptimizerConfig(
        learning_rates={ours: training["learning_rate"][theirs] for theirs, ours in GROUPS.items()},
        floors={ours: training["min_lr"][theirs] for theirs, ours in GROUPS.items()},
        total_steps=training["total_steps"],
        warmup_ratio=training["warmup_ratio"],
        schedule=training["scheduler"],
        weight_decay=training["weight_decay"],
        clip_norm=training["grad_clip_norm"],
    )


class Golden:
    """A golden folder, opened: configuration, policy, parameters and arrays."""

    def __init__(self, folder: str | Path, policy: type[Mem0] = Mem0):
        folder = Path(folder)
        for name in ("config.json", "initial.pt", "golden.npz"):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder / name} is missing: a golden folder holds config.json, initial.pt, golden.npz"
                )
        self.config, self.raw = read_config(folder / "config.json")
        self.policy = policy(self.config)
        source = read_pt(folder / "initial.pt")
        state = source.get("model_state_dict", source)
        abstract = jax.eval_shape(self.policy.init, jax.random.key(0))
        self.plan: Plan = make_plan(mem0_rules(self.config), {k: v.shape for k, v in state.items()}, abstract)
        self.params = jax.tree.map(jnp.asarray, load(self.plan, state))
        with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def observation(self, prefix: str, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Backbone inputs of some rows of `prefix`; patches are stored one image after the other."""
        get = lambda name: self.arrays[f"{prefix}/{name}"]  # noqa: E731
        grids = self.arrays.get(f"{prefix}/image_grid_thw")
        if grids is None:  # inference stores the rows of one image shape: the grid of the first training batch
            grids = np.repeat(self.arrays["train0/image_grid_thw"][:1], len(get("input_ids")), 0)
        patches = np.split(get("pixel_uint8"), np.cumsum(grids.prod(-1))[:-1])
        return layout(
            get("input_ids")[rows],
            get("attention_mask")[rows],
            np.concatenate(patches[rows]),
            [tuple(grid) for grid in grids[rows]],
            self.config.backbone,
        )

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """Training batch `index` as one lane [1, T, ...]."""
        get = lambda name: self.arrays[f"train{index}/{name}"]  # noqa: E731
        observation = self.observation(f"train{index}")
        tables = ("row_column", "table_index", "table_weight")
        lane = {k: v if k in tables else v[None] for k, v in observation.items()}
        return lane | {
            "state": get("state")[None, :, 0],
            "action": get("action")[None],
            "episode": get("episode_id").astype(np.int32)[None],
            "subtask_end": get("subtask_end").astype(np.int32)[None],
            "noise": get("noise"),
            "time": get("time"),
        }


def replay(folder: str | Path, policy: type[Mem0] = Mem0) -> Report:
    """Replays everything in a golden folder; `policy` can be a deliberately wrong one."""
    golden, report = Golden(folder, policy), Report()
    with jax.default_matmul_precision("highest"):
        replay_inference(golden, replay_training(golden, report), report)
    return report


def replay_training(golden: Golden, report: Report) -> Any:
    """The training batches in a row, with an AdamW step after each. Returns the parameters after the last."""
    policy, params = golden.policy, golden.params
    settings = optimizer_config(golden.raw["training"])
    optimizer = make_optimizer(settings, policy.learning_rate_groups, policy.no_gradient, (), params)
    opt_state, state = optimizer.init(params), policy.init_state(1)
    differentiate = jax.jit(jax.value_and_grad(_loss(policy), has_aux=True))
    update, look = jax.jit(optimizer.update), jax.jit(_insides(policy))
    for index in range(golden.raw["training"]["batches"]):
        reference = _below(golden.arrays, f"train{index}")
        batch, where = golden.batch(index), f"batch {index}"
        for name, value in look(params, state, batch).items():
            gate_name = "memory" if name.startswith("fused") else "features"
            report.add(f"{gate_name}: {name}", 1e-5, relative(value, reference[name].reshape(value.shape)), where)
        (_, (metrics, state)), gradients = differentiate(params, state, batch)
        _check_metrics(metrics, reference, report, where)
        if index == 0:
            _check_gradients(golden, gradients, report)
        updates, opt_state = update(gradients, opt_state, params)
        report.add("gradient norm", 1e-4, relative(opt_state.grad_norm, reference["grad_norm"]), where)
        params = jax.tree.map(jnp.add, params, updates)
    _check_parameters(golden, params, report)
    names = [GROUPS[str(name)] for name in golden.arrays["lr_group_names"]]
    for step, expected in enumerate(golden.arrays["lr_schedule"]):
        ours = learning_rates(settings, step)
        report.add("learning rates", 1e-5, relative([ours[n] for n in names], expected), f"step {step}")
    return params


def _below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key[len(prefix) + 1 :]: value for key, value in arrays.items() if key.startswith(prefix + "/")}


def _loss(policy: Mem0):
    def loss(params, state, batch):
        value, metrics, state = policy.loss(params, state, batch, jax.random.key(0), train=False)
        return value, (metrics, state)

    return loss


def _insides(policy: Mem0):
    """Hidden states, features and memory outputs of a training batch, flat [B, ...]."""

    def look(params, state, batch):
        tables = ("row_column", "table_index", "table_weight", "noise", "time")
        observation = {k: v if k in tables else v[0] for k, v in batch.items()}
        hidden, image, text = policy.features(params, observation)
        memory = policy.bind(params).memory
        reading, _ = memory.sequence(state, image[None], batch["episode"], batch["subtask_end"])
        return {
            "last_hidden": hidden,
            "image_feature": image,
            "text_feature": text,
            "fused_window": reading.window[0],
            "fused_anchor": reading.anchor[0],
        }

    return look


def _check_metrics(metrics: dict[str, Any], reference: dict[str, np.ndarray], report: Report, where: str) -> None:
    ours = {k: float(v) for k, v in metrics.items()}
    ours |= {REFERENCE_NAMES.get(name, name): value for name, value in classifier_metrics(ours).items()}
    for key, expected in reference.items():
        if key.startswith("out/"):
            name = key[4:]
            kind = "losses" if name.endswith("loss") else "classifier metrics"
            report.add(f"{kind}: {name}" if kind == "losses" else kind, 1e-5, relative(ours[name], expected), where)


def _check_gradients(golden: Golden, gradients: Any, report: Report) -> None:
    """Gradient norm of every parameter in batch 0.

    Writers take the norms before or after clipping; the global norm of what they stored tells which. Rounding noise of
    gradients that are zero in exact arithmetic (a key bias, say) is measured against 1e-5 of the global norm.
    """
    reference = _below(golden.arrays, "grad0_norm")
    stored, raw = float(np.linalg.norm(list(reference.values()))), float(golden.arrays["train0/grad_norm"])
    clip = golden.raw["training"]["grad_clip_norm"]
    scale = min(1.0, clip / raw) if abs(stored - clip) < abs(stored - raw) else 1.0
    ours = {key: scale * value for key, value in export(golden.plan, gradients).items()}
    for key, expected in reference.items():
        report.add(
            "gradient norms by parameter", 1e-4, relative(np.linalg.norm(ours[key]), expected, 1e-5 * stored), key
        )
    for key in ours.keys() - reference.keys():
        report.add("parameters without gradient", 0.0, float(np.abs(ours[key]).max()), key)


def _check_parameters(golden: Golden, params: Any, report: Report) -> None:
    """L2 norm and sum of every parameter after the last step, relative to the norm (times sqrt(n) for the sum)."""
    ours = export(golden.plan, params)
    for key, (norm, total) in _below(golden.arrays, "param_after").items():
        if key not in ours:
            continue  # the tied head and the constant
        value = ours[key].astype(np.float64)
        report.add("parameters after training: norm", 1e-5, relative(np.linalg.norm(value), norm), key)
        scale = norm * np.sqrt(value.size)
        report.add("parameters after training: sum", 1e-5, abs(value.sum() - total) / max(scale, 1e-30), key)


def replay_inference(golden: Golden, params: Any, report: Report) -> None:
    """Deployment steps of the trained parameters with memory, one session: summaries, end probabilities, chunks."""
    policy, settings = golden.policy, golden.raw["inference"]
    observe, decide = jax.jit(policy.observe), jax.jit(policy.decide)
    state, reference = policy.init_state(1), _below(golden.arrays, "infer")
    episode = np.full((1,), settings["episode_id"], np.int32)
    for step, rows in _steps(settings):
        observation = golden.observation("infer", rows) | {"episode": episode}
        context, info, state = observe(params, state, observation)
        chunk = decide(params, context, reference["state"][step, :, 0], reference["noise"][step])
        where, probability = f"step {step}", float(info["end_probability"][0])
        report.add("inference: summary", 1e-5, relative(context, reference["summary"][step]), where)
        report.add("inference: end probability", 1e-5, relative(probability, reference["prob"][step]), where)
        flagged = probability >= golden.config.classifier.threshold
        report.add("inference: end flag", 0.0, float(flagged != bool(reference["subtask_end"][step])), where)
        report.add("inference: action chunk", 1e-5, relative(chunk, reference["actions"][step]), where)
        if step == settings["memory_reset_after_step"]:
            state = bank.reset(state, np.array([True]))


def _steps(settings: dict[str, Any]) -> Iterator[tuple[int, slice]]:
    if settings["batch_size"] != 1:
        raise UserError(f"inference.batch_size: expected 1, got {settings['batch_size']}")
    return ((step, slice(step, step + 1)) for step in range(settings["steps"]))
