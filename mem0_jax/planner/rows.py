"""Training rows of a planner as arrays of one shape, in an order that a number describes.

Axis letters: N rows, L lanes (rows side by side in a batch), T parts of a batch, V images of a row, P patches of an
image, C numbers of a patch, S tokens of a row, A tokens of an answer; V, P, S and A are the greatest of all rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from mem0_jax.backbones.chat import Grid, Lessons, PixelBounds
from mem0_jax.data.picture_file import DAMAGE, PictureModeError, rgb
from mem0_jax.errors import UserError
from mem0_jax.family import Config, chat_family_of
from mem0_jax.planner.prompt import shrink, shrunk_size
from mem0_jax.planner.questions import Question
from mem0_jax.planner.render import chat_text
from mem0_jax.tokenizer import UNKNOWN

END = "<|im_end|>"
ROUNDED_TO = 8  # S is a multiple of it


@dataclass(frozen=True)
class Encoded:
    """A row in tokens, int32: the question with all tokens of its images, the answer with the token that ends it."""

    question: np.ndarray
    answer: np.ndarray
    images: tuple[Path, ...]
    grids: tuple[Grid, ...]

    def __len__(self) -> int:
        return len(self.question) + len(self.answer)


def word_tokenizer(questions: Sequence[Question], marks: Mapping[str, str]) -> Tokenizer:
    """A tokenizer with one token a word of the questions and answers, one for the end of a line, and control tokens."""
    texts = {f"{chat_text(question.prompt)} {question.answer}" for question in questions}
    words = {word for text in texts for word in re.sub(r"<\|\w+\|>", " ", text).split()}
    vocabulary = {token: i for i, token in enumerate([*marks.values(), UNKNOWN, "\n", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    split = pre_tokenizers.Split
    cuts = [split(Regex(" +"), "removed"), split("\n", "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(marks.values()))
    return tokenizer


class Encoder:
    """Turns the questions of a folder into rows; of the images only the sizes are read.

    Args:
        tokenizer, config: of the planner.
        bounds: of the resized images.
        cutoff: greatest number of tokens of a row.
    """

    def __init__(self, tokenizer: Tokenizer, config: Config, bounds: PixelBounds, cutoff: int):
        self._tokenizer, self._bounds, self._cutoff = tokenizer, bounds, cutoff
        self._lessons: Lessons = chat_family_of(config).lessons(config)
        self._grids: dict[Path, Grid] = {}

    def rows(self, folder: Path, questions: Sequence[Question]) -> list[Encoded]:
        """Raises UserError for an image that cannot be read, and a row that is longer than the cutoff."""
        return [self._row(folder, question) for question in questions]

    def _row(self, folder: Path, question: Question) -> Encoded:
        prompt, encode = question.prompt, self._tokenizer.encode
        images = tuple(folder / image for image in prompt.images)
        grids = tuple(self._grid(image) for image in images)
        mark, counts = self._lessons.mark, map(self._lessons.tokens, grids)
        ids = encode(chat_text(prompt), add_special_tokens=False).ids
        asked = [i for token in ids for i in ([token] * next(counts) if token == mark else [token])]
        answer = encode(question.answer + END, add_special_tokens=False).ids
        if len(asked) + len(answer) > self._cutoff:
            raise UserError(
                f"{folder}: the question at frame {question.frame} of episode {question.episode} has {len(images)} "
                f"images and {len(asked) + len(answer)} tokens, more than data.cutoff {self._cutoff}: raise it, or "
                "lower data.images.max_pixels"
            )
        return Encoded(np.array(asked, np.int32), np.array(answer, np.int32), images, grids)

    def _grid(self, path: Path) -> Grid:
        if path not in self._grids:
            with _opened(path) as image:
                width, height = image.size
            self._grids[path] = self._lessons.grid(*shrunk_size(height, width), self._bounds)
        return self._grids[path]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except PictureModeError as error:
        raise UserError(f"{path} {error}") from None
    except DAMAGE as error:
        raise UserError(f"{path}: cannot be read as an image: {error}") from error


def grids_of(rows: Sequence[Encoded]) -> tuple[Grid, ...]:
    """The distinct sizes of the rows' images, in order."""
    return tuple(sorted({grid for row in rows for grid in row.grids}))


