"""Losses, gradients and updates of both stages. Axis letters as in `folder`."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.convert.rules import Plan, export
from mem0_jax.family import policy_family_of
from mem0_jax.golden.models.evo1.folder import Golden, unit_noise
from mem0_jax.reference import Entries, Report
from mem0_jax.train.config import OptimizerConfig
from mem0_jax.train.optim import learning_rates, make_optimizer

STAGES = {"stage1": (r"backbone/.*",), "stage2": ()}  # what of the parameters they leave alone
ROUNDING = 1e-6  # a gradient norm below this part of the global norm is rounding noise of a zero (a key bias, say)


def training(golden: Golden, report: Report) -> None:
    """Both stages: losses, gradients, updates, and the chunk afterwards."""
    policy = golden.policy

    @jax.jit
    def differentiate(params: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda params: policy.loss(params, (), batch, jax.random.key(0), False)[0])(params)

    @jax.jit
    def decide(params: Any, observation: Any, state: Any, noise: Any) -> Any:
        return policy.decide(params, policy.context(params, observation), state, noise)

    schedules(golden, report)
    for stage, frozen in STAGES.items():
        one = Training(golden, stage, frozen, report)
        params = one.updated(differentiate)
        one.check_parameters(params)
        noise = unit_noise(golden.arrays["sample/noise_unit"], golden.config)
        state = golden.arrays["batch0/preprocessed/observation.state"]
        chunk = decide(params, golden.observation("batch0"), state, noise)
        report.compare("training: chunk afterwards", 5e-5, chunk, one.arrays["chunk_after"], stage)


def schedules(golden: Golden, report: Report) -> None:
    """Learning rates: of the golden's run, and of LeRobot's defaults over 5 000 steps."""
    given = golden.raw["training"]
    tiny = (given["optimizer"]["lr"], given["schedule"]["total_steps"], given["schedule"]["warmup_steps"])
    for name, (peak, steps, warmup) in {"tiny": tiny, "default5000": (1e-5, 5000, 300)}.items():
        config = OptimizerConfig({"all": peak}, steps, warmup_ratio=warmup / steps)
        arrays = golden.arrays.below("lr_schedule")
        ours = [learning_rates(config, int(step))["all"] for step in arrays[f"{name}_step"]]
        report.compare("training: schedules", 1e-6, ours, arrays[f"{name}_lr"], name)


class Training:
    """Three updates of one stage."""

    def __init__(self, golden: Golden, stage: str, frozen: tuple[str, ...], report: Report):
        self.golden, self.report, self.arrays, self.where = golden, report, golden.arrays.below(stage), stage
        given, policy = golden.raw["training"], golden.policy
        adam, steps = given["optimizer"], given["schedule"]["total_steps"]
        self.config = OptimizerConfig(
            learning_rates={group: adam["lr"] for group, _ in policy.learning_rate_groups},
            total_steps=steps,
            warmup_ratio=given["schedule"]["warmup_steps"] / steps,
            weight_decay=adam["weight_decay"],
            no_decay=policy_family_of(golden.config).no_decay,
            clip_norm=adam["clip_norm"],
            b1=adam["betas"][0],
            b2=adam["betas"][1],
            eps=adam["eps"],
        )
        groups = policy.learning_rate_groups
        self.optimizer = make_optimizer(self.config, groups, policy.no_gradient, frozen, golden.params)

    def updated(self, differentiate: Callable[[Any, Any], Any]) -> Any:
        """Replays them; the parameters afterwards."""
        golden, report, update = self.golden, self.report, jax.jit(self.optimizer.update)
        params, state = golden.params, self.optimizer.init(golden.params)
        for index in range(3):
            expected, where = self.arrays.below(f"train{index}"), f"{self.where}, batch {index}"
            rate = max(learning_rates(self.config, index).values())
            report.compare("training: learning rate", 1e-6, rate, expected["lr"], where)
            value, gradients = differentiate(params, golden.batch(index))
            report.compare("training: loss", 1e-5, value, expected["loss"], where)
            if index == 0:
                for entry in gradient_norms(golden.plan, gradients, self.arrays.below("grad0_norm"), "model.", where):
                    report.add(*entry)
            updates, state = update(gradients, state, params)
            report.compare("training: gradient norm", 2e-5, state.grad_norm, expected["grad_norm"], where)
            params = jax.tree.map(jnp.add, params, updates)
        return params

    def noise_only(self, key: str) -> bool:
        """Whether the exact gradient of a tensor is zero."""
        return key in self.golden.raw["training"]["noise_only_gradients"]

    def check_parameters(self, params: Any) -> None:
        """Norm and sum of every tensor after the updates.

        Adam turns a gradient of rounding noise into steps of the learning rate's size and any sign: such tensors, and
        the key third of the head's attention biases, are held to the distance that two runs can come to lie apart.
        """
        moved = 3 * max(self.config.learning_rates.values())
        reference = self.arrays.below("param_after")
        for key, value in export(self.golden.plan, params).items():
            if f"model.{key}" not in reference:  # the tables
                continue
            value, (norm, total) = value.astype(np.float64), reference[f"model.{key}"]
            errors = np.abs([np.linalg.norm(value) - norm, (value.sum() - total) / np.sqrt(value.size)])
            where = f"{self.where}, {key}"
            if self.noise_only(f"model.{key}") or key.endswith("attn.in_proj_bias"):
                loose = float(errors.max() / (moved * np.sqrt(value.size)))
                self.report.add("training: parameters moved by noise", 1.0, loose, where)
            else:
                self.report.add("training: parameters", 5e-5, float(errors.max() / max(norm, 1e-30)), where)


def gradient_norms(
    plan: Plan, gradients: Any, reference: Entries, prefix: str, where: str
) -> Iterator[tuple[str, float, float, str]]:
    """(quantity, gate, error, tensor) of every tensor's gradient norm."""
    total = float(np.linalg.norm(list(reference.values())))
    for key, value in export(plan, gradients).items():
        norm, expected = float(np.linalg.norm(value)), reference.get(prefix + key)
        if expected is None:
            continue  # the tables, and what a stage leaves alone
        if expected <= ROUNDING * total:
            yield "training: gradients that are rounding noise", ROUNDING, norm / total, f"{where}, {key}"
        else:
            yield "training: gradients", 2e-5, abs(norm - expected) / expected, f"{where}, {key}"
