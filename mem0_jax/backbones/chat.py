"""What planners ask of a backbone that answers prompts of text and images, and that learns answers.

Axis letters: B rows, V images of a row (padded to the most), P patches of an image (padded to the largest), C numbers
of a patch, S tokens of a row, A tokens of an answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from tokenizers import Tokenizer

from mem0_jax.errors import UserError

CONTEXT = 8192  # tokens of prompt and answer together, unless a generator is told otherwise
Grid = tuple[int, int, int]  # time, rows, columns of an image's patches


@dataclass(frozen=True)
class PixelBounds:
    """How many pixels an image has once it is resized. The defaults are those of released planners: the least is that
    of their processor, the most what they were fine-tuned with."""

    min_pixels: int = 65_536
    max_pixels: int = 262_144

    def __post_init__(self):
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise ValueError(f"1 <= min_pixels <= max_pixels is required, got {self.min_pixels} and {self.max_pixels}")


class GenerationError(UserError):
    """A prompt that cannot be answered, or settings that cannot be."""


class ContextError(GenerationError):
    """Prompt and answer do not fit the context."""


@dataclass(frozen=True)
class Prompt:
    """What is to be continued: text with control tokens and one mark for each image, in their order; images
    are uint8 [height, width, 3] of any sizes."""

    text: str
    images: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How an answer is chosen.

    Attributes:
        max_tokens: of the answer; None: as many as the context leaves.
        temperature: 0 takes the likeliest token every time (greedy).
        top_p, top_k: the likeliest tokens that make up so much, and so many; 1 and 0 leave all tokens in.
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


GREEDY = Settings()


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


class Generator(Protocol):
    """Answers prompts; may be called from several threads, one batch at a time.

    Attributes:
        tokenizer: of the model.
        bounds: pixels of images.
        context: tokens of a prompt and its answer together.
        batch: prompts answered together; of more, the others wait.
    """

    tokenizer: Tokenizer
    bounds: PixelBounds
    context: int
    batch: int

    def warm_up(self, shortest: int = 1) -> None:
        """Compiles all that prompts of at least so many tokens and their answers can need."""
        ...

    def encode(self, prompt: Prompt, settings: Settings = GREEDY) -> Encoded:
        """Tokens and patches of a prompt. Raises GenerationError: marks and images do not match, or too long."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt | Encoded],
        settings: Settings | Sequence[Settings] = GREEDY,
        on_text: Callable[[int, str], bool | None] | None = None,
    ) -> list[Answer]:
        """Answers a batch; `on_text` is told the number of a prompt and what its answer has grown by, and ends it by
        False."""
        ...


class Lessons(Protocol):
    """Rows to train answers on, as a model reads them.

    Attributes:
        mark: token that stands for an image.
    """

    mark: int

    def grid(self, height: int, width: int, bounds: PixelBounds) -> Grid:
        """Of an image of so many pixels."""
        ...

    def tokens(self, grid: Grid) -> int:
        """Of an image: how often its mark is repeated."""
        ...

    def patches(self, image: np.ndarray, bounds: PixelBounds) -> tuple[np.ndarray, Grid]:
        """An image uint8 [height, width, 3] as patches uint8 [P, C]."""
        ...

    def arrays(
        self, ids: np.ndarray, images: Sequence[tuple[np.ndarray, int]], grids: Sequence[Grid], size: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """A row of tokens [at most S] whose images are patches and the number of their grid, padded to size V, P, S."""
        ...

    def logits(self, params: Any, batch: Mapping[str, Any], grids: Sequence[Grid], dtype: str, remat: Any) -> jax.Array:
        """Logits float32 [B, A, vocabulary] of the tokens that follow the places `target_place` int32 [B, A]."""
        ...
