"""Parameter trees on disk, in Orbax's layout, written and read piece by piece.

Orbax writes a tree that lies in memory; a checkpoint of 15 GB does not. Here Orbax writes the tree's description over
empty arrays, then each array is made anew in its place (Zarr, one file a chunk) and filled chunk by chunk. Orbax reads
the result like any other checkpoint, and what Orbax wrote can be read here leaf by leaf, layer by layer.
"""

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from mem0_jax.errors import UserError
from mem0_jax.tree import flatten, unflatten

CHUNK_BYTES = 64 * 2**20


class StoreError(UserError):
    """A parameter tree on disk that cannot be read, or values that do not fit it."""


@dataclass(frozen=True)
class LeafSpec:
    """An array to be written.

    Attributes:
        layered: the first axis counts layers, which are written one by one.
        shards: pieces each axis is cut into by a mesh; a chunk never crosses such a cut.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    layered: bool = False
    shards: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunk(self) -> tuple[int, ...]:
        """Shape of a chunk: one layer of one shard, cut along its first axis to at most 64 MiB."""
        cuts = self.shards or (1,) * len(self.shape)
        chunk = [size // cut for size, cut in zip(self.shape, cuts)]
        first = 1 if self.layered else 0
        if self.layered:
            chunk[0] = 1
        if first < len(chunk):
            row = math.prod(chunk[first + 1 :]) * self.dtype.itemsize
            whole = chunk[first]
            # The greatest divisor that fits: shards stay made of whole chunks.
            chunk[first] = next(n for n in range(whole, 0, -1) if whole % n == 0 and (n * row <= CHUNK_BYTES or n == 1))
        return tuple(chunk)


def check_folder(folder: Path, joined: bool = False) -> Path:
    """The absolute `folder` for Orbax. Raises StoreError: of a name on the way it would make another place.

    Args:
        joined: the writings of several processes are joined there. Orbax looks for them by a pattern, of which the
            folder becomes a part: what it does not find is silently left out.
    """
    folder = folder.absolute()
    # "\\" becomes a slash, and "gs:/" the start of an address.
    if found := re.search(r"[*?\[\\]|:/" if joined else r"\\|:/", f"{folder}/"):
        raise StoreError(f"{folder}: the storage library cannot take {found[0]!r} in a path; name another folder")
    return folder


class TreeWriter:
    """Fills a new tree; `write` may be called from several threads."""

    def __init__(self, folder: Path, specs: Mapping[str, LeafSpec]):
        """Makes `folder`, which must not exist, with an empty array for every path of `specs`."""
        hollow = unflatten({path: np.zeros((1,), spec.dtype) for path, spec in specs.items()})
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
            checkpointer.save(check_folder(folder), args=ocp.args.PyTreeSave(hollow))
        self._specs = specs
        self._stores = {path: _create(folder, path, spec) for path, spec in specs.items()}

    def write(self, path: str, value: np.ndarray, layer: int | None = None) -> None:
        """Writes the leaf at `path`, or one layer of it; `value` is cast to the leaf's dtype."""
        store = self._stores[path]
        target = store if layer is None else store[layer]
        if target.shape != value.shape:
            raise StoreError(f"{path}: got {value.shape}, the leaf is {target.shape}")
        if not value.ndim or value.nbytes <= CHUNK_BYTES:
            target.write(contiguous(value.astype(target.dtype.numpy_dtype, copy=False))).result()
            return
        rows = self._specs[path].chunk[-value.ndim]
        for start in range(0, len(value), rows):
            block = value[start : start + rows].astype(target.dtype.numpy_dtype, copy=False)
            target[start : start + rows].write(contiguous(block)).result()


def contiguous(x: np.ndarray) -> np.ndarray:
    """A copy in C order where `x` is not; OpenCV transposes matrices several times faster than NumPy."""
    if x.ndim == 2 and x.itemsize in (2, 4, 8) and 0 < x.strides[0] == x.itemsize < x.strides[1]:
        bits = {2: np.uint16, 4: np.int32, 8: np.float64}[x.itemsize]
        return cv2.transpose(x.T.view(bits)).reshape(x.shape).view(x.dtype)
    return np.ascontiguousarray(x) if x.ndim else x


def _create(folder: Path, path: str, spec: LeafSpec) -> ts.TensorStore:
    place = folder / path.replace("/", ".")
    shutil.rmtree(place)
    return ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{place.absolute()}/"},
            "metadata": {"compressor": None},  # weights do not compress
            "context": {"file_io_sync": False},  # the folder is renamed when complete: no need to wait for each file
        },
        create=True,
        dtype=ts.dtype(spec.dtype.name),
        shape=spec.shape,
        chunk_layout=ts.ChunkLayout(chunk_shape=spec.chunk),
    ).result()


@dataclass(frozen=True)
class StoredLeaf:
    """An array of a tree on disk, `name`."""

    store: ts.TensorStore
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of an element."""
        return np.dtype(self.store.dtype.numpy_dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, layer: int | None = None) -> np.ndarray:
        """All values, or those of one index of the first axis. Raises StoreError: they are missing or damaged."""
        try:
            return np.asarray((self.store if layer is None else self.store[layer]).read().result())
        except (ValueError, OSError) as error:
            raise StoreError(f"{self.name} is damaged, copy it again ({first_line(error)})") from error


def open_tree(folder: Path) -> dict[str, StoredLeaf]:
    """Every leaf of an Orbax tree by `/`-joined path, none read yet. Raises StoreError where it is damaged."""
    folder = check_folder(folder)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found: Any = checkpointer.metadata(folder)
        paths = list(flatten(getattr(found, "item_metadata", found).tree))
        return {path: StoredLeaf(_open(folder, path), f"{folder}: {path}") for path in paths}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise StoreError(f"{folder}: no readable parameter tree ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What TensorStore or Orbax say, without where in their sources."""
    return str(error).partition("\n")[0].partition(" [source locations=")[0][:500]


def _open(folder: Path, path: str) -> ts.TensorStore:
    name = path.replace("/", ".")
    if (folder / "manifest.ocdbt").exists():
        base = {"driver": "file", "path": f"{folder}/"}  # no address, in which %, ? and # are more than letters
        kvstore: dict[str, Any] = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    else:
        kvstore = {"driver": "file", "path": f"{folder / name}/"}
    return ts.open({"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}, read=True).result()
