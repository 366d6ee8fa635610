"""Features of a LeRobot dataset: what may be declared, checking an episode's values, and their parquet columns.

Axes: N frames of one episode, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mem0_jax.data.lerobot_features import AUTOMATIC
from mem0_jax.data.video_join import EncodedVideo


def checked_features(features: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the features with the automatic ones added; ValueError naming the one that cannot be stored."""
    checked = {}
    for key, value in features.items():
        if key in AUTOMATIC or "/" in key or key.startswith("."):
            raise ValueError(f"feature {key!r}: the name is reserved or holds a slash or a leading dot")
        shape = [int(n) for n in value["shape"]]
        if value["dtype"] == "video":
            valid = len(shape) == 3 and shape[2] == 3 and shape[0] % 2 == shape[1] % 2 == 0 and min(shape) > 0
            expected = "(even height, even width, 3)"
        else:
            valid, expected = len(shape) == 1 and shape[0] > 0, "(n,)"
            if value["dtype"] != "string" and np.dtype(value["dtype"]).kind not in "biuf":
                raise ValueError(f"feature {key!r}: dtype {value['dtype']!r} is not a number type, string or video")
        if not valid:
            raise ValueError(f"feature {key!r}: shape {shape} does not fit {value['dtype']!r}; expected {expected}")
        checked[key] = dict(value) | {"shape": shape, "names": value.get("names")}
    automatic = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in AUTOMATIC.items()}
    return checked | automatic


def checked_frames(
    frames: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]], fps: int, where: str
) -> tuple[dict[str, Any], dict[str, np.ndarray | EncodedVideo], int]:
    """Check one episode against the features: (columns, pictures by camera, N); ValueError naming the feature."""
    expected = features.keys() - AUTOMATIC.keys()
    missing, unknown = sorted(expected - frames.keys()), sorted(frames.keys() - expected)
    if missing or unknown:
        raise ValueError(f"{where}: missing features {missing}, unknown features {unknown}")
    lengths = {key: len(frames[key]) for key in frames}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{where}: features must all have the same, positive number of frames; got {lengths}")
    columns: dict[str, Any] = {}
    pictures: dict[str, np.ndarray | EncodedVideo] = {}
    for key in frames:
        feature, name = features[key], f"{where}, feature {key!r}"
        if feature["dtype"] == "string":
            columns[key] = _checked_texts(frames[key], name)
        elif feature["dtype"] == "video":
            pictures[key] = _checked_pictures(frames[key], tuple(feature["shape"]), fps, name)
        else:
            columns[key] = _checked_numbers(frames[key], feature, name)
    return columns, pictures, next(iter(lengths.values()))


def arrow_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """The columns of the parquet files: every feature but videos."""
    return pa.schema([(key, _arrow_type(value)) for key, value in features.items() if value["dtype"] != "video"])


def arrow_table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Lay checked columns out as one table."""
    arrays = [_arrow_array(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _checked_texts(value: Any, name: str) -> list[str]:
    if isinstance(value, str) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}: expected a sequence of texts, one a frame")
    return [str(text) for text in value]


def _checked_pictures(value: Any, shape: tuple[int, ...], fps: int, name: str) -> np.ndarray | EncodedVideo:
    if isinstance(value, EncodedVideo):
        if (value.height, value.width, 3) != shape or value.fps != fps:
            found, expected = f"{value.height}x{value.width} at {value.fps} fps", f"{shape[0]}x{shape[1]} at {fps} fps"
            raise ValueError(f"{name}: {value.path} is {found}; expected {expected}")
        for _ in value.packets():  # raises for what is damaged
            pass
        return value
    pictures = np.asarray(value)
    if pictures.dtype != np.uint8 or pictures.shape[1:] != shape:
        raise ValueError(f"{name}: expected uint8 [N, {shape}], got {pictures.dtype} {list(pictures.shape)}")
    return pictures


def _checked_numbers(value: Any, feature: Mapping[str, Any], name: str) -> np.ndarray:
    numbers, shape = np.asarray(value), tuple(feature["shape"])
    if shape == (1,) and numbers.ndim == 2:
        numbers = numbers[:, 0] if numbers.shape[1] == 1 else numbers
    if numbers.shape[1:] != (() if shape == (1,) else shape):
        raise ValueError(f"{name}: expected [N, {shape[0]}], got {list(numbers.shape)}")
    if not np.can_cast(numbers.dtype, feature["dtype"], "same_kind") or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected finite {feature['dtype']}, got {numbers.dtype} (NaN or infinite included?)")
    return numbers.astype(feature["dtype"])


def _arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    if feature["dtype"] == "string":
        return pa.string()
    element = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    (size,) = feature["shape"]
    return element if size == 1 else pa.list_(pa.field("element", element), size)


def _arrow_array(value: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(value).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(value, kind)
