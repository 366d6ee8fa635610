"""The compiled policy with a fixed number of memory slots: one robot, or many robots side by side.

Axis letters: N frames, h and w camera height and width, C action chunk length, D model action width, W memory window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mem0_jax.policies.bundle import Bundle


@dataclass(frozen=True)
class Request:
    """One session's share of a step.

    Attributes:
        slot: its memory.
        images: uint8 [N, h, w, 3]: the frames since its last request, oldest first; the last one is now. With N = 0,
            now is the last frame of the request before.
        instruction: what it is told.
        fresh: its memory is emptied before the first of these frames.
        state: normalised proprioceptive state [D] now, and
        noise: float32 [C, D]: both given where a new action chunk is wanted, else None.
    """

    slot: int
    images: np.ndarray
    instruction: str
    fresh: bool = False
    state: np.ndarray | None = None
    noise: np.ndarray | None = None


@dataclass(frozen=True)
class Reply:
    """Of the last frame: the end-of-subtask probability, the memory's attention [W] over its window by rank (0 newest)
    and, where wanted, the normalised action chunk [C, D]."""

    end_probability: float
    attention: np.ndarray
    chunk: np.ndarray | None


class Engine:
    """Owns the memories and the compiled steps of a bundle.

    Attributes:
        bundle: the policy.
        slots: memories.
    """

    def __init__(self, bundle: Bundle, slots: int = 1):
        self.bundle, self.slots = bundle, slots
        self._memory = [bundle.policy.init_state(1) for _ in range(slots)]
        self._context: list = [None] * slots
        self._info: list = [None] * slots
        self._observe, self._decide = jax.jit(bundle.policy.observe), jax.jit(bundle.policy.decide)

    def step(self, requests: Sequence[Request]) -> list[Reply]:
        """Serves requests of different slots."""
        return [self._serve(request) for request in requests]

    def _serve(self, request: Request) -> Reply:
        bundle, slot = self.bundle, request.slot
        if request.fresh:
            self._memory[slot] = bundle.policy.init_state(1)
        for image in request.images:
            inputs = bundle.processor.prepare(image[None], [request.instruction]) | {"episode": np.zeros(1, np.int32)}
            self._context[slot], self._info[slot], self._memory[slot] = self._observe(
                bundle.params, self._memory[slot], inputs
            )
        chunk, info = None, self._info[slot]
        if request.state is not None and request.noise is not None:
            decided = self._decide(bundle.params, self._context[slot], request.state[None], request.noise[None])
            chunk = np.asarray(decided)[0]
        return Reply(float(info["end_probability"][0]), np.asarray(info["attention"][0]), chunk)
