"""EVO1: InternVL3 features and a flow head of cross-attention blocks.

Axis letters: L lanes or sessions, T consecutive frames, B = L * T, V pictures, N pixels along their side, S tokens,
E width, C chunk length, A action width, D width of the state, R draws a sample.
Source: LeRobot 0.6 `policies/evo1`, MINT-SJTU/Evo-1 (behaviour).
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.internvl3.model import InternVL3
from mem0_jax.heads import flow
from mem0_jax.heads.cross_attention import Condition, CrossAttentionHead, repeat_condition
from mem0_jax.nn import module
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.nn.partition import by_samples
from mem0_jax.policies.base import Batch, Params, Shapes, Spec
from mem0_jax.policies.evo1 import axes
from mem0_jax.policies.evo1.config import EVO1Config

Array = jax.Array
# Parameters that are used only after a cast to the compute dtype; norms are used in float32.
CAST = r"backbone/(?!.*norm).*"


class EVO1Model(nnx.Module):
    """The parts; their parameters live under `backbone` and `head`."""

    def __init__(self, config: EVO1Config, rngs: nnx.Rngs):
        self.backbone, self.head = InternVL3(config.backbone, rngs), CrossAttentionHead(config.head, rngs)


class Context(NamedTuple):
    """What the head needs of a frame.

    Attributes:
        tokens: float32 [B, S, E].
        copies: int32 [B, S], how many alike each stands for; 0: it is hidden.
        real: bool [B, 1, A] or [B, C, A], numbers of the actions that the robot has.
        category: int32 [B], kind of robot.
    """

    tokens: Array
    copies: Array
    real: Array
    category: Array


class EVO1:
    """The policy. A batch holds, with leading axes [L, T]:

    pixels uint8 [V, N, N, 3], input_ids, position, image_slot, visible, attention_mask, copies [S], real [A] (see
    `processor` and `backbones.internvl3.processor`), state [D], action [C, A], action_is_pad [C]. Further entries where
    they are given: `action_mask` [C, A], numbers of the actions that count; `category` [], kind of robot; `noise`
    [C, A] in [-1, 1) and `time` [] in place of the random draws. An observation is the same with [L] alone, without
    labels.
    """

    learning_rate_groups: tuple[tuple[str, str], ...] = (("backbone", "backbone/.*"), ("head", "head/.*"))
    labels: tuple[str, ...] = ("action", "action_is_pad")

    def __init__(self, config: EVO1Config):
        self.config = config
        self.no_gradient: tuple[str, ...] = (r"head/(time|position)_table/embedding",)
        if config.head.horizon == 1:  # nothing is pooled, and nothing has a position
            self.no_gradient = (r"head/time_table/embedding", r"head/pool/.*")
        self.logical_axes = axes.logical_axes(config.head)
        self._build = lambda rngs: EVO1Model(config, rngs)
        self.bind = module.bind(self._build)

    @property
    def spec(self) -> Spec:
        """What the outside need know of it."""
        head = self.config.head
        return Spec(head.horizon, head.action_dim, head.state_dim, noise="uniform")

    def batch(self, tokens: int, views: int) -> Shapes:
        """Entries of a training batch; `tokens` is S, `views` V."""
        head, side = self.config.head, self.config.backbone.vision.image_size
        return {
            "pixels": ((views, side, side, 3), jnp.uint8),
            **dict.fromkeys(("input_ids", "position", "image_slot", "copies"), ((tokens,), jnp.int32)),
            **dict.fromkeys(("visible", "attention_mask"), ((tokens,), jnp.bool_)),
            "real": ((head.action_dim,), jnp.bool_),
            "state": ((head.state_dim,), jnp.float32),
            "action": ((head.horizon, head.action_dim), jnp.float32),
            "action_is_pad": ((head.horizon,), jnp.bool_),
        }

    @same_numbers
    def init(self, key: Array) -> Params:
        """Fresh parameters (float32)."""
        return module.init(self._build, key)

    def init_state(self, lanes: int) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def reset(self, state: tuple[()], where: Array) -> tuple[()]:
        """Nothing to empty."""
        return ()

    def inputs(self, images: Array, prompts: Batch) -> Batch:
        """Observations from pictures uint8 [B, V, N, N, 3] and prompts of the processor."""
        return prompts | {"pixels": images}

    def context(self, params: Params, observation: Batch) -> Context:
        """The backbone over a flat batch [B]."""
        config, rows = self.config, len(observation["pixels"])
        whole, visible = config.mode != "masked", observation["visible"]
        tokens = self.bind(params).backbone.encode(
            observation,
            jnp.dtype(config.dtype),
            black=whole and observation["pixels"].shape[1] < config.views,
            silent_hidden=config.mode == "fa2",
            remat=config.recompute,
        )
        copies = observation["copies"]
        if config.cls_only:
            last = visible.shape[1] - 1 - jnp.argmax(visible[:, ::-1], 1)
            place = jnp.zeros_like(last) if whole else last
            tokens, copies = jnp.take_along_axis(tokens, place[:, None, None], 1), jnp.ones((rows, 1), jnp.int32)
        category = observation.get("category", jnp.full(rows, config.category, jnp.int32))
        real = observation["real"][:, None]
        if "action_mask" in observation:
            real = real & observation["action_mask"]
        return Context(tokens.astype(jnp.float32), copies, real, category)

    def condition(self, params: Params, context: Context, state: Array) -> Condition:
        """The head's, of states [B, D]."""
        return self.bind(params).head.condition(context.tokens, context.copies, state, context.category)

    def loss(
        self, params: Params, state: tuple[()], batch: Batch, rng: Array, train: bool
    ) -> tuple[Array, dict[str, Array], tuple[()]]:
        """The mean squared error over all numbers of the batch that count: of actions within their episode, numbers
        that the robot has. `train` turns dropout on."""
        flat = {name: by_samples(value.reshape(-1, *value.shape[2:])) for name, value in batch.items()}
        config, rows = self.config.flow, len(flat["action"])
        context = self.context(params, flat)
        noise_key, time_key = jax.random.split(jax.random.fold_in(rng, 0))
        noise, time = flat.get("noise"), flat.get("time")
        noise = self.spec.draws(noise_key, rows * config.draws) if noise is None else noise
        time = flow.sample_time(time_key, rows * config.draws, config) if time is None else time
        time = jnp.clip(time, *config.time_range)
        counts = context.real & ~flat["action_is_pad"][..., None]
        counts, actions = (jnp.tile(value, (config.draws, 1, 1)) for value in (counts, flat["action"]))
        # What does not count enters as zeros, of noise and of data.
        point, velocity = flow.interpolate(noise * counts, actions * counts, time)
        condition = repeat_condition(self.condition(params, context, flat["state"]), config.draws)
        dropout_key = jax.random.fold_in(rng, 1) if train and self.config.head.dropout else None
        predicted = self.bind(params).head.velocity(
            condition, point, flow.bucket(time, config), dropout_key, remat=self.config.recompute
        )
        loss = jnp.sum(jnp.square(predicted - velocity) * counts) / jnp.maximum(counts.sum(), 1)
        return loss, {"loss": loss}, ()

    def observe(
        self, params: Params, state: tuple[()], observation: Batch
    ) -> tuple[Context, dict[str, Array], tuple[()]]:
        """One frame a session."""
        return self.context(params, observation), {}, ()

    def remember(self, params: Params, state: tuple[()], observation: Batch, index: Array, count: Array) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def constants(self, params: Params) -> None:
        """None."""
        return

    def decide(self, params: Params, context: Context, state: Array, noise: Array, constants: None = None) -> Array:
        """Samples action chunks [L, C, A] from contexts, states [L, D] and noise [L, C, A] in [-1, 1). Numbers that the
        robot has not are 0 at every step."""
        head, real = self.bind(params).head, context.real
        condition = self.condition(params, context, state)

        def velocity(point: Array, time: Array) -> Array:
            return head.velocity(condition, point, jnp.broadcast_to(time, len(point))) * real

        return flow.solve(velocity, noise * real, self.config.flow)


def serving_dtype(path: str, config: EVO1Config) -> Any:
    """The narrowest dtype in which a parameter can be stored without changing what the policy gives."""
    return jnp.dtype(config.dtype) if re.fullmatch(CAST, path) else jnp.dtype("float32")
