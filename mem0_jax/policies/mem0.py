"""Mem-0: Qwen3-VL features, a MemoryBank, a flow-matching DiT head and a subtask-end classifier.

Axis letters: L lanes or sessions, T consecutive frames, B = L * T, S tokens, H width, C chunk length, A action width,
R draws per sample. Source: RMBench `policy/Mem-0/source/models/execution_module/memorymatters_executor.py` (behaviour).
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TokenIds
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL
from mem0_jax.backbones.qwen3_vl.positions import grid_tables
from mem0_jax.config import check_ranges
from mem0_jax.heads import flow
from mem0_jax.heads.classifier import ClassifierConfig, SubtaskEndClassifier, counts, focal_loss
from mem0_jax.heads.dit import DiTConfig, DiTHead, Modulation, repeat_condition
from mem0_jax.heads.flow import FlowConfig
from mem0_jax.memory import bank
from mem0_jax.memory.bank import MemoryBank, MemoryConfig, MemoryState
from mem0_jax.nn import module
from mem0_jax.nn.layers import split_key
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.nn.partition import by_samples
from mem0_jax.policies import mem0_axes
from mem0_jax.policies.base import Batch, Params

Array = jax.Array
# Parameters that are used only after a cast to the compute dtype. Norms, the vision tower's position table and what the
# memory joins with them are used in float32.
CAST = r"backbone/(?!.*norm).*/(kernel|bias)|backbone/.*embed_tokens/embedding|memory/cross_attn(1/(q|out)|2/.*)/kernel"
TABLES = ("row_column", "table_index", "table_weight")


@dataclass(frozen=True)
class Mem0Config:
    """A Mem-0 of any size; the defaults are the released 2B configuration.

    Attributes:
        lambda_action, lambda_classifier: weights of the two losses.
        image_size: (height, width) of the images the vision tower sees.
        dtype: compute dtype of backbone and memory; the heads are float32 always.
        remat: recompute the layers of the backbone and the action head in the backward pass.
        remat_keep: what is stored still, then; see `nn.stack.REMAT`.
    """

    backbone: Qwen3VLConfig = field(default_factory=Qwen3VLConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    action: DiTConfig = field(default_factory=DiTConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    lambda_action: float = 1.0
    lambda_classifier: float = 0.2
    image_size: tuple[int, int] = (256, 256)
    dtype: str = "bfloat16"
    remat: bool = False
    remat_keep: Literal["nothing", "weight_products", "products"] = "nothing"

    @property
    def recompute(self) -> bool | str:
        """The `remat` of `nn.stack.scan_layers`."""
        return self.remat and self.remat_keep

    def __post_init__(self):
        check_ranges(self, lambda_action="[0, inf)", lambda_classifier="[0, inf)", image_size="[1, inf)")
        width = self.backbone.text.hidden_size
        if self.action.context_width != width:
            raise ValueError(f"action.context_width must equal the backbone's width {width}")
        if self.classifier.hidden_sizes[0] != 3 * width:
            raise ValueError(f"classifier.hidden_sizes must start with 3 * {width}, the flattened context")
        if width % self.memory.num_heads:
            raise ValueError(f"memory.num_heads {self.memory.num_heads} must divide the width {width}")


class Mem0Model(nnx.Module):
    """The parts; their parameters live under `backbone`, `memory`, `action`, `classifier`."""

    def __init__(self, config: Mem0Config, rngs: nnx.Rngs):
        self.backbone = Qwen3VL(config.backbone, rngs)
        self.memory = MemoryBank(config.backbone.text.hidden_size, config.memory, rngs)
        self.action = DiTHead(config.action, rngs)
        self.classifier = SubtaskEndClassifier(config.classifier, rngs)


def pooled_features(hidden: Array, input_ids: Array, tokens: TokenIds) -> tuple[Array, Array]:
    """Image and text feature [B, H] of hidden states [B, S, H].

    The image feature is the mean strictly between the first vision_start and the first vision_end, the text feature
    strictly between the first vision_end and the first im_end; an empty or missing span gives zeros.
    """
    place = jnp.arange(input_ids.shape[1])

    def first(token):
        found = input_ids == token
        return jnp.argmax(found, 1)[:, None], found.any(1)[:, None]

    def mean(start, end):
        inside = (place > start[0]) & (place < end[0]) & start[1] & end[1]
        weight = inside / jnp.maximum(inside.sum(1, keepdims=True), 1)
        return jnp.einsum("bs,bsh->bh", weight.astype(hidden.dtype), hidden)

    vision_end = first(tokens.vision_end)
    return mean(first(tokens.vision_start), vision_end), mean(vision_end, first(tokens.im_end))


class Mem0:
    """The policy. A batch holds, with leading axes [L, T]:

    patches [V, P, patch width], input_ids [S], attention_mask [S], position [3, S], image_slot [S] (see
    `backbones.qwen3_vl.processor`), state [A], action [C, A], episode, subtask_end. Images of several sizes need
    patch_mask [V, P] and grid_id [V] too, and without the leading axes the tables row_column, table_index, table_weight
    [G, P, ...] (see `positions.layout`). `noise` [R * B, C, A] and `time` [R * B] replace the random draws when given.
    An observation is the same with [L] alone, without labels.
    """

    learning_rate_groups: tuple[tuple[str, str], ...] = (
        ("backbone", "backbone/.*"),
        ("action", "action/.*"),
        ("classifier", "classifier/.*"),
        ("memory", "memory/.*"),
    )

    def __init__(self, config: Mem0Config):
        self.config = config
        # The features are taken before the final norm, and nothing reads the language-model head.
        self.no_gradient: tuple[str, ...] = (r"backbone/language_model/norm/.*",)
        if not config.backbone.text.tie_word_embeddings:
            self.no_gradient += (r"backbone/lm_head/.*",)
        self.logical_axes = mem0_axes.logical_axes(config.backbone)
        self._build = lambda rngs: Mem0Model(config, rngs)
        self.bind = module.bind(self._build)

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
        """One frame a session: reads and writes memory. `observation["episode"]` [L]; a change empties the memory.

        Returns:
            The context tokens [L, 3, H] float32; info with `end_probability` [L] and `attention` [L, W] over the
            window by rank (0 newest); the memories.
        """
        _, image, text = self.features(params, observation)
        parts = self.bind(params)
        reading, state = parts.memory.step(state, image, observation["episode"])
        context = jnp.stack([reading.window, reading.anchor, text], 1).astype(jnp.float32)
        logits = parts.classifier(context.reshape(len(context), -1))
        return context, {"end_probability": jax.nn.sigmoid(logits), "attention": reading.attention}, state

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

    def solver_constants(self, params: Params) -> Modulation:
        """What the head makes of the solver's timesteps, these on a leading axis: constants of the parameters."""
        made = self.bind(params).action.modulation(flow.timesteps(self.config.flow))
        return Modulation(
            made.tau[:, None], jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[:, :, None], made.blocks), made.out[:, None]
        )

    def decide(
        self, params: Params, context: Array, proprioception: Array, noise: Array, constants: Modulation | None = None
    ) -> Array:
        """Samples action chunks [L, C, A] from context tokens, states [L, A] and noise [L, C, A].

        `constants` are those of `solver_constants`; None: computed here.
        """
        head = self.bind(params).action
        condition = head.condition(context, proprioception)
        constants = self.solver_constants(params) if constants is None else constants
        return flow.solve(lambda x, time: head.velocity(condition, x, time), noise, self.config.flow, constants)

    def act(
        self, params: Params, state: MemoryState, observation: Batch, rng: Array
    ) -> tuple[Array, dict[str, Array], MemoryState]:
        """`observe`, then `decide` with fresh noise."""
        context, info, state = self.observe(params, state, observation)
        size = (len(context), self.config.action.horizon, self.config.action.action_dim)
        return self.decide(params, context, observation["state"], jax.random.normal(rng, size)), info, state


def serving_dtype(path: str, config: Mem0Config) -> Any:
    """The narrowest dtype in which a parameter can be stored without changing what the policy gives."""
    return jnp.dtype(config.dtype) if re.fullmatch(CAST, path) else jnp.dtype("float32")


def _flat(batch: Batch, samples: int) -> Batch:
    """Merges the axes [L, T] of everything that has them."""
    whole = (*TABLES, "noise", "time")
    return {k: v if k in whole else by_samples(v.reshape(samples, *v.shape[2:])) for k, v in batch.items()}
