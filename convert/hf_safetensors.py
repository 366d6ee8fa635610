"""Read and write Hugging Face's safetensors, whole or in shards, tensor by tensor.

A file is the length of its header (uint64), the header (JSON: name -> dtype, shape, data_offsets relative to the end of
the header), and the bytes of the tensors without gaps. Source: the format's documentation in huggingface/safetensors.
Read here rather than by their package, which keeps a whole file mapped and so all of it that was read in memory.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mem0_jax.convert.files import Parts
from mem0_jax.convert.kinds import HEAD_BYTES, SAFETENSORS, kind
from mem0_jax.convert.stored import StoredTensor, Tensor, nbytes
from mem0_jax.convert.torch_pt_write import little_endian, little_endian_blocks
from mem0_jax.errors import UserError
from mem0_jax.stand_in import stand_in

MAX_HEADER_BYTES = 32 * 2**20  # a model of 1e5 tensors needs half of it
MAX_NUMBER = 2**62
DTYPES: dict[str, np.dtype] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool_),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "U8": np.dtype("u1"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


class SafetensorsError(UserError):
    """Safetensors files that are missing, damaged or do not fit together, or tensors that do not fit in them."""


# ------------------------------------------------------------------------------------------------------------- reading


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Finds the tensors of a model; their numbers stay in the files until `StoredTensor.read`.

    Args:
      path: a `.safetensors` file; a directory with one such file; or a directory with shards and their
        `model.safetensors.index.json`, or that index.

    Returns:
      Tensors by name, in the order of the files. The files must stay unchanged as long as tensors are read.

    Raises:
      SafetensorsError: naming the file and what is wrong with it, or all that index and shards disagree about.
    """
    path = Path(path)
    try:
        if path.is_file():
            return _read_index(path) if path.name.endswith(".index.json") else read_safetensors(_file(path))
        if not path.is_dir():
            raise SafetensorsError(f"{path}: No such file or directory")
        if (path / INDEX).is_file():
            return _read_index(path / INDEX)
        files = sorted(path.glob("*.safetensors"))
        if path / WEIGHTS in files:  # LeRobot keeps the state of its processors beside the weights
            files = [path / WEIGHTS]
        if len(files) == 1:
            return read_safetensors(_file(files[0]))
    except OSError as error:
        raise SafetensorsError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    held = f"{len(files)} of them" if files else "none"
    raise SafetensorsError(f"{path}: expected {INDEX} or one .safetensors file, found {held}: name a file")


def _file(path: Path) -> Parts:
    return Parts(path.name, [path])


