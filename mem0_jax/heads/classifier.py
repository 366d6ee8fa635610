"""Subtask-end classifier: a residual MLP over the flattened context tokens.

Axis letters: B samples, F flattened context width. Source: RMBench `.../classifier/subtask_classifier.py` (behaviour).
"""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from mem0_jax.config import check_ranges
from mem0_jax.nn.layers import LayerNorm, Linear, dropout, gelu_exact, split_key

Array = jax.Array


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes and loss of the classifier.

    Attributes:
        hidden_sizes: widths from the input to the last block.
        pos_weight: weight of positive labels in the cross-entropy.
        focal_gamma: exponent of the focal factor (1 - p_t)^gamma.
        threshold: probability from which a frame counts as positive.
        dropout: rate while training.
    """

    hidden_sizes: tuple[int, ...] = (6144, 2048, 512)
    pos_weight: float = 10.0
    focal_gamma: float = 1.0
    threshold: float = 0.5
    dropout: float = 0.1

    def __post_init__(self):
        weights = dict.fromkeys(("pos_weight", "focal_gamma"), "[0, inf)")
        check_ranges(self, hidden_sizes="[1, inf)", threshold="[0, 1]", dropout="[0, 1)", **weights)
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes: expected at least one width, got none")


class Block(nnx.Module):
    """skip(x) + fc2(gelu(fc1(norm(x)))); the skip is linear when widths differ."""

    def __init__(self, inputs: int, outputs: int, rate: float, rngs: nnx.Rngs):
        self.norm = LayerNorm(inputs)
        self.fc1, self.fc2 = Linear(inputs, outputs, rngs), Linear(outputs, outputs, rngs)
        self.skip = Linear(inputs, outputs, rngs) if inputs != outputs else None
        self.rate = rate

    def __call__(self, x: Array, key: Array | None) -> Array:
        keys = split_key(key, 2)
        h = dropout(gelu_exact(self.fc1(self.norm(x))), self.rate, keys[0])
        h = dropout(self.fc2(h), self.rate, keys[1])
        return h + (x if self.skip is None else self.skip(x))


class SubtaskEndClassifier(nnx.Module):
    """Blocks `block_0`, `block_1`, ..., a final norm and a linear head."""

    def __init__(self, config: ClassifierConfig, rngs: nnx.Rngs):
        sizes = config.hidden_sizes
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            setattr(self, f"block_{i}", Block(inputs, outputs, config.dropout, rngs))
        self.final_norm = LayerNorm(sizes[-1])
        self.head = Linear(sizes[-1], 1, rngs)
        self.depth = len(sizes) - 1

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """Logits [B] of features [B, F]; `key` turns dropout on."""
        for i, block_key in enumerate(split_key(key, self.depth)):
            x = getattr(self, f"block_{i}")(x, block_key)
        return self.head(self.final_norm(x))[..., 0]


def focal_loss(logits: Array, labels: Array, config: ClassifierConfig) -> Array:
    """Mean over [B] of the weighted cross-entropy times (1 - p_t)^gamma (Lin et al., 2017)."""
    positive = config.pos_weight * labels * jax.nn.softplus(-logits)
    entropy = positive + (1 - labels) * jax.nn.softplus(logits)
    probability = jax.nn.sigmoid(logits)
    right = probability * labels + (1 - probability) * (1 - labels)
    factor = (1 - right) ** config.focal_gamma if config.focal_gamma else 1.0
    return jnp.mean(entropy * factor)


def counts(logits: Array, labels: Array, threshold: float) -> dict[str, Array]:
    """Confusion counts of a batch, to be summed over a window of log events."""
    return confusion(jax.nn.sigmoid(logits) >= threshold, labels > 0.5, jnp.ones(labels.shape, bool))


def confusion(predicted: Array, positive: Array, counted: Array) -> dict[str, Array]:
    """Counts, by the names of `train.metrics`, of predictions, labels and which of them count; all bool."""
    return {
        "cls_tp": jnp.sum(predicted & positive & counted),
        "cls_fp": jnp.sum(predicted & ~positive & counted),
        "cls_fn": jnp.sum(~predicted & positive & counted),
        "cls_correct": jnp.sum((predicted == positive) & counted),
        "cls_total": jnp.sum(counted),
        "cls_positive": jnp.sum(positive & counted),
    }
