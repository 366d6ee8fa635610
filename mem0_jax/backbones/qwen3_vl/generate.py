"""Answers to prompts with images: tokenizer, images and batches around `decode`, on the host.

Shapes are rounded up to a few sizes, so that a few compiled programs serve prompts of any length and number of images.
Axis letters as in `decode`.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from mem0_jax.backbones.qwen3_vl import decode
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.images import PixelBounds, image_patches
from mem0_jax.backbones.qwen3_vl.positions import Grid, grid_tables, token_positions
from mem0_jax.backbones.qwen3_vl.processor import SPECIAL_TOKENS, token_ids
from mem0_jax.errors import UserError

CONTEXT = 8192  # tokens of prompt and answer together, unless a generator is told otherwise


class GenerationError(UserError):
    """A prompt that cannot be answered, or settings that cannot be."""


class ContextError(GenerationError):
    """Prompt and answer do not fit the context."""


@dataclass(frozen=True)
class Prompt:
    """What is to be continued: text with control tokens and one `<|image_pad|>` for each image, in their order; images
    are uint8 [height, width, 3] of any sizes."""

    text: str
    images: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How an answer is chosen.

    Attributes:
        max_tokens: of the answer; None: as many as the context leaves.
        temperature: 0 takes the likeliest token every time (greedy).
        top_p, top_k: see `decode.Sampling`; 1 and 0 leave all tokens in.
        seed: what is drawn depends on it and the prompt alone.
        stop: texts that end an answer, which does not hold them.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        wrong = []
        if self.max_tokens is not None and self.max_tokens < 1:
            wrong.append(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature <= 100:
            wrong.append(f"temperature must lie between 0 and 100, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            wrong.append(f"top_p must be more than 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            wrong.append(f"top_k must be at least 0, got {self.top_k}")
        if not all(self.stop):
            wrong.append("stop must not be an empty text")
        if wrong:
            raise GenerationError("; ".join(wrong))


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model reads it: token ids, patches uint8 [P, C] and grid of each image."""

    ids: tuple[int, ...]
    patches: tuple[np.ndarray, ...]
    grids: tuple[Grid, ...]


