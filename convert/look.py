"""Looking into checkpoints and comparing them, whatever their format."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mem0_jax.convert.sources import Source, tied_tensors
from mem0_jax.convert.stored import array_of, nbytes

BLOCK = 2**22  # elements compared at a time


def inspect(source: Source) -> dict[str, Any]:
    """Names, shapes, dtypes and bytes of all tensors, totals by module, tied pairs and what else the file holds."""
    tied = dict(tied_tensors(source.tensors))
    modules: dict[str, Counter] = {}
    tensors = {}
    for name, tensor in source.tensors.items():
        size = nbytes(tensor)
        tensors[name] = {"shape": list(tensor.shape), "dtype": np.dtype(tensor.dtype).name, "bytes": size}
        module = modules.setdefault(name.split(".")[0], Counter())
        module["tensors"] += 1
        module["elements"] += int(np.prod(tensor.shape, dtype=np.int64))
        module["bytes"] += 0 if name in tied else size
    return {
        "format": source.format,
        "model": source.model.name,
        "tensors": tensors,
        "modules": {name: dict(counts) for name, counts in modules.items()},
        "tied": tied,
        "notes": source.notes,
        "also": sorted(map(str, source.checkpoint)),
        "bytes": source.nbytes,
    }


@dataclass(frozen=True)
class Difference:
    """What tells two tensors of one name apart.

    Attributes:
        name: without the prefix that a backbone has inside a policy.
        problem: "" if they could be compared, else why not.
        error: greatest absolute difference, in float64; infinite where one is not finite and the other is not alike.
        relative: the same over the greatest absolute value of the first.
        identical: equal in dtype and in every byte.
    """

    name: str
    problem: str = ""
    error: float = 0.0
    relative: float = 0.0
    identical: bool = False


def differences(a: Source, b: Source) -> Iterator[Difference]:
    """Compares two checkpoints tensor by tensor, one in memory at a time."""
    (ours, tied), (theirs, also_tied) = _common_names(a), _common_names(b)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if (name in tied or name not in ours) and (name in also_tied or name not in theirs):
            continue  # its twin says it all
        if name not in ours or name not in theirs:
            yield Difference(name, f"only in {a.path if name in ours else b.path}")
        elif tuple(ours[name].shape) != tuple(theirs[name].shape):
            yield Difference(name, f"shape {tuple(ours[name].shape)} against {tuple(theirs[name].shape)}")
        else:
            yield _compare(name, array_of(ours[name]), array_of(theirs[name]))


def _common_names(source: Source) -> tuple[dict[str, Any], set[str]]:
    """Tensors by name, the backbone's as Hugging Face calls them, and the names that are tied to an earlier one."""
    prefix = source.model.prefix
    named = {name.removeprefix(prefix): tensor for name, tensor in source.tensors.items()}
    return named, {name.removeprefix(prefix) for name, _ in tied_tensors(source.tensors)}


def _compare(name: str, x: np.ndarray, y: np.ndarray) -> Difference:
    error = scale = 0.0
    identical = x.dtype == y.dtype
    rows = max(1, BLOCK // max(1, x[0].size)) if x.ndim and len(x) else 1
    for start in range(0, len(x) if x.ndim else 1, rows):
        p, q = (x[start : start + rows], y[start : start + rows]) if x.ndim else (x, y)
        identical = identical and p.tobytes() == q.tobytes()
        p, q = p.astype(np.float64), q.astype(np.float64)
        alike = (p == q) | (np.isnan(p) & np.isnan(q))
        gap = np.where(alike, 0.0, np.abs(p - q))
        error = max(error, float(np.max(np.where(np.isnan(gap), np.inf, gap), initial=0.0)))
        scale = max(scale, float(np.max(np.abs(p), initial=0.0, where=np.isfinite(p))))
    return Difference(name, "", error, error / scale if scale else float(error > 0), identical)
