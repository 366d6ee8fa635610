"""The tokenizer of a bundle or a job."""

from pathlib import Path

from tokenizers import Tokenizer

from mem0_jax.errors import UserError
from mem0_jax.stand_in import stand_in

UNKNOWN = "<|unknown|>"  # in a vocabulary of whole words, any other


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a `tokenizer.json`, such as Qwen3's."""
    if not Path(path).is_file():
        raise UserError(f"{path} is missing: a policy needs the tokenizer.json it was trained with")
    if said := stand_in(Path(path)):
        raise UserError(f"{path} {said}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no narrower one
        raise UserError(f"{path}: not a tokenizer.json ({error}): damaged? copy it again") from None