@dataclass(frozen=True)
class Answer:
    """A continuation.

    Attributes:
        text: without control tokens.
        tokens: ids, with the control token that ended it, if one did.
        finished: it came to an end of its own; else max_tokens was reached.
        prompt_tokens: read before it, those of images included.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool
    prompt_tokens: int


class Generator:
    """Answers prompts; may be called from several threads, one batch at a time.

    Args:
        config: sizes.
        weights: of `decode.take_apart`.
        tokenizer: Qwen's, or one with its special tokens.
        bounds: pixels of images.
        context: tokens of a prompt and its answer together.
        dtype: compute dtype.
        mesh: where weights are spread over devices.

    Attributes:
        weights, tokenizer, config, bounds, context: as given.
    """

    def __init__(
        self,
        config: Qwen3VLConfig,
        weights: decode.Weights,
        tokenizer: Tokenizer,
        *,
        bounds: PixelBounds | None = None,
        context: int = CONTEXT,
        dtype: Any = jnp.float32,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if token_ids(tokenizer) != config.tokens:
            raise GenerationError(f"the tokenizer's special tokens {token_ids(tokenizer)} are not {config.tokens}")
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.bounds = bounds or PixelBounds()
        self.weights, self._mesh, self._lock = weights, mesh, threading.Lock()
        self._decoder = decode.Decoder(config, (config.tokens.im_end, config.tokens.pad), dtype)

    def encode(self, prompt: Prompt, settings: Settings = Settings()) -> Encoded:
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
        settings: Settings | Sequence[Settings] = Settings(),
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
        with self._lock, jax.set_mesh(self._mesh) if self._mesh is not None else nullcontext():
            for said in self._tokens(encoded, replies):
                for number, (reply, tokens) in enumerate(zip(replies, said)):
                    piece = reply.take(tokens)
                    if piece and on_text is not None and on_text(number, piece) is False:
                        reply.closed = True
        return [reply.answer() for reply in replies]

    def _tokens(self, encoded: Sequence[Encoded], replies: Sequence["_Reply"]):
        """Yields tokens [B, ...] call after call, -1 for none, until all replies are closed."""
        rows = rounded(len(encoded), 1, 1)
        prompt = self._prompt_arrays(encoded, rows)
        seen = self._see([p for one in encoded for p in one.patches], [g for one in encoded for g in one.grids])
        limit, sampling = self._sampling(replies, rows)
        places = rounded(prompt["input_ids"].shape[1] + decode.TURNS, 128)
        _, progress, cache = self._decoder.prefill(self.weights, prompt, seen, limit, sampling, places=places)
        del seen
        yield np.where(limit > 0, np.asarray(progress.token), -1)[: len(replies), None]
        while not all(reply.closed for reply in replies):
            if int(progress.place) == places:
                places = rounded(places + 1, 128)
                cache = self._decoder.longer(cache, places)
            closed = np.array([reply.closed for reply in replies] + [True] * (rows - len(replies)))
            progress = progress._replace(left=jnp.where(closed, 0, progress.left))
            said, progress, cache = self._decoder.decode(self.weights, cache, progress, sampling)
            yield np.asarray(said)[: len(replies)]

    def _prompt_arrays(self, encoded: Sequence[Encoded], rows: int) -> dict[str, np.ndarray]:
        tokens = rounded(max(len(one.ids) for one in encoded), 64)
        longest = self._patches([p for one in encoded for p in one.patches])
        merged = self.config.vision.spatial_merge_size**2
        ids = np.full((rows, tokens), self.config.tokens.pad, np.int32)
        row, length, image = np.full((rows, tokens), -1, np.int32), np.ones(rows, np.int32), 0
        for b, one in enumerate(encoded):
            length[b], ids[b, : len(one.ids)] = len(one.ids), one.ids
            places = []
            for patches in one.patches:
                places.append(image * (longest // merged) + np.arange(len(patches) // merged))
                image += 1
            row[b, ids[b] == self.config.tokens.image] = np.concatenate(places) if places else []
        grids = [grid for one in encoded for grid in one.grids]
        position = token_positions(ids, np.arange(tokens) < length[:, None], grids, self.config)
        return {"input_ids": ids, "image_row": row, "position": position, "length": length}

    def _patches(self, patches: Sequence[np.ndarray]) -> int:
        """Patches that every image is padded to."""
        merged = self.config.vision.spatial_merge_size**2
        return merged * rounded(max(map(len, patches)) // merged, 16, 4) if patches else 0

    def _see(self, patches: Sequence[np.ndarray], grids: Sequence[Grid]) -> Any:
        if not patches:
            return None
        images, longest = rounded(len(patches), 1, 1), self._patches(patches)
        tables = grid_tables(grids, self.config.vision)
        rows = {
            "patches": [*patches],
            "patch_mask": [np.ones(len(p), bool) for p in patches],
            **{name: [row[: len(p)] for row, p in zip(table, patches)] for name, table in tables.items()},
        }
        arrays = {}
        for name, values in rows.items():
            arrays[name] = np.zeros((images, longest, *values[0].shape[1:]), values[0].dtype)
            for i, value in enumerate(values):
                arrays[name][i, : len(value)] = value
        return self._decoder.see(self.weights, arrays)

    def _sampling(self, replies: Sequence["_Reply"], rows: int) -> tuple[np.ndarray, decode.Sampling]:
        each = [reply.settings for reply in replies] + [Settings(max_tokens=1)] * (rows - len(replies))
        limit = np.array([reply.limit for reply in replies] + [0] * (rows - len(replies)), np.int32)
        vocabulary = self.config.text.vocab_size
        return limit, decode.Sampling(
            jnp.array([own.temperature for own in each], jnp.float32),
            jnp.array([own.top_p for own in each], jnp.float32),
            jnp.array([min(own.top_k or vocabulary, vocabulary) for own in each], jnp.int32),
            jnp.array(np.array([own.seed % 2**32 for own in each], np.uint32)),
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


def rounded(n: int, least: int, steps: int = 2) -> int:
    """The next size of at least `n`: `least` times a power of two, or one of the even `steps` between two of these.

    >>> [rounded(n, 64) for n in (1, 65, 97, 200)]
    [64, 96, 128, 256]
    """
    size = least
    while 2 * size <= n:
        size *= 2
    return next(size + size * i // steps for i in range(steps + 1) if size + size * i // steps >= n)
