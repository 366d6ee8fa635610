"""Answers to prompts with images: tokenizer, images and batches around `decode`, on the host.

Shapes are padded to a few sizes, so that a few compiled programs, which `Generator.warm_up` makes beforehand, serve
prompts of any length with images of any number and size. Axis letters as in `decode`.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from mem0_jax.backbones.chat import (
    CONTEXT,
    GREEDY,
    Answer,
    ContextError,
    Encoded,
    GenerationError,
    Grid,
    PixelBounds,
    Prompt,
    Settings,
)
from mem0_jax.backbones.qwen3_vl import decode
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.images import image_patches, most_tokens
from mem0_jax.backbones.qwen3_vl.positions import patch_positions, token_positions
from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS, token_ids
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.nn.sizes import bucket, padded, sizes_up_to
from mem0_jax.progress import Progress

SHORTEST = 256  # tokens that prompts are padded to at least


class Generator:
    """Answers prompts; may be called from several threads, one batch at a time.

    Args:
        config: sizes.
        weights: of `decode.take_apart`.
        tokenizer: Qwen's, or one with its special tokens.
        bounds: pixels of images.
        context: tokens of a prompt and its answer together.
        batch: prompts answered together; of more, the others wait.
        dtype: compute dtype.
        mesh: where weights are spread over devices.

    Attributes:
        weights, tokenizer, config, bounds, context, batch: as given.
    """

    def __init__(
        self,
        config: Qwen3VLConfig,
        weights: decode.Weights,
        tokenizer: Tokenizer,
        *,
        bounds: PixelBounds | None = None,
        context: int = CONTEXT,
        batch: int = 8,
        dtype: Any = jnp.float32,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if token_ids(tokenizer) != config.tokens:
            raise GenerationError(f"the tokenizer's special tokens {token_ids(tokenizer)} are not {config.tokens}")
        self.config, self.tokenizer, self.context, self.batch = config, tokenizer, context, batch
        self.bounds, self._mesh, self._lock = bounds or PixelBounds(), mesh, threading.Lock()
        # Committed to a device, as all that comes of them then is: JAX compiles again for arguments that are not.
        self.weights = weights if mesh is not None else jax.device_put(weights, jax.devices()[0])
        self._decoder = decode.Decoder(config, (config.tokens.im_end, config.tokens.pad), dtype)
        side, first = config.vision.patch_size * config.vision.spatial_merge_size, min(SHORTEST, context)
        self._room = most_tokens(side, self.bounds)  # rows of an image's features
        self._images = sizes_up_to(self._room, 2, max(1, self.bounds.min_pixels // side**2))  # tokens
        self._lengths = sizes_up_to(context, 2, first)
        self._places = sizes_up_to(max(2 * context, context + decode.TURNS), 2, 2 * first)

    def warm_up(self, shortest: int = 1) -> None:
        """Compiles all that prompts of at least so many tokens and their answers can need, several programs at a time.

        Nothing is computed. Shows its progress.
        """
        with self._in_mesh():
            small = abstract(self._decoder.see, self.weights, self._blank(self._images[0]), rows=self._room)
        parts = [partial(self._compile_see, size) for size in self._images[1:]]
        lengths = self._lengths[self._lengths.index(bucket(shortest, self._lengths)) :]
        parts += [partial(self._compile_length, length, small) for length in lengths]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = [pool.submit(part) for part in parts]
            try:
                with Progress("compiling what answers need", len(made), "size") as progress:
                    for one in progress.over(as_completed(made)):
                        one.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _compile_see(self, size: int) -> None:
        with self._in_mesh():
            abstract(self._decoder.see, self.weights, self._blank(size), rows=self._room)

    def _compile_length(self, length: int, small: Any) -> None:
        """What prompts of so many tokens need, and their answers up to where those of the next length begin."""
        decoder, weights, at = self._decoder, self.weights, np.int32(0)
        places = bucket(length + decode.TURNS, self._places)
        prompt = self._prompt_arrays(Encoded((self.config.tokens.pad,), (), ()), length)
        with self._in_mesh():
            seen = abstract(decoder.grow, small, size=length + self._room, axis=0)
            seen = abstract(decoder.put, seen, small, at)
            limit, alone = np.ones(1, np.int32), self._sampling([Settings()])
            _, _, read = abstract(decoder.prefill, weights, prompt, seen, limit, alone, places=places)
            for rows in {1, self.batch}:
                progress, sampling, cache = _together([], rows), self._sampling([Settings()] * rows), read
                if rows > 1:
                    cache = abstract(decoder.put, abstract(decoder.grow, read, size=rows, axis=0), read, at)
                for room in self._places[self._places.index(places) :]:
                    cache = abstract(decoder.grow, cache, size=room, axis=1) if room > places else cache
                    if room > places and length < self._lengths[-1] and self._mesh is None:
                        break  # the next length compiles the rest
                    while cache != (cache := abstract(decoder.decode, weights, cache, progress, sampling)[2]):
                        pass  # on a mesh the cache may come out spread otherwise than it went in

    def _blank(self, size: int) -> dict[str, np.ndarray]:
        """An image of so many tokens, black."""
        merge = self.config.vision.spatial_merge_size
        patches = np.zeros((size * merge**2, self.config.vision.patch_width), np.uint8)
        return self._image_arrays(patches, (1, merge, merge * size))

    def _in_mesh(self) -> Any:
        return jax.set_mesh(self._mesh) if self._mesh is not None else nullcontext()

    def encode(self, prompt: Prompt, settings: Settings = GREEDY) -> Encoded:
        """Tokens and patches of a prompt.

        Raises:
            GenerationError: marks and images do not match; ContextError: the answer asked for would not fit.
        """
        cut = [image_patches(image, self.config.vision, self.bounds) for image in prompt.images]
        patches, grids = tuple(p for p, _ in cut), tuple(g for _, g in cut)
        merged, mark = self.config.vision.spatial_merge_size**2, self.config.tokens.image
        counts = [len(p) // merged for p in patches]
        plain = self.tokenizer.encode(prompt.text, add_special_tokens=False).ids
        if plain.count(mark) != len(counts):
            raise GenerationError(
                f"the prompt has {plain.count(mark)} marks {SPECIAL_TOKENS['image']} for {len(counts)} images"
            )
        if not plain:
            raise GenerationError("the prompt is empty")
        following = iter(counts)
        ids = [token for one in plain for token in [one] * (next(following) if one == mark else 1)]
        wanted = settings.max_tokens or 1
        if len(ids) + wanted > self.context:
            raise ContextError(
                f"a prompt of {len(ids)} tokens ({sum(counts)} of them images) and an answer of up to {wanted} do not "
                f"fit the context of {self.context} tokens: shorten the prompt, send fewer or smaller images, or "
                "lower max_tokens"
            )
        return Encoded(tuple(ids), patches, grids)

    def generate(
        self,
        prompts: Sequence[Prompt | Encoded],
        settings: Settings | Sequence[Settings] = GREEDY,
        on_text: Callable[[int, str], bool | None] | None = None,
    ) -> list[Answer]:
        """Answers a batch.

        Args:
            prompts: any number and mixture.
            settings: for all, or of each.
            on_text: told the number of a prompt and the piece of text that its answer has grown by; where it returns
                False, the answer ends there.

        Raises:
            GenerationError: as `encode`; nothing is generated then.
        """
        each = [settings] * len(prompts) if isinstance(settings, Settings) else list(settings)
        encoded = [
            prompt if isinstance(prompt, Encoded) else self.encode(prompt, own)
            for prompt, own in zip(prompts, each, strict=True)
        ]
        if not encoded:
            return []
        replies = [_Reply(self, len(one.ids), own) for one, own in zip(encoded, each)]
        with self._lock, self._in_mesh():
            for first in range(0, len(replies), self.batch):
                some = replies[first : first + self.batch]
                for said in self._tokens(encoded[first : first + self.batch], some):
                    for number, (reply, tokens) in enumerate(zip(some, said), first):
                        piece = reply.take(tokens)
                        if piece and on_text is not None and on_text(number, piece) is False:
                            reply.closed = True
        return [reply.answer() for reply in replies]

    def _tokens(self, encoded: Sequence[Encoded], replies: Sequence["_Reply"]):
        """Yields tokens [B, ...] call after call, -1 for none, until all replies are closed."""
        rows = 1 if len(encoded) == 1 else self.batch
        length = bucket(max(len(one.ids) for one in encoded), self._lengths)
        places = bucket(length + decode.TURNS, self._places)
        progress, cache = self._read(encoded, replies, rows, length, places)
        sampling = self._sampling([reply.settings for reply in replies] + [Settings()] * (rows - len(replies)))
        yield progress.token[: len(replies), None]
        while not all(reply.closed for reply in replies):
            if progress.place == places:
                places = bucket(places + 1, self._places)
                cache = self._decoder.grow(cache, size=places, axis=1)
            closed = np.array([reply.closed for reply in replies] + [True] * (rows - len(replies)))
            progress = progress._replace(left=np.where(closed, np.int32(0), progress.left))
            said, progress, cache = self._decoder.decode(self.weights, cache, progress, sampling)
            # On the host between two calls: what lies on a device is another argument to JAX than what does not.
            said, progress = jax.device_get((said, progress))
            yield said[: len(replies)]

    def _read(
        self, encoded: Sequence[Encoded], replies: Sequence["_Reply"], rows: int, length: int, places: int
    ) -> tuple[decode.Progress, decode.Cache]:
        """Progress and cache of a batch of so many rows whose prompts were read, one by one."""
        begun, cache = [], None
        for row, (one, reply) in enumerate(zip(encoded, replies)):
            prompt, limit, sampling = self._prompt_arrays(one, length), reply.limit, self._sampling([reply.settings])
            _, progress, read = self._decoder.prefill(
                self.weights, prompt, self._see(one, length), np.array([limit], np.int32), sampling, places=places
            )
            begun.append(jax.device_get(progress))
            if cache is None:
                cache = read if rows == 1 else self._decoder.grow(read, size=rows, axis=0)
            else:
                cache = self._decoder.put(cache, read, np.int32(row))
        assert cache is not None
        return _together(begun, rows), cache

    def _prompt_arrays(self, encoded: Encoded, length: int) -> dict[str, np.ndarray]:
        ids = np.full((1, length), self.config.tokens.pad, np.int32)
        ids[0, : len(encoded.ids)] = encoded.ids
        row, is_image = np.full((1, length), -1, np.int32), ids == self.config.tokens.image
        row[is_image] = np.arange(is_image.sum())
        position = token_positions(ids, np.arange(length)[None] < len(encoded.ids), encoded.grids, self.config)
        lengths = np.array([len(encoded.ids)], np.int32)
        return {"input_ids": ids, "image_row": row, "position": position, "length": lengths}

    def _see(self, encoded: Encoded, length: int) -> jax.Array:
        """Features of the images of a prompt, one after the other; without any, those of one that no token looks at."""
        seen, at, merged = None, 0, self.config.vision.spatial_merge_size**2
        images = [self._image_arrays(*image) for image in zip(encoded.patches, encoded.grids)]
        for number, image in enumerate(images or [self._blank(self._images[0])]):
            features = self._decoder.see(self.weights, image, rows=self._room)
            if seen is None:
                seen = self._decoder.grow(features, size=length + self._room, axis=0)
            else:  # its rows beyond its tokens give way to those of the next one
                seen = self._decoder.put(seen, features, np.int32(at))
            at += len(encoded.patches[number]) // merged if images else 0
        assert seen is not None
        return seen

    def _image_arrays(self, patches: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
        merged, config = self.config.vision.spatial_merge_size**2, self.config.vision
        size = merged * bucket(len(patches) // merged, self._images)
        rows = {"patches": patches, "patch_mask": np.ones(len(patches), bool), **patch_positions(grid, config)}
        return {name: padded(row, size)[None] for name, row in rows.items()}

    def _sampling(self, settings: Sequence[Settings]) -> decode.Sampling:
        vocabulary = self.config.text.vocab_size
        return decode.Sampling(
            np.array([own.temperature for own in settings], np.float32),
            np.array([own.top_p for own in settings], np.float32),
            np.array([min(own.top_k or vocabulary, vocabulary) for own in settings], np.int32),
            np.array([own.seed % 2**32 for own in settings], np.uint32),
        )


class _Reply:
    """An answer as it grows."""

    def __init__(self, generator: Generator, prompt_tokens: int, settings: Settings):
        self.settings, self.prompt_tokens = settings, prompt_tokens
        self.limit = settings.max_tokens or generator.context - prompt_tokens
        self.closed = self.finished = False
        self._tokenizer, self._text, self._told = generator.tokenizer, "", 0
        tokens = generator.config.tokens
        self._stops, self._tokens = (tokens.im_end, tokens.pad), []

    def take(self, tokens: np.ndarray) -> str:
        """Adds tokens; returns the text that is certain and was not told yet."""
        if self.closed:
            return ""
        for token in tokens[tokens >= 0].tolist():
            self._tokens.append(token)
            self.finished = token in self._stops
            self.closed = self.finished or len(self._tokens) >= self.limit
        self._text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        ends = [at for at in (self._text.find(stop) for stop in self.settings.stop) if at >= 0]
        if ends:
            self._text, self.closed, self.finished = self._text[: min(ends)], True, True
        certain = len(self._text)
        if not self.closed:  # a letter may be cut in two, and a stop may have begun
            certain = len(self._text.rstrip("\ufffd")) - max((len(stop) - 1 for stop in self.settings.stop), default=0)
        piece = self._text[self._told : max(certain, self._told)]
        self._told += len(piece)
        return piece

    def answer(self) -> Answer:
        return Answer(self._text, tuple(self._tokens), self.finished, self.prompt_tokens)


@same_numbers
def abstract(program: Any, *arguments: Any, **static: Any) -> Any:
    """Compiles a function of the decoder for arguments that may be abstract; gives its results as such, with where they
    lie."""
    lowered = program.__wrapped__.lower(*arguments, **static)
    made, where = lowered.out_info, lowered.compile().output_shardings
    return jax.tree.map(lambda one, at: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=at), made, where)


def _together(begun: Sequence[decode.Progress], rows: int) -> decode.Progress:
    """The progress of several answers as one; rows that only fill up are complete."""
    fill = (np.full(rows - len(begun), value, np.int32) for value in (0, 0, 1, 0))
    token, position, length, left = (np.concatenate([*(one[i] for one in begun), more]) for i, more in enumerate(fill))
    place = begun[0].place if begun else np.zeros((), np.int32)
    return decode.Progress(token, position, length, left, place, place)
