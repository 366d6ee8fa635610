"""The seams between policies and everything around them: trainer, validation, engine and server know only these.

Axis letters: L lanes or sessions, T consecutive frames, B frames of a batch, C action horizon, A action width, D width
of the state.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np

Array = jax.Array
Params = dict[str, Any]
State = Any
Batch = dict[str, Any]
Shapes = dict[str, tuple[tuple[int, ...], Any]]


@dataclass(frozen=True)
class Spec:
    """All that the outside need know of a policy's sizes.

    Attributes:
        horizon, action_dim, state_dim: C, A, D.
        history: frames before the present one that its memory can hold; 0: it remembers nothing.
        end_threshold: end-of-subtask probability that counts as positive; None: it sees no ends.
        noise: what chunks are sampled from: standard normal, or uniform in [-1, 1).
    """

    horizon: int
    action_dim: int
    state_dim: int
    history: int = 0
    end_threshold: float | None = None
    noise: Literal["normal", "uniform"] = "normal"

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The noise of one chunk, float32 [C, A], on the host."""
        size = (self.horizon, self.action_dim)
        if self.noise == "uniform":
            return rng.uniform(-1, 1, size).astype(np.float32)
        return rng.standard_normal(size, np.float32)

    def draws(self, key: Array, rows: int) -> Array:
        """That of several, float32 [rows, C, A], on the device."""
        size = (rows, self.horizon, self.action_dim)
        return jax.random.uniform(key, size, minval=-1) if self.noise == "uniform" else jax.random.normal(key, size)


class Trainable(Protocol):
    """What can be trained: pure functions over a nested dict of parameters.

    Attributes:
        learning_rate_groups: (group, path regex) pairs; the first match wins and every parameter must match one.
        no_gradient: path regexes of parameters that no gradient reaches: they never influence the outputs, or are
            constants that came with a checkpoint.
        logical_axes: (logical axes, path regex) pairs, see `distributed.sharding`.
    """

    learning_rate_groups: tuple[tuple[str, str], ...]
    no_gradient: tuple[str, ...]
    logical_axes: tuple[tuple[str, str], ...]

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        ...

    def init_state(self, lanes: int) -> State:
        """Empty memory for `lanes` lanes or sessions; `()` where nothing is remembered."""
        ...

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Array, train: bool
    ) -> tuple[Array, dict[str, Array], State]:
        """Training loss and metrics of a batch of lanes x consecutive frames, and the memory after it."""
        ...


class Policy(Trainable, Protocol):
    """A robot policy: what is trained, and what is deployed.

    Attributes:
        spec: its sizes.
        labels: entries of a batch that are no observations.
    """

    labels: tuple[str, ...]

    @property
    def spec(self) -> Spec: ...

    def batch(self, tokens: int, views: int) -> Shapes:
        """(shape, dtype) of every entry of a training batch, without [L, T], for prompts of so many tokens and pictures
        of so many cameras."""
        ...

    def reset(self, state: State, where: Array) -> State:
        """Memories of L sessions, emptied where bool [L] says so."""
        ...

    def inputs(self, images: Any, prompts: Batch) -> Batch:
        """Observations of B frames from what the processor's `resized` made of the cameras' pictures, arrays [B, ...],
        and what it made of prompts."""
        ...

    def observe(self, params: Params, state: State, observation: Batch) -> tuple[Any, dict[str, Array], State]:
        """One frame a session: what `decide` needs of it, what else is to be told (arrays [L, ...] by name; the
        probability that the subtask ends is `end_probability`), and the memories after it."""
        ...

    def remember(self, params: Params, state: State, observation: Batch, index: Array, count: Array) -> State:
        """Writes frames [B], which come without their text, to memories; as `observe` would."""
        ...

    def constants(self, params: Params) -> Any:
        """What `decide` computes of the parameters alone."""
        ...

    def decide(self, params: Params, context: Any, state: Array, noise: Array, constants: Any) -> Array:
        """Action chunks [L, C, A], normalised, from contexts, states [L, D] and noise [L, C, A]."""
        ...
