"""The compiled policy with a fixed number of memory slots: one robot, or many robots side by side.

All memories lie stacked on the device, and one compiled program serves any choice of them: its rows are gathered,
brought forward and put back, in place. A last row that belongs to nobody takes what pads a batch up to one of a few
sizes, so that only so many programs are ever compiled.

Axis letters: N frames of a request, B requests of a batch, F frames of a batch, S prompt tokens, h and w height and
width of a camera's pictures, C action chunk length, D model action width.
"""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mem0_jax.errors import UserError
from mem0_jax.family import Config, policy_family_of
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.nn.sizes import bucket, padded, sizes_up_to
from mem0_jax.policies.base import Params, Policy, State
from mem0_jax.policies.bundle import Bundle
from mem0_jax.progress import Progress

Array = jax.Array
FRAMES_AT_ONCE = 64  # that are encoded without text in one batch
TOKEN_STEP = 32  # prompts are padded to a multiple of it
Part = tuple[int, bool, tuple[np.ndarray, ...]]  # a slot, whether it is emptied before, its frames by camera


@dataclass(frozen=True)
class Request:
    """One session's share of a step.

    Attributes:
        slot: its memory.
        images: uint8 [N, h, w, 3] of each camera, in the policy's order: the frames since its last request, oldest
            first; the last one is now. With N = 0, now is the last frame of the request before.
        instruction: what it is told.
        fresh: its memory is emptied before the first of these frames. The first request of a slot must be.
        state: normalised proprioceptive state [D] now, and
        noise: float32 [C, D]: both given where a new action chunk is wanted, else None.
    """

    slot: int
    images: tuple[np.ndarray, ...]
    instruction: str
    fresh: bool = False
    state: np.ndarray | None = None
    noise: np.ndarray | None = None

    @property
    def frames(self) -> int:
        """N."""
        return len(self.images[0])


@dataclass(frozen=True)
class Reply:
    """Of the last frame: what the policy tells of it by name, and where wanted the normalised action chunk [C, D]."""

    info: Mapping[str, np.ndarray]
    chunk: np.ndarray | None

    @property
    def end_probability(self) -> float:
        """That the subtask ends; 0 from a policy that sees no ends."""
        return float(self.info.get("end_probability", 0.0))


class LostMemoryError(UserError):
    """A request of a slot whose memory was never begun, or is lost since the device failed."""


@struct.dataclass
class Slots:
    """What is kept of every session, one row each: its memory, and what its last frame gave: what the policy decides
    by, and what it tells."""

    memory: State
    context: Any
    info: dict[str, Array]


class Programs:
    """The compiled steps of a policy."""

    def __init__(self, config: Config):
        self.policy: Policy = policy_family_of(config).policy(config)
        self.constants = jax.jit(self.policy.constants)
        self.remember = jax.jit(self._remember, donate_argnums=1)
        self.look = jax.jit(self._look, donate_argnums=1)
        self.decide = jax.jit(self._decide)

    def seen(self, params: Params, images: Any, prompts: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
        """Shapes of the context and the info that frames give."""

        def look(params: Params, images: Any, prompts: dict[str, Array]) -> Any:
            return self.policy.observe(params, self.policy.init_state(1), self.policy.inputs(images, prompts))[:2]

        return jax.eval_shape(look, params, images, prompts)

    def empty(self, rows: int, seen: tuple[Any, dict[str, Any]]) -> Slots:
        """Slots with nothing in them."""
        context, info = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype), seen)
        # Some leaves are one array: it cannot be given away twice.
        return Slots(jax.tree.map(jnp.copy, self.policy.init_state(rows)), context, info)

    def _remember(
        self, params: Params, slots: Slots, rows: Array, fresh: Array, images: Any, prompts: dict[str, Array],
        index: Array, count: Array,
    ) -> Slots:  # fmt: skip
        """Writes F resized pictures of each camera to the memories of `rows` [F]: `count` frames each, at `index`."""
        memory = self.policy.reset(_take(slots.memory, rows), fresh)
        memory = self.policy.remember(params, memory, self.policy.inputs(images, prompts), index, count)
        return dataclasses.replace(slots, memory=_put(slots.memory, rows, memory))

    def _look(
        self, params: Params, slots: Slots, rows: Array, fresh: Array, images: Any, prompts: dict[str, Array]
    ) -> Slots:
        """Takes the present frames, B resized pictures of each camera, of `rows` [B]."""
        memory = self.policy.reset(_take(slots.memory, rows), fresh)
        context, info, memory = self.policy.observe(params, memory, self.policy.inputs(images, prompts))
        return _put(slots, rows, Slots(memory, context, info))

    def _decide(self, params: Params, constants: Any, slots: Slots, rows: Array, state: Array, noise: Array) -> Array:
        """Action chunks [B, C, D] of `rows` [B]."""
        return self.policy.decide(params, _take(slots.context, rows), state, noise, constants)


