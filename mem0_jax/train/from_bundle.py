"""The optimizer of a bundle that was converted with it: training goes on as the run before would have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mem0_jax.policies.bundle import BundleError, read_description
from mem0_jax.store import open_tree
from mem0_jax.train.config import OptimizerConfig, SettingsError
from mem0_jax.train.optim import OptimizerState
from mem0_jax.tree import flatten, unflatten

_log = logging.getLogger(__name__)


def load_optimizer(
    folder: str | Path, template: OptimizerState | None = None
) -> tuple[int, OptimizerConfig, OptimizerState]:
    """Reads the batches seen so far, the optimizer's settings and its state (moments in float32).

    Args:
        folder: the bundle.
        template: the state of the run that continues, as `jax.ShapeDtypeStruct`; leaves with a sharding are read into
            it. Default: what the bundle holds, on one device.
    Raises:
        BundleError: the bundle came without an optimizer.
        SettingsError: its moments are not those of the template.
    """
    folder = Path(folder).absolute()
    training, found = _description(folder), _moments(folder)
    if template is not None:
        _check_moments(folder, found, template)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {} if template is None else flatten({"mu": template.mu, "nu": template.nu})

    def sharding(leaf: Any) -> Any:
        return getattr(leaf, "sharding", None) or device

    target: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=sharding(wanted.get(path)))
        for path, leaf in found.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        moments = checkpointer.restore(folder / "optimizer", unflatten(target))
    step, count = int(training["step"]), int(training["count"])
    state = OptimizerState(
        count=jax.device_put(np.int32(count), sharding(template and template.count)),
        skipped=jax.device_put(np.int32(max(0, step - count)), sharding(template and template.skipped)),
        grad_norm=jax.device_put(np.float32(0), sharding(template and template.grad_norm)),
        mu=moments["mu"],
        nu=moments["nu"],
    )
    return step, OptimizerConfig(**training["optimizer"]), state


def check_continues(folder: str | Path, config: OptimizerConfig, template: OptimizerState) -> None:
    """Whether a run with these settings can go on with the optimizer of a bundle; no moment is read.

    Settings that differ from those of the run before are allowed, and logged.

    Raises:
        BundleError: the bundle came without an optimizer.
        SettingsError: this run trains other parameters, or its schedule ends before it begins.
    """
    folder = Path(folder).absolute()
    training = _description(folder)
    _check_moments(folder, _moments(folder), template)
    step = int(training["step"])
    if step >= config.total_steps:
        raise SettingsError(
            f"train.steps: {folder} has seen {step} steps already, and {config.total_steps} is the length of the whole "
            f"schedule, these included; set it above {step}, or leave out init_optimizer to begin a new schedule"
        )
    before, now = asdict(OptimizerConfig(**training["optimizer"])), asdict(config)
    changed = [f"{name}: {before[name]!r} before, {now[name]!r} now" for name in now if before[name] != now[name]]
    if changed:
        _log.warning("%s was trained with other settings:\n  %s", folder, "\n  ".join(changed))


def _description(folder: Path) -> dict[str, Any]:
    training = read_description(folder)[1].get("training")
    if not isinstance(training, dict) or not (folder / "optimizer").is_dir():
        raise BundleError(f"{folder} holds no optimizer: convert the checkpoint with --with-optimizer")
    return training


def _moments(folder: Path) -> dict[str, Any]:
    return dict(open_tree(folder / "optimizer"))


def _check_moments(folder: Path, found: Mapping[str, Any], template: OptimizerState) -> None:
    wanted = flatten({"mu": template.mu, "nu": template.nu})
    without = [path.removeprefix("mu/") for path in wanted if path.startswith("mu/") and path not in found]
    beyond = [path.removeprefix("mu/") for path in found if path.startswith("mu/") and path not in wanted]
    other = [
        f"{path} is {list(found[path].shape)} there, {list(leaf.shape)} here"
        for path, leaf in wanted.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    problems = [f"{len(without)} parameters trained here have no moments there: {without[0]}, ..."] if without else []
    problems += [f"{len(beyond)} that have are not trained here: {beyond[0]}, ..."] if beyond else []
    problems += other
    if problems:
        raise SettingsError(
            f"the optimizer of {folder} is not that of this run:\n  " + "\n  ".join(problems) + "\n"
            "Train the parameters that were trained before (train.preset=full, nothing in train.freeze), or leave out "
            "init_optimizer to begin with fresh moments."
        )
