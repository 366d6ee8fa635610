"""What commands write for other programs."""

import json
from pathlib import Path
from typing import Any

from mem0_jax.disk import disk_told, write_whole


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, making its folder; the file appears when it is complete."""
    with disk_told(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(value, indent=1))