class RowSource:
    """Random access to the rows of batches, for `data.pipeline.make_loader`.

    Element k is lane `first_lane + k % num_local_lanes` of batch `k // num_local_lanes`: T rows, arrays [T, ...] as
    `PlannerPolicy` takes them. Every pass takes all rows once, in an order of its own.

    Attributes:
        grids: the distinct sizes of images that `grid_id` counts.
        damaged: none; a row that cannot be read is an error.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        config: Config,
        bounds: PixelBounds,
        *,
        lanes: int,
        parts: int = 1,
        seed: int = 0,
        cache_bytes: int = 0,
        first_lane: int = 0,
        num_local_lanes: int | None = None,
    ):
        if not rows:
            raise UserError("there are no rows to train on")
        self._rows, self._bounds = rows, bounds
        self._lessons: Lessons = chat_family_of(config).lessons(config)
        self._lanes, self._parts, self._seed = lanes, parts, seed
        self._first, self.num_local_lanes = first_lane, lanes if num_local_lanes is None else num_local_lanes
        self.grids = grids_of(rows)
        self.damaged: list[Any] = []
        self._cache: dict[Path, np.ndarray] = {}
        self._room = cache_bytes
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return 2**62  # without end

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, lane = divmod(index, self.num_local_lanes)
        first = (batch * self._lanes + self._first + lane) * self._parts
        rows = [self._arrays(self._rows[self._row(first + part)]) for part in range(self._parts)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def fingerprint(self) -> dict[str, Any]:
        """What the order and the content of the batches depend on."""
        return {
            "rows": len(self._rows),
            "content": self._digest,
            "batch": self._lanes * self._parts,
            "parts": self._parts,
            "seed": self._seed,
        }

    @cached_property
    def _digest(self) -> str:
        found = hashlib.sha256()
        for row in self._rows:
            for tokens in (row.question, row.answer):
                found.update(len(tokens).to_bytes(8) + tokens.tobytes())
            found.update("\0".join(path.name for path in row.images).encode())
        return found.hexdigest()[:16]

    def _row(self, number: int) -> int:
        """The row that stands at a place of the endless sequence of passes."""
        epoch, place = divmod(number, len(self._rows))
        if epoch not in self._orders:
            # Threads may meet here: each would store the same order, and one pass back is still asked for.
            kept = {old: order for old, order in list(self._orders.items()) if old >= epoch - 1}
            self._orders = kept | {epoch: np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))}
        return int(self._orders[epoch][place])

    @cached_property
    def _sizes(self) -> tuple[int, int, int, int]:
        """V, P, S, A."""
        tokens = max(map(len, self._rows))
        return (
            max(len(row.images) for row in self._rows),
            max(height * width for _, height, width in self.grids),
            -(-tokens // ROUNDED_TO) * ROUNDED_TO,
            max(len(row.answer) for row in self._rows),
        )

    def _arrays(self, row: Encoded) -> dict[str, np.ndarray]:
        (*size, words), grids = self._sizes, self.grids
        ids = np.concatenate([row.question, row.answer])
        images = [(self._patches(path, grid), grids.index(grid)) for path, grid in zip(row.images, row.grids)]
        answer = np.arange(words) < len(row.answer)
        target = np.zeros(words, np.int32)
        target[: len(row.answer)] = row.answer
        return self._lessons.arrays(ids, images, grids, tuple(size)) | {
            "target": target,
            "target_place": np.where(answer, len(row.question) - 1 + np.arange(words), 0).astype(np.int32),
            "target_mask": answer,
        }

    def _patches(self, path: Path, grid: Grid) -> np.ndarray:
        if path in self._cache:
            return self._cache[path]
        with _opened(path) as image:
            pixels = shrink(rgb(image))
        patches, found = self._lessons.patches(pixels, self._bounds)
        if found != grid:
            raise UserError(f"{path}: changed while it was trained on: it had {grid} patches, now it has {found}")
        if patches.nbytes <= self._room:
            self._room -= patches.nbytes
            self._cache[path] = patches
        return patches
