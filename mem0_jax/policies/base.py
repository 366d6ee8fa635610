"""The seam between policies and everything around them: trainer, evaluator and server know only this."""

from typing import Any, Protocol

import jax

Array = jax.Array
Params = dict[str, Any]
State = Any
Batch = dict[str, Any]


class Policy(Protocol):
    """A robot policy as pure functions over a nested dict of parameters.

    Attributes:
        learning_rate_groups: (group, path regex) pairs; the first match wins and every parameter must match one.
        no_gradient: path regexes of parameters that never influence the policy's outputs.
        logical_axes: (logical axes, path regex) pairs, see `distributed.sharding`.
    """

    learning_rate_groups: tuple[tuple[str, str], ...]
    no_gradient: tuple[str, ...]
    logical_axes: tuple[tuple[str, str], ...]

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        ...

    def init_state(self, lanes: int) -> State:
        """Empty memory for `lanes` lanes or sessions; `()` for a policy without memory."""
        ...

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Array, train: bool
    ) -> tuple[Array, dict[str, Array], State]:
        """Training loss and metrics of a batch of lanes x consecutive frames, and the memory after it."""
        ...

    def act(
        self, params: Params, state: State, observation: Batch, rng: Array
    ) -> tuple[Array, dict[str, Array], State]:
        """Observes one frame a session and samples an action chunk."""
        ...
