"""Mem-0: Qwen3-VL features, a MemoryBank, a flow-matching DiT head and a subtask-end classifier.

Axis letters: L lanes or sessions, T consecutive frames, B = L * T, S tokens, H width, C chunk length, A action width,
R draws per sample. Source: RMBench `policy/Mem-0/source/models/execution_module/memorymatters_executor.py` (behaviour).
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.qwen3_vl.config import TokenIds
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.positions import grid_tables
from mem0_jax.backbones.qwen3_vl.processor import patchify
from mem0_jax.heads import flow
from mem0_jax.heads.classifier import SubtaskEndClassifier, counts, focal_loss
from mem0_jax.heads.dit import DiTHead, Modulation, repeat_condition
from mem0_jax.memory import bank
from mem0_jax.memory.bank import MemoryBank, MemoryState
from mem0_jax.nn import module
from mem0_jax.nn.layers import split_key
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.nn.partition import by_samples
from mem0_jax.policies.base import Batch, Params, Shapes, Spec
from mem0_jax.policies.mem0 import axes
from mem0_jax.policies.mem0.config import Mem0Config

Array = jax.Array
# Parameters that are used only after a cast to the compute dtype. Norms, the vision tower's position table and what the
# memory joins with them are used in float32.
CAST = r"backbone/(?!.*norm).*/(kernel|bias)|backbone/.*embed_tokens/embedding|memory/cross_attn(1/(q|out)|2/.*)/kernel"
TABLES = ("row_column", "table_index", "table_weight")


class Mem0Model(nnx.Module):
    """The parts; their parameters live under `backbone`, `memory`, `action`, `classifier`."""

    def __init__(self, config: Mem0Config, rngs: nnx.Rngs):
        self.backbone = Qwen3VL(config.backbone, rngs)
        self.memory = MemoryBank(config.backbone.text.hidden_size, config.memory, rngs)
        self.action = DiTHead(config.action, rngs)
        self.classifier = SubtaskEndClassifier(config.classifier, rngs)


def pooled_features(hidden: Array, input_ids: Array, tokens: TokenIds) -> tuple[Array, Array]:
    """Image and text feature [B, H] of hidden states [B, S, H].

    The image feature is the mean of all views, strictly between their vision_start and vision_end, the text feature
    that strictly between the last view's vision_end and the first im_end; an empty or missing span gives zeros.
    """
    place = jnp.arange(input_ids.shape[1])
    starts, ends = input_ids == tokens.vision_start, input_ids == tokens.vision_end

    def last(found):  # where the last one was, up to each place
        return jax.lax.cummax(jnp.where(found, place, -1), axis=1)

    last_end = last(ends)
    opened = last(starts) > jnp.pad(last_end[:, :-1], [(0, 0), (1, 0)], constant_values=-1)  # a view, its end included
    final = last(ends & opened)[:, -1:]  # of the last view
    image = opened & ~starts & ~ends & (place < final)
    found = input_ids == tokens.im_end
    text = (place > final) & (place < jnp.argmax(found, 1)[:, None]) & (final >= 0) & found.any(1)[:, None]

    def mean(inside):
        weight = inside / jnp.maximum(inside.sum(1, keepdims=True), 1)
        return jnp.einsum("bs,bsh->bh", weight.astype(hidden.dtype), hidden)

    return mean(image), mean(text)


class Mem0:
    """The policy. A batch holds, with leading axes [L, T]:

    patches [V, P, patch width], input_ids [S], attention_mask [S], position [3, S], image_slot [S] (see
    `backbones.qwen3_vl.processor`), state [A], action [C, A], episode, subtask_end. Images of several sizes need
    patch_mask [V, P] and grid_id [V] too, and without the leading axes the tables row_column, table_index, table_weight
    [G, P, ...] (see `positions.arrays_of`). `noise` [R * B, C, A] and `time` [R * B] replace the random draws when
    given. An observation is the same with [L] alone, without labels.
    """

    learning_rate_groups: tuple[tuple[str, str], ...] = (
        ("backbone", "backbone/.*"),
        ("action", "action/.*"),
        ("classifier", "classifier/.*"),
        ("memory", "memory/.*"),
    )
    labels: tuple[str, ...] = ("action", "subtask_end")

    def __init__(self, config: Mem0Config):
        self.config = config
        # The features are taken before the final norm, and nothing reads the language-model head.
        self.no_gradient: tuple[str, ...] = (r"backbone/language_model/norm/.*",)
        if not config.backbone.text.tie_word_embeddings:
            self.no_gradient += (r"backbone/lm_head/.*",)
        self.logical_axes = axes.logical_axes(config.backbone)
        self._build = lambda rngs: Mem0Model(config, rngs)
        self.bind = module.bind(self._build)

    @property
    def spec(self) -> Spec:
        """What the outside need know of it."""
        action, threshold = self.config.action, self.config.classifier.threshold
        return Spec(action.horizon, action.action_dim, action.state_dim, self.config.memory.window_size, threshold)

    def batch(self, tokens: int, views: int) -> Shapes:
        """Entries of a training batch with images of `image_size`; `tokens` is S, `views` V."""
        vision, action, (height, width) = self.config.backbone.vision, self.config.action, self.config.image_size
        patches = height * width // vision.patch_size**2
        return {
            "patches": ((views, patches, vision.patch_width), jnp.uint8),
            "input_ids": ((tokens,), jnp.int32),
            "attention_mask": ((tokens,), jnp.bool_),
            "position": ((3, tokens), jnp.int32),
            "image_slot": ((tokens,), jnp.int32),
            "state": ((action.state_dim,), jnp.float32),
            "action": ((action.horizon, action.action_dim), jnp.float32),
            "episode": ((), jnp.int32),
            "subtask_end": ((), jnp.int32),
        }

    def reset(self, state: MemoryState, where: Array) -> MemoryState:
        """Memories, emptied where bool [L] says so."""
        return bank.reset(state, where)

    def inputs(self, images: Array, prompts: Batch) -> Batch:
        """Observations from pictures uint8 [B, V, height, width, 3] of `image_size` and prompts of the processor."""
        return prompts | {"patches": patchify(images, self.config.backbone.vision)}

    @same_numbers
    def init(self, key: Array) -> Params:
        """Fresh parameters (float32)."""
        return module.init(self._build, key)

    def init_state(self, lanes: int) -> MemoryState:
        """Empty memories."""
        width = self.config.backbone.text.hidden_size
        return bank.init_state(lanes, self.config.memory, width, jnp.dtype(self.config.dtype))

    def features(self, params: Params, observation: Batch) -> tuple[Array, Array, Array]:
        """Backbone over a flat batch [B]: last hidden states [B, S, H], image and text features [B, H]."""
        config, observation = self.config, self._located(observation)
        hidden = self.bind(params).backbone.encode(observation, jnp.dtype(config.dtype), remat=config.recompute).hidden
        return hidden, *pooled_features(hidden, observation["input_ids"], config.backbone.tokens)

    def _located(self, observation: Batch) -> Batch:
        """Adds the position tables; without any given, all images have `image_size`."""
        if "row_column" in observation:
            return observation
        vision, (height, width) = self.config.backbone.vision, self.config.image_size
        images = observation["patches"].shape[:3]
        tables = grid_tables([(1, height // vision.patch_size, width // vision.patch_size)], vision)
        tables = {key: jnp.asarray(table) for key, table in tables.items()}
        return (
            observation | tables | {"patch_mask": jnp.ones(images, bool), "grid_id": jnp.zeros(images[:2], jnp.int32)}
        )

    def loss(
        self, params: Params, state: MemoryState, batch: Batch, rng: Array, train: bool
    ) -> tuple[Array, dict[str, Array], MemoryState]:
        """The training loss; `train` turns dropout on. Metrics: both losses and the classifier's counts."""
        lanes, frames = batch["episode"].shape
        memory_key, action_key, classifier_key = split_key(jax.random.fold_in(rng, 1) if train else None, 3)
        observation = _flat(batch, lanes * frames)
        _, image, text = self.features(params, observation)
        parts = self.bind(params)
        reading, state = parts.memory.sequence(
            state, image.reshape(lanes, frames, -1), batch["episode"], batch["subtask_end"], memory_key
        )
        context = jnp.stack([reading.window.reshape(text.shape), reading.anchor.reshape(text.shape), text], 1)
        context = context.astype(jnp.float32)
        action_loss = self._action_loss(parts, context, observation, jax.random.fold_in(rng, 0), action_key)
        logits = parts.classifier(context.reshape(len(context), -1), classifier_key)
        labels = observation["subtask_end"].astype(jnp.float32)
        classifier_loss = focal_loss(logits, labels, self.config.classifier)
        total = self.config.lambda_action * action_loss + self.config.lambda_classifier * classifier_loss
        metrics = {"loss": total, "action_loss": action_loss, "classifier_loss": classifier_loss}
        return total, metrics | counts(logits, labels, self.config.classifier.threshold), state

    def _action_loss(self, parts, context: Array, observation: Batch, rng: Array, dropout_key: Array | None) -> Array:
        config = self.config.flow
        actions = jnp.tile(observation["action"], (config.draws, 1, 1))
        noise_key, time_key = jax.random.split(rng)
        noise, time = observation.get("noise"), observation.get("time")
        noise = jax.random.normal(noise_key, actions.shape) if noise is None else noise
        time = flow.sample_time(time_key, len(actions), config) if time is None else time
        point, velocity = flow.interpolate(noise, actions, time)
        condition = repeat_condition(parts.action.condition(context, observation["state"]), config.draws)
        buckets, remat = flow.bucket(time, config), self.config.recompute
        predicted = parts.action.velocity(condition, point, buckets, dropout_key, remat=remat)
        return jnp.mean(jnp.square(predicted - velocity))

    def observe(
        self, params: Params, state: MemoryState, observation: Batch
    ) -> tuple[Array, dict[str, Array], MemoryState]:
        """One frame a session: reads and writes memory. A change of `observation["episode"]` [L], where it is given,
        empties the memory.

        Returns:
            The context tokens [L, 3, H] float32; info with `end_probability` [L] and `attention` [L, W] over the
            window by rank (0 newest); the memories.
        """
        _, image, text = self.features(params, observation)
        parts = self.bind(params)
        reading, state = parts.memory.step(state, image, observation.get("episode", state.episode))
        context = jnp.stack([reading.window, reading.anchor, text], 1).astype(jnp.float32)
        logits = parts.classifier(context.reshape(len(context), -1))
        attention = reading.attention.astype(jnp.float32)
        return context, {"end_probability": jax.nn.sigmoid(logits), "attention": attention}, state

    def remember(
        self, params: Params, state: MemoryState, observation: Batch, index: Array, count: Array
    ) -> MemoryState:
        """Writes frames to memory without reading it, in order and within an episode.

        The image feature depends on no token after the image, so prompts may end there.

        Args:
            params: the parameters.
            state: memories of L lanes.
            observation: frames of all lanes, flat [B].
            index: int32 [L, T], which of them are a lane's frames, oldest first.
            count: int32 [L], how many of the T.
        """
        _, image, _ = self.features(params, observation)
        return bank.write(state, image[index], count)

    def constants(self, params: Params) -> Modulation:
        """What the head makes of the solver's timesteps, these on a leading axis: constants of the parameters."""
        made = self.bind(params).action.modulation(flow.timesteps(self.config.flow))
        return Modulation(
            made.tau[:, None], jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[:, :, None], made.blocks), made.out[:, None]
        )

    def decide(
        self, params: Params, context: Array, proprioception: Array, noise: Array, constants: Modulation | None = None
    ) -> Array:
        """Samples action chunks [L, C, A] from context tokens, states [L, A] and noise [L, C, A].

        `constants` are those of that name; None: computed here.
        """
        head = self.bind(params).action
        condition = head.condition(context, proprioception)
        constants = self.constants(params) if constants is None else constants
        return flow.solve(lambda x, time: head.velocity(condition, x, time), noise, self.config.flow, constants)


def serving_dtype(path: str, config: Mem0Config) -> Any:
    """The narrowest dtype in which a parameter can be stored without changing what the policy gives."""
    return jnp.dtype(config.dtype) if re.fullmatch(CAST, path) else jnp.dtype("float32")


def _flat(batch: Batch, samples: int) -> Batch:
    """Merges the axes [L, T] of everything that has them."""
    whole = (*TABLES, "noise", "time")
    return {k: v if k in whole else by_samples(v.reshape(samples, *v.shape[2:])) for k, v in batch.items()}
