"""Looks once and acts.

Axis letters: L lanes or sessions, T consecutive frames, B = L * T, R draws a sample, S words, W width, C horizon, A
action width, h and w height and width of a camera's pictures.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.heads import flow
from mem0_jax.nn import module
from mem0_jax.nn.layers import Embedding, Linear
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.nn.partition import by_samples
from mem0_jax.policies.base import Batch, Params, Shapes, Spec

from .config import GlanceConfig

Array = jax.Array


class Eyes(nnx.Module):
    """A linear layer over the patches of each camera, and the mean of the words."""

    def __init__(self, config: GlanceConfig, rngs: nnx.Rngs):
        self.patch, self.dtype, self.count = config.patch, jnp.dtype(config.dtype), len(config.sizes)
        for i in range(self.count):
            setattr(self, f"eye_{i}", Linear(3 * config.patch**2, config.width, rngs))
        self.words = Embedding(config.vocabulary, config.width, rngs)

    def __call__(self, observation: Batch) -> Array:
        """Features [B, W] of an observation."""
        seen = jnp.zeros((), self.dtype)
        for i in range(self.count):
            view = observation[f"view_{i}"].astype(self.dtype) / 255
            rows, columns = (size // self.patch for size in view.shape[1:3])
            cut = view.reshape(-1, rows, self.patch, columns, self.patch, 3).transpose(0, 1, 3, 2, 4, 5)
            patches = cut.reshape(len(view), rows * columns, -1)
            seen = seen + jax.nn.relu(getattr(self, f"eye_{i}")(patches)).mean(1)
        weight = observation["attention_mask"].astype(self.dtype)
        said = jnp.einsum("bs,bsw->bw", weight, self.words(observation["words"], self.dtype))
        return jnp.tanh(seen + said / jnp.maximum(weight.sum(1, keepdims=True), 1)).astype(jnp.float32)


class Head(nnx.Module):
    """The velocity of a chunk."""

    def __init__(self, config: GlanceConfig, rngs: nnx.Rngs):
        self.state = Linear(config.state_dim, config.width, rngs)
        self.hidden = Linear(2 * config.width + config.chunk + 1, 4 * config.width, rngs)
        self.out = Linear(4 * config.width, config.chunk, rngs)

    def __call__(self, seen: Array, state: Array, point: Array, time: Array) -> Array:
        """Features [B, W], states, chunks [B, C, A] and their times [B] in buckets: velocities [B, C, A]."""
        parts = [seen, self.state(state), point.reshape(len(point), -1), time[:, None].astype(jnp.float32) / 1000]
        return self.out(jax.nn.relu(self.hidden(jnp.concatenate(parts, -1)))).reshape(point.shape)


class GlanceModel(nnx.Module):
    """The parts."""

    def __init__(self, config: GlanceConfig, rngs: nnx.Rngs):
        self.eyes, self.head = Eyes(config, rngs), Head(config, rngs)


class Glance:
    """See `mem0_jax.policies.base.Policy`."""

    learning_rate_groups: tuple[tuple[str, str], ...] = (("eyes", "eyes/.*"), ("head", "head/.*"))
    no_gradient: tuple[str, ...] = ()
    logical_axes: tuple[tuple[str, str], ...] = (
        ("small embed", r"eyes/eye_\d+/kernel"),
        ("vocab embed", "eyes/words/embedding"),
        ("small embed", "head/state/kernel"),
        ("embed mlp", "head/hidden/kernel"),
        ("mlp embed", "head/out/kernel"),
        ("stream", ".*/bias"),
    )
    labels: tuple[str, ...] = ("action", "action_is_pad")

    def __init__(self, config: GlanceConfig):
        self.config = config
        self._build = lambda rngs: GlanceModel(config, rngs)
        self._bind = module.bind(self._build)

    @property
    def spec(self) -> Spec:
        return Spec(self.config.horizon, self.config.action_dim, self.config.state_dim, noise="uniform")

    def batch(self, tokens: int, views: int) -> Shapes:
        config = self.config
        sizes = zip(range(views), config.sizes, strict=True)
        return {f"view_{i}": ((*size, 3), jnp.uint8) for i, size in sizes} | {
            "words": ((tokens,), jnp.int32),
            "attention_mask": ((tokens,), jnp.bool_),
            "state": ((config.state_dim,), jnp.float32),
            "action": ((config.horizon, config.action_dim), jnp.float32),
            "action_is_pad": ((config.horizon,), jnp.bool_),
        }

    @same_numbers
    def init(self, key: Array) -> Params:
        return module.init(self._build, key)

    def init_state(self, lanes: int) -> tuple[()]:
        return ()

    def reset(self, state: tuple[()], where: Array) -> tuple[()]:
        return ()

    def inputs(self, images: tuple[Array, ...], prompts: Batch) -> Batch:
        return prompts | {f"view_{i}": view for i, view in enumerate(images)}

    def loss(
        self, params: Params, state: tuple[()], batch: Batch, rng: Array, train: bool
    ) -> tuple[Array, dict[str, Array], tuple[()]]:
        """The mean over actions within their episode."""
        flat = {name: by_samples(value.reshape(-1, *value.shape[2:])) for name, value in batch.items()}
        parts, config = self._bind(params), self.config.flow
        noise_key, time_key = jax.random.split(rng)
        seen, state_seen, actions, padding = (
            jnp.repeat(value, config.draws, 0)
            for value in (parts.eyes(flat), flat["state"], flat["action"], flat["action_is_pad"])
        )
        noise = self.spec.draws(noise_key, len(actions))
        time = flow.sample_time(time_key, len(actions), config)
        point, velocity = flow.interpolate(noise, actions, time)
        error = jnp.square(parts.head(seen, state_seen, point, flow.bucket(time, config)) - velocity).mean(-1)
        loss = jnp.sum(error * ~padding) / jnp.maximum((~padding).sum(), 1)
        return loss, {"loss": loss}, ()

    def observe(
        self, params: Params, state: tuple[()], observation: Batch
    ) -> tuple[Array, dict[str, Array], tuple[()]]:
        """The context is [L, W]."""
        return self._bind(params).eyes(observation), {}, ()

    def remember(self, params: Params, state: tuple[()], observation: Batch, index: Array, count: Array) -> tuple[()]:
        return ()

    def constants(self, params: Params) -> None:
        return None

    def decide(self, params: Params, context: Array, state: Array, noise: Array, constants: Any) -> Array:
        head = self._bind(params).head

        def velocity(point: Array, time: Array) -> Array:
            return head(context, state, point, jnp.broadcast_to(time, len(point)))

        return flow.solve(velocity, noise, self.config.flow)
