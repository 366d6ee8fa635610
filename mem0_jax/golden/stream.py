"""Numbers of a stream of training batches, gradients, updates and steps of inference.

A folder holds `config.json` (sizes and settings), `initial.pt` (the reference's checkpoint) and `golden.npz` (training
batches over a stream of episodes, gradient norms, parameters afterwards, inference steps). Everything runs in float32
with dropout off.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.convert.rules import Plan, export, load, make_plan
from mem0_jax.convert.settings import configuration, read_settings
from mem0_jax.convert.sources import open_source
from mem0_jax.errors import UserError
from mem0_jax.family import PolicyFamily, family
from mem0_jax.golden.models import known
from mem0_jax.golden.numbers import check_same_model
from mem0_jax.policies.bundle import Bundle
from mem0_jax.progress import Progress
from mem0_jax.reference import Entries, Report, read_arrays, read_entries
from mem0_jax.train.metrics import classifier_metrics
from mem0_jax.train.optim import learning_rates, make_optimizer

ROUNDING = 1e-6  # a gradient norm below this part of the global norm is rounding noise of a zero (a key bias, say)


class Opened(Protocol):
    """A golden folder, opened.

    Attributes:
        config, policy: as the folder says, in float32.
        raw: its config.json. arrays: its golden.npz.
    """

    config: Any
    policy: Any
    raw: Entries
    arrays: Entries


@dataclass(frozen=True)
class Replay:
    """`Numbers` of a stream of training batches, gradients, updates and steps of inference: what the reference of a
    policy stored, and where.

    Attributes:
        batch: (folder, index) -> training batch `index` as one lane [1, B, ...].
        insides: policy -> ((parameters, state, batch) -> what is compared besides losses and gradients, by quantity:
            "kind: NAME" is the array train{index}/NAME).
        inference: (folder, parameters, report) -> replays deployment and adds what it compared.
        metrics: names of ours -> the reference's, where that is another.
    """

    batch: Callable[[Opened, int], dict[str, np.ndarray]]
    insides: Callable[[Any], Callable[[Any, Any, Any], dict[str, Any]]]
    inference: Callable[[Opened, Any, Report], None]
    metrics: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ("config.json", "initial.pt", "golden.npz")

    def replay(self, folder: Path, bundle: Bundle | None, report: Report) -> None:
        """See `golden.Numbers`."""
        with Progress(f"opening {folder}"):
            golden = Golden(folder, self)
        if bundle is not None:
            check_same_model(bundle.config, golden.config)
            golden.params = bundle.params
        check_schedule(golden, report)
        self.inference(golden, replay_training(golden, report), report)


class Golden:
    """A golden folder, opened: configuration, policy, parameters and arrays."""

    def __init__(self, folder: str | Path, numbers: Replay | None = None):
        folder = Path(folder)
        source = open_source(folder / "initial.pt")
        model, kind = source.model, family(source.model.name)
        found = numbers or known().get(kind.name)
        if not isinstance(kind, PolicyFamily) or not isinstance(found, Replay) or model.optimizer is None:
            raise UserError(f"{source.path} is a {model.title}: of it no numbers of a reference are known")
        self.numbers = found
        self.groups = model.optimizer.groups
        settings, self.raw = read_settings(folder / "config.json", model), read_entries(folder / "config.json")
        self.config = replace(configuration(model, source.shapes, settings), dtype="float32")
        self.policy = kind.policy(self.config)
        training = self.raw["training"]
        self.optimizer = model.optimizer.config(training, training["learning_rate"], training["weight_decay"])
        abstract = jax.eval_shape(self.policy.init, jax.random.key(0))
        self.plan: Plan = make_plan(model.rules(self.config), source.shapes, abstract)
        # Committed to the device, as a bundle's: for others the same programs would be compiled anew.
        self.params = jax.device_put(load(self.plan, source.tensors), jax.local_devices()[0])
        self.arrays = read_arrays(folder / "golden.npz")

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """Training batch `index` as one lane [1, B, ...]."""
        return self.numbers.batch(self, index)

    def gradient_norms(self) -> tuple[Entries, float, set[str]]:
        """Norm of every parameter's gradient in batch 0, their global norm, and the keys of mere rounding noise."""
        norms = self.arrays.below("grad0_norm")
        total = float(np.linalg.norm(list(norms.values())))
        return norms, total, {key for key, norm in norms.items() if norm <= ROUNDING * total}


def replay_forward(golden: Golden, report: Report) -> None:
    """The first training batch without gradients: features, memory, losses, metrics. Quick, for a first look."""
    batch, state = golden.batch(0), golden.policy.init_state(1)
    with jax.default_matmul_precision("highest"):
        check_insides(golden, jax.jit(golden.numbers.insides(golden.policy))(golden.params, state, batch), 0, report)
        _, (metrics, _) = jax.jit(deterministic_loss(golden.policy))(golden.params, state, batch)
    check_metrics(golden, metrics, 0, report)


def replay_training(golden: Golden, report: Report) -> Any:
    """All training batches: features, memory, losses, metrics, gradients, AdamW steps. Returns the parameters."""
    policy, params = golden.policy, golden.params
    optimizer = make_optimizer(golden.optimizer, policy.learning_rate_groups, policy.no_gradient, (), params)
    opt_state, state = optimizer.init(params), policy.init_state(1)
    differentiate = jax.jit(jax.value_and_grad(deterministic_loss(policy), has_aux=True))
    update, look = jax.jit(optimizer.update), jax.jit(golden.numbers.insides(policy))
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


def deterministic_loss(policy: Any):
    """(params, state, batch) -> loss, (metrics, state) without dropout."""

    def loss(params, state, batch):
        value, metrics, state = policy.loss(params, state, batch, jax.random.key(0), train=False)
        return value, (metrics, state)

    return loss


def check_insides(golden: Golden, values: Mapping[str, Any], index: int, report: Report) -> None:
    """What `Replay.insides` gives for batch `index`."""
    for quantity, value in values.items():
        name = quantity.rpartition(": ")[2]
        report.compare(quantity, 1e-5, value, golden.arrays[f"train{index}/{name}"], f"batch {index}")


def check_metrics(golden: Golden, metrics: Mapping[str, Any], index: int, report: Report) -> None:
    """Losses and classifier metrics of batch `index`."""
    ours = {k: float(v) for k, v in metrics.items()}
    ours |= {golden.numbers.metrics.get(name, name): value for name, value in classifier_metrics(ours).items()}
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
    if unknown := set(given) - golden.groups.keys():
        raise UserError(f"{golden.arrays.file}: lr_group_names: expected {', '.join(golden.groups)}, got {unknown}")
    for step, expected in enumerate(golden.arrays["lr_schedule"]):
        ours = learning_rates(golden.optimizer, step)
        rates = [ours[golden.groups[name]] for name in given]
        report.compare("learning rates", 1e-5, rates, expected, f"step {step}")
