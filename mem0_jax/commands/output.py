"""What commands write for other programs."""

import json
from pathlib import Path
from typing import Any

from mem0_jax.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, making its folder; the file appears when it is complete."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(value, indent=1), "utf-8")
        unfinished.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
