"""Flow matching (Lipman et al., 2023) from noise at time 0 to data at time 1.

Axis letters: B samples, C action chunk length (horizon), A action width, R draws per sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mem0_jax.config import check_ranges

Array = jax.Array


@dataclass(frozen=True)
class FlowConfig:
    """The laws of training and the solver.

    Attributes:
        time_beta: (alpha, beta) of the Beta law behind the time law t = (s - b) / s.
        time_scale: s.
        draws: noise and time draws per training sample.
        solver_steps: Euler steps from 0 to 1.
        buckets: the network sees trunc(buckets * t).
    """

    time_beta: tuple[float, float] = (1.5, 1.0)
    time_scale: float = 0.999
    draws: int = 8
    solver_steps: int = 8
    buckets: int = 1000

    def __post_init__(self):
        counts = dict.fromkeys(("draws", "solver_steps", "buckets"), "[1, 1e6]")
        check_ranges(self, time_beta="(0, inf)", time_scale="(0, 1]", **counts)


def sample_time(key: Array, count: int, config: FlowConfig) -> Array:
    """Draws `count` times, float32 [count]. Most mass lies near 0, the noisy end."""
    b = jax.random.beta(key, *config.time_beta, (count,))
    return (config.time_scale - b) / config.time_scale


def bucket(time: Array, config: FlowConfig) -> Array:
    """The integer timestep of the network; truncates towards zero (times can lie slightly below 0)."""
    return jnp.trunc(time * config.buckets).astype(jnp.int32)


def interpolate(noise: Array, actions: Array, time: Array) -> tuple[Array, Array]:
    """The point at `time` [B] on the straight line from noise to actions [B, C, A], and its velocity."""
    t = time[:, None, None]
    return (1 - t) * noise + t * actions, actions - noise


def timesteps(config: FlowConfig) -> Array:
    """The network's timesteps of the solver: int32 [solver_steps]."""
    return jnp.array([int(i / config.solver_steps * config.buckets) for i in range(config.solver_steps)], jnp.int32)


def solve(
    velocity: Callable[[Array, Any], Array], noise: Array, config: FlowConfig, conditions: Any | None = None
) -> Array:
    """Euler steps of 1 / solver_steps. Returns the actions.

    Args:
        velocity: called with the point and with this step's part of `conditions`.
        noise: the first point.
        config: the solver's.
        conditions: pytree with a leading axis of solver_steps; None: the int32 timesteps themselves.
    """

    def step(x, condition):
        return x + velocity(x, condition) / config.solver_steps, None

    return jax.lax.scan(step, noise, timesteps(config) if conditions is None else conditions)[0]
