"""A planner as the trainer sees it: a backbone, and the cross-entropy of the answers it should give.

Axis letters: L lanes (rows side by side), T parts of a batch, B = L * T, V images of a row (padded to the most), P
patches of an image (padded to the largest), C numbers of a patch, S tokens of a row, A tokens of an answer (padded to
the longest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mem0_jax.backbones.chat import Grid
from mem0_jax.config import deciding
from mem0_jax.family import chat_family, chat_family_of
from mem0_jax.nn.partition import by_samples
from mem0_jax.policies.base import Batch, Params

Array = jax.Array
GROUP = "planner"


@dataclass(frozen=True)
class PlannerConfig:
    """A planner of any size.

    Attributes:
        backbone: its configuration.
        dtype: compute dtype; logits and the loss are float32 always.
        remat, remat_keep: recompute the layers in the backward pass, see `nn.stack.REMAT`.
        family: the backbone's; of a job that names neither, the one that is `unnamed`.
    """

    backbone: Any = None
    dtype: str = "bfloat16"
    remat: bool = False
    remat_keep: Literal["nothing", "weight_products", "products"] = "nothing"
    family: str = deciding("", {"backbone": lambda name: chat_family(name).config})

    def __post_init__(self) -> None:
        backbone = chat_family(self.family).config() if self.backbone is None else self.backbone
        for name, value in {"backbone": backbone, "family": chat_family_of(backbone).name}.items():
            object.__setattr__(self, name, value)


class PlannerPolicy:
    """Supervised fine-tuning of a planner; no memory between batches. Its parameters are those of the bare backbone.

    A batch holds, with leading axes [L, T]:

    what `backbones.chat.Lessons` makes of a row, and of the answer: target int32 [A], the tokens to be given;
    target_place int32 [A], where in the row stands what each is to follow; target_mask bool [A].

    Args:
        config: sizes.
        grids: (time, rows, columns) in patches that `grid_id` counts.
    """

    learning_rate_groups: tuple[tuple[str, str], ...] = ((GROUP, ".*"),)
    no_gradient: tuple[str, ...] = ()

    def __init__(self, config: PlannerConfig, grids: tuple[Grid, ...]):
        self.config, self.grids = config, grids
        family = chat_family_of(config.backbone)
        self.logical_axes, self._lessons = family.logical_axes(config.backbone), family.lessons(config.backbone)
        self._init = family.init(config.backbone)

    def init(self, key: Array) -> Params:
        """Fresh parameters (float32)."""
        return self._init(key)

    def init_state(self, lanes: int) -> tuple[()]:
        """Nothing is remembered from row to row."""
        return ()

    def answer_logits(self, params: Params, batch: Batch) -> Array:
        """Logits float32 [B, A, vocabulary] of the answers, each token given all before it; `batch` leads with [B]."""
        config = self.config
        return self._lessons.logits(params, batch, self.grids, config.dtype, config.remat and config.remat_keep)

    def loss(
        self, params: Params, state: tuple[()], batch: Batch, rng: Array, train: bool
    ) -> tuple[Array, dict[str, Array], tuple[()]]:
        """Mean cross-entropy over the tokens of all answers; no token of a prompt counts.

        Metrics: `token_accuracy`, the share of answer tokens that are the likeliest; `answer_accuracy`, that of answers
        all of whose tokens are.
        """
        lanes, parts = batch["input_ids"].shape[:2]
        flat = {name: by_samples(value.reshape(lanes * parts, *value.shape[2:])) for name, value in batch.items()}
        logits, target, mask = self.answer_logits(params, flat), flat["target"], flat["target_mask"]
        given = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        entropy = jax.nn.logsumexp(logits, -1) - given
        count = jnp.maximum(mask.sum(), 1)
        loss = jnp.sum(entropy * mask) / count
        right = (jnp.argmax(logits, -1) == target) | ~mask
        accuracy = {"token_accuracy": jnp.sum(right & mask) / count, "answer_accuracy": jnp.mean(right.all(-1))}
        return loss, {"loss": loss, **accuracy}, state
