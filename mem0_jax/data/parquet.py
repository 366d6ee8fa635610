"""Columns of parquet files as arrays, refusing files whose size does not fit what they are said to hold.

Axes: R rows of a file, *S the declared shape of a feature.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mem0_jax.data.files import AnyPath, DatasetError, MissingFile, RemoteError, check_fits, open_binary
from mem0_jax.stand_in import stand_in

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_BYTES_A_VALUE = 16  # a decoded number and its place in a list, roughly


@contextlib.contextmanager
def opened(path: AnyPath, what: str, texts: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; errors while it is open name `what` it is and where it lies.

    Args:
        texts: columns whose strings are kept as numbers into their distinct values, so that a long text repeated in
            every row costs no memory.
    """
    try:
        # Without prefetching, a column is read as a stream and not as a whole.
        with _source(path) as source:
            metadata = pq.ParquetFile(source, pre_buffer=False).metadata
            leaves = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
            plain = [name for name in texts if name in leaves]
            with pq.ParquetFile(source, metadata=metadata, read_dictionary=plain, pre_buffer=False) as file:
                yield file
    except RemoteError:
        raise
    except FileNotFoundError as error:
        raise MissingFile(f"{what}: {path} is missing") from error
    except (pa.ArrowException, OSError) as error:
        found = stand_in(path) if isinstance(path, Path) else ""
        said = found or f"is not a readable parquet file ({error}); it may be unfinished"
        raise DatasetError(f"{what}: {path} {said}") from error


def _source(path: AnyPath) -> Any:
    """Arrow opens local files itself: what it read through a Python file belongs to Python, and when one of Arrow's
    threads drops it while Python is ending, the process aborts."""
    return pa.OSFile(os.fsencode(path)) if isinstance(path, Path) else open_binary(path)


def read_table(
    path: AnyPath, columns: Sequence[str] | None, what: str, *, optional: Sequence[str] = (), texts: Sequence[str] = ()
) -> pa.Table:
    """Return some columns (None: all) of a file, and of the `optional` ones those that it has.

    Raises:
        MissingFile, DatasetError: missing or damaged file, columns it lacks or has twice, more than memory holds.
    """
    with opened(path, what, texts) as file:
        names = file.schema_arrow.names
        wanted = list(dict.fromkeys(names if columns is None else columns))
        missing = [name for name in wanted if name not in names]
        if missing:
            raise DatasetError(f"{what}: {path} lacks the columns {missing}")
        wanted += [name for name in optional if name in names and name not in wanted]
        twice = [name for name in wanted if names.count(name) > 1]
        if twice:
            raise DatasetError(f"{what}: {path} has more than one column of the names {twice}")
        check_fits(_decoded_bytes(file, wanted), f"{what}: {path}")
        return file.read(columns=wanted, use_threads=isinstance(path, Path))  # see _source


def _decoded_bytes(file: pq.ParquetFile, wanted: Sequence[str]) -> int:
    """Estimate the memory of some columns, by what the footer says."""
    leaves = [name for field in file.schema_arrow for name in [field.name] * _num_leaves(field.type)]
    total, metadata = 0, file.metadata
    chosen = [i for i, name in enumerate(leaves) if name in set(wanted)]
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(i) for i in chosen]
        total += sum(c.total_uncompressed_size + c.num_values * _BYTES_A_VALUE for c in columns)
    return max(total, metadata.num_rows * len(wanted))


def _num_leaves(kind: pa.DataType) -> int:
    return max(1, sum(_num_leaves(kind.field(i).type) for i in range(kind.num_fields)))


def numeric(column: pa.ChunkedArray, shape: Sequence[int], where: str) -> np.ndarray:
    """Lay a scalar, list or fixed-size-list column out as [R] for shape (1,), else [R, *S].

    Raises:
        DatasetError: empty cells, values that are no numbers, cells of another size than the shape says.
    """
    rows, flat = len(column), _stored(column.combine_chunks())
    nulls, sizes = flat.null_count, []
    while any(is_list(flat.type) for is_list in LISTS):
        sizes.append(pc.list_value_length(flat).drop_null().to_numpy(zero_copy_only=False))  # pyright: ignore[reportAttributeAccessIssue]
        flat = _stored(flat.flatten())
        nulls += flat.null_count
    if nulls:
        raise DatasetError(f"{where} has {nulls} empty cells")
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
        raise DatasetError(f"{where} holds {flat.type}; expected numbers")
    values = flat.to_numpy(zero_copy_only=False)
    if values.size != rows * int(np.prod(shape)):
        raise DatasetError(
            f"{where} holds {values.size} numbers in {rows} frames; info.json declares shape {tuple(shape)}"
        )
    if any(np.ptp(level) for level in sizes if level.size):
        raise DatasetError(f"{where} has cells of different sizes; info.json declares shape {tuple(shape)}")
    found = tuple(int(level[0]) for level in sizes if level.size)
    if len(found) == len(shape) and found != tuple(shape):
        raise DatasetError(f"{where} has cells of shape {found}; info.json declares shape {tuple(shape)}")
    return values if tuple(shape) == (1,) else values.reshape(rows, *shape)


def as_declared(values: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """Return numbers in the declared dtype: files of one dataset may hold them in different ones.

    Raises:
        DatasetError: numbers that it cannot hold; rounding to a narrower float is none of them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype, copy=False)
        same = np.isfinite(cast) == np.isfinite(values) if dtype.kind == "f" else cast == values
    if not np.all(same):
        raise DatasetError(
            f"{where} holds {values.dtype} that {dtype} cannot hold, which info.json declares; "
            f"declare {values.dtype} there"
        )
    return cast


def _stored(array: Any) -> Any:
    """The plain array below extension types and dictionaries."""
    while isinstance(array, pa.ExtensionArray | pa.DictionaryArray):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array.dictionary_decode()
    return array


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts, each its own or as numbers into distinct ones."""
    value: pa.DataType = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def text(column: pa.ChunkedArray, where: str) -> tuple[np.ndarray, list[str]]:
    """Return a string column as (ids int32 [R], the distinct texts).

    Raises:
        DatasetError: empty cells, or values that are no texts.
    """
    if not is_text(column.type):
        raise DatasetError(f"{where} holds {column.type}; expected texts")
    if column.null_count:
        raise DatasetError(f"{where} has {column.null_count} empty cells")
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    encoded: Any = column.unify_dictionaries().combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    ids, texts = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32), encoded.dictionary.to_pylist()
    used, ids = np.unique(ids, return_inverse=True)  # a file may list texts that no row of it uses
    if any(texts[i] is None for i in used):
        raise DatasetError(f"{where} has empty cells")
    return ids.astype(np.int32), [texts[i] for i in used]