def _take(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _put(tree: Any, rows: Array, new: Any) -> Any:
    """Rows may be smaller than their places, as the context of a short prompt is; zeros fill the rest."""

    def put(leaf: Array, row: Array) -> Array:
        missing = [(0, whole - own) for whole, own in zip(leaf.shape[1:], row.shape[1:])]
        return leaf.at[rows].set(jnp.pad(row, [(0, 0), *missing]))

    return jax.tree.map(put, tree, new)


programs = lru_cache(maxsize=8)(Programs)  # engines of one configuration share what is compiled


class Engine:
    """Owns the memories and the compiled steps of a bundle. For one thread at a time.

    Attributes:
        bundle: the policy. Its parameters are used as they lie; `load_bundle(..., dtype="serving")` stores them best.
        slots: memories.
    """

    @same_numbers
    def __init__(self, bundle: Bundle, slots: int = 1, *, growth: int = 2, rows: int | None = None):
        """Makes room for `slots` memories.

        Args:
            bundle: the policy.
            slots: memories.
            growth: ratio of batch sizes; a greater one means fewer programs to compile, and more padding.
            rows: all batches have this size and prompts their full length. Sums of other shapes round otherwise: so
                what one session gets does not depend to the last bit on what else is served.
        """
        self.bundle, self.slots, self._even = bundle, slots, rows is not None
        self._programs = programs(bundle.config)
        self._constants = self._programs.constants(bundle.params)
        arrays = [leaf for leaf in jax.tree.leaves((self._constants, bundle.params)) if isinstance(leaf, jax.Array)]
        (self._device,) = arrays[0].devices() if arrays else jax.local_devices()[:1]
        self._sizes = [rows] if rows else sizes_up_to(slots, growth)
        # For a growth of 4: 2, 8, 32, 64. The frames between two chunks of 30 must not be padded to 64.
        self._frame_sizes = [rows] if rows else sizes_up_to(FRAMES_AT_ONCE, growth, max(growth // 2, 1))
        image = self._images([self._black(1)], 1)
        prompt = {name: value[None] for name, value in bundle.processor.prompt("").items()}
        self._seen = self._programs.seen(bundle.params, image, prompt)
        self._compiled = False
        self._empty()

    def _empty(self) -> None:
        # Committed to the device, as what a step gives: JAX compiles again for arguments that are not.
        self._slots = jax.device_put(self._programs.empty(self.slots + 1, self._seen), self._device)
        self._begun = np.zeros(self.slots, bool)

    def warm_up(self, sessions: int | None = None, frames: int = FRAMES_AT_ONCE, length: int | None = None) -> None:
        """Compiles what steps of so many sessions (None: all slots), with so many earlier frames together (0: none) and
        prompts of so many tokens (None: any) can need: several programs at a time. Tells its progress on stderr.
        """
        longest, nobody, spec = self.bundle.inputs.max_length, self.slots, self._programs.policy.spec
        state, noise = np.zeros(spec.state_dim, np.float32), np.zeros((spec.horizon, spec.action_dim), np.float32)
        request = Request(nobody, self._black(1), "", True, state, noise)
        shortest = token_bucket(int(self.bundle.processor.prompt("")["attention_mask"].sum()), longest)
        lengths = {token_bucket(n, longest) for n in range(shortest, longest + 1)} if length is None else {length}
        lengths = {longest} if self._even else lengths
        counts = upto(self.slots if sessions is None else sessions, self._sizes)
        parts = [partial(Engine._look, requests=[request] * count, length=n) for count in counts for n in lengths]
        parts += [partial(Engine._decide, requests=[request] * count) for count in counts]
        for count in upto(frames, self._frame_sizes) if frames else []:
            parts.append(partial(Engine._remember, batch=[(nobody, True, self._black(count))]))

        @same_numbers
        def compile_part(part: Callable[["Engine"], Any]) -> None:
            beside = copy.copy(self)  # slots are given away at every step: each thread needs its own
            beside._empty()
            jax.block_until_ready((part(beside), beside._slots))

        with ThreadPoolExecutor(os.cpu_count()) as pool, Progress("compiling", len(parts), "program") as progress:
            for _ in progress.over(pool.map(compile_part, parts)):
                pass
        self._compiled = True

    @same_numbers
    def step(self, requests: Sequence[Request]) -> list[Reply]:
        """Serves requests of different slots.

        Raises:
            UserError: a request cannot be served; nothing has changed then. Any other error is the device's, and all
                memories are lost: every session must begin again, which the next step tells it (LostMemoryError).
        """
        for number, request in enumerate(requests):
            try:
                self._check(request, [other.slot for other in requests[:number]])
            except UserError as error:
                raise type(error)(f"request of slot {request.slot}: {error}") from error
        try:
            with Progress("compiling the policy's step", shown=not self._compiled):
                return self._serve(requests)
        except BaseException:
            self._empty()
            raise
        finally:
            self._compiled = True

    def _check(self, request: Request, others: list[int]) -> None:
        """Raises UserError where a request cannot be served."""
        cameras, spec = self.bundle.inputs.cameras, self._programs.policy.spec
        if not 0 <= request.slot < self.slots:
            raise UserError(f"there are {self.slots} slots, from 0")
        if request.slot in others:
            raise UserError("it has two requests in one step; send one after the other")
        if request.fresh and not request.frames:
            raise UserError("an emptied memory needs a frame; got none")
        if not request.fresh and not self._begun[request.slot]:
            raise LostMemoryError("its memory was never begun, or is lost: begin the episode again, with `fresh`")
        if len(request.images) != len(cameras):
            raise UserError(f"there are pictures of {len(request.images)} cameras, the policy has {len(cameras)}")
        if request.frames:
            for images, camera in zip(request.images, cameras):
                if images.dtype != np.uint8 or images.shape != (request.frames, *camera.size, 3):
                    expected = ", ".join(map(str, (request.frames, *camera.size, 3)))
                    raise UserError(
                        f"images of {camera.name} are {images.dtype} {list(images.shape)}, expected uint8 [{expected}]"
                    )
            self.bundle.processor.prompt(request.instruction)
        if (request.state is None) != (request.noise is None):
            raise UserError("state and noise must both be given, or neither")
        wanted = {"state": (spec.state_dim,), "noise": (spec.horizon, spec.action_dim)}
        for name, shape in wanted.items():
            value = getattr(request, name)
            if value is not None and np.shape(value) != shape:
                raise UserError(f"{name} has the shape {list(np.shape(value))}, expected {list(shape)}")

    def _serve(self, requests: Sequence[Request]) -> list[Reply]:
        earlier = [(r.slot, r.fresh, tuple(view[:-1] for view in r.images)) for r in requests if r.frames > 1]
        for batch in batches(earlier, self._frame_sizes[-1]):
            self._remember(batch)
        seen = [request for request in requests if request.frames]
        for start in range(0, len(seen), self._sizes[-1]):
            self._look(seen[start : start + self._sizes[-1]])
        deciding = [request for request in requests if request.noise is not None]
        parts = [deciding[start : start + self._sizes[-1]] for start in range(0, len(deciding), self._sizes[-1])]
        made = [self._decide(part) for part in parts]
        info, made = jax.device_get((self._slots.info, made))
        self._begun[[request.slot for request in seen]] = True
        chunk = {request.slot: row for part, rows in zip(parts, made) for request, row in zip(part, rows)}
        return [Reply({name: of[r.slot] for name, of in info.items()}, chunk.get(r.slot)) for r in requests]

    def _remember(self, batch: list[Part]) -> None:
        """Writes frames of slots, emptied before where the flag says so, to their memories."""
        counts = [len(images[0]) for _, _, images in batch]
        frames, starts = bucket(sum(counts), self._frame_sizes), np.cumsum([0, *counts[:-1]])
        index = padded(starts, frames)[:, None] + np.arange(frames)
        prefix = self.bundle.processor.image_prefix
        self._slots = self._programs.remember(
            self.bundle.params,
            self._slots,
            padded([slot for slot, _, _ in batch], frames, self.slots),
            padded([fresh for _, fresh, _ in batch], frames),
            self._images([images for _, _, images in batch], frames),
            {name: np.repeat(value[None], frames, 0) for name, value in prefix.items()},
            np.minimum(index, frames - 1).astype(np.int32),
            padded(counts, frames),
        )

    def _look(self, requests: Sequence[Request], length: int = 0) -> None:
        """Takes the last frames; `length` is the least of the prompts."""
        prompts = [self.bundle.processor.prompt(request.instruction) for request in requests]
        length = max(length, *(int(prompt["attention_mask"].sum()) for prompt in prompts))
        longest, size = self.bundle.inputs.max_length, bucket(len(requests), self._sizes)
        length = longest if self._even else token_bucket(length, longest)
        self._slots = self._programs.look(
            self.bundle.params,
            self._slots,
            padded([request.slot for request in requests], size, self.slots),
            padded([request.fresh and request.frames == 1 for request in requests], size),
            self._images([tuple(view[-1:] for view in request.images) for request in requests], size),
            {name: padded([_cut(prompt[name], longest, length) for prompt in prompts], size) for name in prompts[0]},
        )

    def _decide(self, requests: Sequence[Request]) -> Array:
        size = bucket(len(requests), self._sizes)
        rows = padded([request.slot for request in requests], size, self.slots)
        state, noise = (
            padded(np.array([getattr(request, name) for request in requests], np.float32), size)
            for name in ("state", "noise")
        )
        return self._programs.decide(self.bundle.params, self._constants, self._slots, rows, state, noise)

    def _black(self, count: int) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros((count, *camera.size, 3), np.uint8) for camera in self.bundle.inputs.cameras)

    def _images(self, images: Sequence[tuple[np.ndarray, ...]], size: int) -> Any:
        resized = self.bundle.processor.resized([np.concatenate(views) for views in zip(*images)])
        return jax.tree.map(lambda leaf: padded(leaf, size), resized)


def _cut(array: np.ndarray, longest: int, length: int) -> np.ndarray:
    """Arrays [..., S] of a prompt as far as it goes; others have another last axis."""
    return array[..., :length] if array.shape[-1] == longest else array


def upto(count: int, sizes: Sequence[int]) -> list[int]:
    """The sizes that batches of 1 to `count` are padded to."""
    return [size for size in sizes if size <= bucket(count, sizes)]


def token_bucket(length: int, longest: int) -> int:
    """The padded length of a prompt."""
    return min(-(-length // TOKEN_STEP) * TOKEN_STEP, longest)


def batches(parts: Iterable[Part], most: int) -> Iterator[list[Part]]:
    """Cuts parts into batches of at most `most` frames, in order; only a first piece stays fresh."""
    batch, room = [], most
    for slot, fresh, images in parts:
        while len(images[0]):
            batch.append((slot, fresh, tuple(view[:room] for view in images)))
            images, fresh, room = tuple(view[room:] for view in images), False, room - len(batch[-1][2][0])
            if not room:
                yield batch
                batch, room = [], most
    if batch:
        yield batch
