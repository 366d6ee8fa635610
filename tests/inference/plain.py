"""A tiny policy with nothing at rest, and the engine's answers the plain way: frame by frame, session by session."""

from functools import lru_cache

import jax
import numpy as np
from tiny import mem0_bundle

from mem0_jax.inference.engine import Reply, Request
from mem0_jax.policies.bundle import Bundle

CAMERA, WINDOW, HORIZON = (40, 48), 4, 5
TEXTS = ["pick", "press the button", " ".join(f"word{i}" for i in range(30))]  # of 32, 32 and 64 padded tokens


@lru_cache(maxsize=1)
def tiny_bundle() -> Bundle:
    """All parameters random, the classifier's too: what is at rest hides mistakes."""
    sizes = {
        "memory.window_size": WINDOW,
        "flow.solver_steps": 3,
        "action.num_layers": 4,
        "action.horizon": HORIZON,
        "image_size": (32, 64),
    }
    return mem0_bundle(TEXTS, sizes, camera_size=CAMERA, max_length=64, span=10.0, random=True)


class Plain:
    """Serves requests with the policy's `observe` and `decide` alone."""

    def __init__(self, bundle: Bundle, slots: int):
        self.bundle = bundle
        self._memory = [bundle.policy.init_state(1)] * slots
        self._last: list = [None] * slots
        self._observe, self._decide = jax.jit(bundle.policy.observe), jax.jit(bundle.policy.decide)

    def step(self, requests: list[Request]) -> list[Reply]:
        return [self._serve(request) for request in requests]

    def _serve(self, request: Request) -> Reply:
        bundle, slot = self.bundle, request.slot
        if request.fresh:
            self._memory[slot] = bundle.policy.init_state(1)
        for views in zip(*request.images):
            inputs = bundle.processor.prepare([view[None] for view in views], [request.instruction])
            inputs |= {"episode": np.zeros(1, np.int32)}
            context, info, self._memory[slot] = self._observe(bundle.params, self._memory[slot], inputs)
            self._last[slot] = context, info
        context, info = self._last[slot]
        chunk = None
        if request.state is not None and request.noise is not None:
            chunk = np.asarray(self._decide(bundle.params, context, request.state[None], request.noise[None])[0])
        return Reply({name: np.asarray(told[0]) for name, told in info.items()}, chunk)


def frames(rng: np.random.Generator, count: int) -> np.ndarray:
    """Camera images that differ a lot."""
    return rng.integers(0, 256, (count, 1, 1, 3)).astype(np.uint8) // 2 + rng.integers(
        0, 128, (count, *CAMERA, 3)
    ).astype(np.uint8)


def request(rng: np.random.Generator, slot: int, count: int, *, fresh=False, decide=True, text=0) -> Request:
    """A request with random contents."""
    action = tiny_bundle().config.action
    state = rng.normal(size=action.state_dim).astype(np.float32) if decide else None
    noise = rng.normal(size=(action.horizon, action.action_dim)).astype(np.float32) if decide else None
    return Request(slot, (frames(rng, count),), TEXTS[text], fresh, state, noise)


def difference(ours: list[Reply], theirs: list[Reply]) -> float:
    """The greatest of all arrays' largest differences, each relative to the array's largest number, or to 1."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert (a.chunk is None) == (b.chunk is None)
        assert a.info.keys() == b.info.keys()
        pairs = [(a.info[name], b.info[name]) for name in a.info]
        pairs += [] if a.chunk is None or b.chunk is None else [(a.chunk, b.chunk)]
        worst = max(worst, *(float(np.max(np.abs(np.subtract(x, y))) / max(1.0, np.max(np.abs(y)))) for x, y in pairs))
    return worst