def read_safetensors(parts: Parts) -> dict[str, StoredTensor]:
    """The tensors of one file, or of its byte parts; see `open_safetensors`."""
    path = parts.path
    head = parts.read(0, min(HEAD_BYTES, parts.size)).tobytes()
    if (said := kind(head)) and said != SAFETENSORS:
        raise SafetensorsError(f"{path}: not a safetensors file, it {said}")
    if parts.size < 8:
        raise SafetensorsError(f"{path}: not a safetensors file: it has {parts.size} bytes")
    (length,) = struct.unpack("<Q", parts.read(0, 8).tobytes())
    limit = min(parts.size - 8, MAX_HEADER_BYTES)
    if length > limit:
        raise SafetensorsError(
            f"{path}: not a safetensors file, or truncated: its header claims {length} bytes, at most {limit} fit"
        )
    header = _parse(parts.read(8, length).tobytes(), path)
    _metadata_is_text(header.pop(METADATA, {}), path)
    tensors = {name: _tensor(parts, 8 + length, name, entry) for name, entry in header.items()}
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.nbytes)):
        if tensor.start != end:
            raise SafetensorsError(
                f"{path}: {tensor.storage!r:.100} begins at byte {tensor.start}, expected {end}: tensors overlap or "
                "leave gaps"
            )
        end += tensor.nbytes
    if end != parts.size:
        raise SafetensorsError(f"{path}: has {parts.size} bytes, its header describes {end}: truncated? copy it again")
    return tensors


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    """A JSON object with text keys, none of them twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    try:
        result = json.loads(content, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"{path}: is damaged, not JSON where it should be: {error}") from None
    if not isinstance(result, dict):
        raise SafetensorsError(f"{path}: is damaged, expected a JSON object, got a {type(result).__name__}")
    return result


def _metadata_is_text(metadata: Any, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsError(f"{path}: is damaged, {METADATA} is not a table of texts")


def _tensor(parts: Parts, base: int, name: str, entry: Any) -> StoredTensor:
    """One entry of the header. base: first byte behind the header."""
    where = f"{parts.paths[0]}: tensor {name!r:.100}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"{where} is not described by dtype, shape and data_offsets")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        quantized = str(dtype_name).startswith(("F8", "F6", "F4"))
        advice = "; if the model is quantized, convert the one it was made from" if quantized else ""
        raise SafetensorsError(f"{where} has dtype {dtype_name!r:.40}, expected one of {', '.join(DTYPES)}{advice}")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(shape) <= 32 and len(offsets) == 2
    if not lists or not all(type(n) is int and 0 <= n < MAX_NUMBER for n in [*shape, *offsets]):
        raise SafetensorsError(f"{where}: shape and data_offsets must be lists of whole numbers >= 0, at most 32 axes")
    dtype, (begin, end) = DTYPES[dtype_name], offsets
    if end - begin != math.prod(shape) * dtype.itemsize or base + end > parts.size:
        raise SafetensorsError(
            f"{where}: bytes {begin} to {end} of {parts.size - base} do not hold {dtype_name} of shape {shape!r:.100}"
        )
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return StoredTensor(parts, name, base + begin, dtype, tuple(shape), strides, 0)


def _read_index(path: Path) -> dict[str, StoredTensor]:
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise SafetensorsError(f"{path}: has more than {MAX_HEADER_BYTES} bytes")
    if path.stat().st_size and (said := stand_in(path)):
        raise SafetensorsError(f"{path} {said}")
    where = _parse(path.read_bytes(), path).get("weight_map")
    if not isinstance(where, dict) or not where or not all(_is_file_name(shard) for shard in where.values()):
        raise SafetensorsError(f"{path}: expected a weight_map of tensor names and .safetensors files beside it")
    tensors: dict[str, StoredTensor] = {}
    problems = []
    shards = sorted(set(where.values()))
    for shard in shards:
        file = path.with_name(shard)
        if not file.is_file():
            problems.append(f"{shard} is missing")
            continue
        found = read_safetensors(_file(file))
        problems += [f"{name} is in {shard}, but not by the index" for name in found if where.get(name) != shard]
        problems += [f"{name} is not in {shard}" for name in where if where[name] == shard and name not in found]
        tensors |= found
    stray = {file.name for file in path.parent.glob("model*.safetensors")} - set(shards)
    problems += [f"{name} lies beside, but is not in the index" for name in sorted(stray)]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        listed = "\n  ".join(problem[:300] for problem in problems[:20])
        raise SafetensorsError(f"{path}: index and shards disagree, download them again:\n  {listed}{more}")
    return tensors


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name and "\0" not in name


# ------------------------------------------------------------------------------------------------------------- writing


def write_safetensors(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor | np.ndarray],
    shard_bytes: int = 5 * 10**9,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` and their index, as Hugging Face names them.

    Args:
      folder: made if absent; must hold no safetensors yet. Files get their names when all of them are whole.
      tensors: by name; at most one is in memory at a time. The format knows no tied tensors: leave the second one out.
      shard_bytes: a new shard begins before the tensors of one would have more bytes.
      progress: called with the number of bytes of each block of tensors written.

    Raises:
      SafetensorsError: naming a tensor of a dtype without a name in the format, or files that are there already.
      UserError: a tensor reads as something else than it says. OSError: a file cannot be written. None of them leaves
        a file behind.
    """
    folder = Path(folder)
    _check_names(tensors)
    shards = _plan(tensors, shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(file.name for file in folder.iterdir() if ".safetensors" in file.suffixes)
    if present:
        raise SafetensorsError(f"{folder}: holds {', '.join(present[:5])} already: name another folder, or remove them")
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{k:05}-of-{len(shards):05}.safetensors" for k in range(1, len(shards) + 1)]
    done: list[Path] = []
    try:
        for name, shard in zip(names, shards):
            done.append(folder / f".{name}.unfinished")
            _write_file(done[-1], shard, progress)
        if len(shards) > 1:
            done.append(folder / f".{INDEX}.unfinished")
            where = {key: name for name, shard in zip(names, shards) for key in shard}
            index = {"metadata": {"total_size": sum(map(nbytes, tensors.values()))}, "weight_map": where}
            done[-1].write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        for file, name in zip(done, [*names, INDEX]):
            file.replace(folder / name)
    finally:
        for file in done:
            file.unlink(missing_ok=True)


def _check_names(tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == METADATA:
            raise SafetensorsError(f"tensor {name!r:.100}: expected a text other than {METADATA} as its name")
        if little_endian(tensor.dtype) not in DTYPE_NAMES:
            raise SafetensorsError(f"tensor {name!r:.100}: safetensors have no {tensor.dtype}, convert it first")


def _plan(tensors: Mapping[str, Any], shard_bytes: int) -> list[dict[str, Any]]:
    """The tensors of every shard, in order; one that is larger than a shard gets its own."""
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + nbytes(tensor) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += nbytes(tensor)
    return shards


def _write_file(path: Path, tensors: Mapping[str, Any], progress: Callable[[int], object] | None) -> None:
    # Wide elements first: with a header of whole words, every tensor is then aligned to its element.
    order = sorted(tensors, key=lambda name: -np.dtype(tensors[name].dtype).itemsize)
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    begin = 0
    for name in order:
        tensor = tensors[name]
        kind = DTYPE_NAMES[little_endian(tensor.dtype)]
        end = begin + nbytes(tensor)
        header[name] = {"dtype": kind, "shape": [int(n) for n in tensor.shape], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for block in little_endian_blocks(name, tensors[name], progress):
                file.write(block)
