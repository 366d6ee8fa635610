"""The optimizer of a bundle that was converted with it: training goes on as the run before would have."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mem0_jax.policies.bundle import BundleError, read_description
from mem0_jax.store import open_tree
from mem0_jax.train.config import OptimizerConfig
from mem0_jax.train.optim import OptimizerState
from mem0_jax.tree import unflatten


def load_optimizer(folder: str | Path) -> tuple[int, OptimizerConfig, OptimizerState]:
    """Reads the batches seen so far, the optimizer's settings and its state (moments in float32).

    Raises:
        BundleError: the bundle came without an optimizer.
    """
    folder = Path(folder).absolute()
    training = read_description(folder)[1].get("training")
    if not isinstance(training, dict) or not (folder / "optimizer").is_dir():
        raise BundleError(f"{folder} holds no optimizer: convert the checkpoint with --with-optimizer")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=device)
        for path, leaf in open_tree(folder / "optimizer").items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        moments = checkpointer.restore(folder / "optimizer", unflatten(target))
    state = OptimizerState(
        count=jnp.asarray(training["count"], jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        grad_norm=jnp.zeros((), jnp.float32),
        mu=moments["mu"],
        nu=moments["nu"],
    )
    return int(training["step"]), OptimizerConfig(**training["optimizer"]), state
