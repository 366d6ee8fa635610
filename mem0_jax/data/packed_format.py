"""The files of a packed dataset: what the packer and the reader must agree on.

A packed dataset is a folder that `tfds.data_source` reads as it stands, plus what lanes need beside the pictures:

    NAME-train.array_record-00000-of-00005   shards of whole episodes; one record a frame, in order
    dataset_info.json, features.json         TFDS's description of the records
    packed.json                              our description: episodes, texts, cameras, shards
    columns/000.bin ...                      every low-dimensional column once more, [F] or [F, *shape]
    pictures/000.bin ...                     int64 [F, 3] for each camera: where its JPEG lies, its bytes, its CRC-32
    source/meta/                             the source's metadata as it was, statistics included

Axes: F frames of the whole dataset.

Why one record a frame and not one an episode (RLDS's `steps`): a lane reads a window of T frames from the middle of an
episode, a shuffling trainer reads single frames, and both want to fetch just these. A record of a whole episode would
have to be fetched (7 MB for 250 frames) and kept for each lane. RLDS's `is_first` and `is_last` mark the episodes.

Why the columns lie there twice: they are 1 % of the bytes. In the records they make a frame complete for TFDS; beside
them they can be loaded without touching the pictures.

A record is a tf.train.Example whose features are all bytes: JPEG, UTF-8, or an array's raw little-endian memory (TFDS's
`encoding="bytes"`, exact for every dtype, where Example's own lists know only float32 and int64). Records are stored
uncompressed, one a chunk, so a picture is a run of bytes in the shard, interrupted only by Riegeli's block headers: 24
bytes at each multiple of 64 KiB. Offsets count the bytes without those headers ("logical offsets"). Reading a picture
is thus one plain read of known, bounded size that needs no library.
Formats: https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md, TFDS 4.9's `dataset_info` and
`features` messages, tensorflow/core/example/example.proto.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

FORMAT = 1
MANIFEST = "packed.json"
COLUMNS, PICTURES, SOURCE = "columns", "pictures", "source"
SPLIT, TFDS_VERSION = "train", "1.0.0"

TfdsFeature = tuple[str, Sequence[int]]

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40
_BLOCK_DATA = _BLOCK - _BLOCK_HEADER
_FEATURES = "tensorflow_datasets.core.features"


def shard_name(name: str, number: int, shards: int) -> str:
    """Return the file name of a shard, as TFDS expects it."""
    return f"{name}-{SPLIT}.array_record-{number:05d}-of-{shards:05d}"


def picture_limit(height: int, width: int) -> int:
    """Return the most bytes a JPEG of that size may have: more than noise needs at the highest quality."""
    return 6 * height * width + 65536


# Bytes in a shard


def read_logical(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return `size` bytes of a shard from a logical offset on; fewer if the file ends before."""
    first, last = _physical(offset), _physical(offset + size - 1)
    file.seek(first)
    raw = file.read(last + 1 - first)
    start = -first % _BLOCK  # of the next block header within raw
    if start >= len(raw):
        return raw
    pieces = [raw[:start]]
    pieces += [raw[at + _BLOCK_HEADER : at + _BLOCK] for at in range(start, len(raw), _BLOCK)]
    return b"".join(pieces)


def record_offsets(file: BinaryIO, sizes: Iterable[int]) -> list[int]:
    """Return the logical offset of each record of a shard just written with one uncompressed record a chunk.

    Raises:
        ValueError: the chunks are not those: the array_record library has changed its way of writing.
    """
    offsets, chunk = [], _CHUNK_HEADER  # the first chunk is the file's signature and has no data
    for number, size in enumerate(sizes):
        header = read_logical(file, chunk, _CHUNK_HEADER)
        _, data, _, kind_and_records, decoded = struct.unpack("<5Q", header.ljust(_CHUNK_HEADER, b"\0"))
        if (kind_and_records & 0xFF, kind_and_records >> 8, decoded) != (ord("r"), 1, size) or data < size:
            raise ValueError(f"record {number} is not an uncompressed chunk of its own")
        # Chunk data: compression type, size of the sizes, the sizes, then the record.
        offsets.append(chunk + _CHUNK_HEADER + data - size)
        chunk += _CHUNK_HEADER + data
    return offsets


def _physical(logical: int) -> int:
    blocks, rest = divmod(logical, _BLOCK_DATA)
    return blocks * _BLOCK + _BLOCK_HEADER + rest


# tf.train.Example


def encode_example(values: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, list[int]]:
    """Serialize (key, value) pairs as a tf.train.Example of bytes features: (record, where each value starts in it)."""
    entries, starts, at = [], [], 0
    for key, value in values:
        byte_list = b"\x0a" + _varint(len(value))
        feature = b"\x0a" + _varint(len(byte_list) + len(value))
        size = len(feature) + len(byte_list) + len(value)
        head = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(size) + feature + byte_list
        entry = b"\x0a" + _varint(len(head) + len(value))
        entries += [entry, head, value]
        at += len(entry) + len(head)
        starts.append(at)
        at += len(value)
    top = b"\x0a" + _varint(at)
    return top + b"".join(entries), [len(top) + start for start in starts]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


# TFDS's own files


def write_tfds_metadata(
    folder: Path,
    name: str,
    features: Mapping[str, tuple[str, Sequence[int]]],
    shard_frames: Sequence[int],
    num_bytes: int,
) -> None:
    """Write dataset_info.json and features.json, so that TFDS reads the folder without a builder class.

    Args:
        folder: the dataset.
        name: its TFDS name, which the shards' names begin with.
        features: by key: ("text", ()), ("jpeg", (H, W)), or (NumPy dtype name, shape).
        shard_frames: records in each shard.
        num_bytes: of all records.
    """
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": SPLIT,
        "numBytes": str(num_bytes),
        "shardLengths": [str(frames) for frames in shard_frames],
    }
    info = {
        "description": "Robot episodes, one record a frame in order; is_first and is_last mark the episodes.",
        "disableShuffling": True,
        "fileFormat": "array_record",
        "name": name,
        "splits": [split],
        "version": TFDS_VERSION,
    }
    tree = {
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": {key: _tfds_feature(value) for key, value in features.items()}},
    }
    for file, value in (("dataset_info.json", info), ("features.json", tree)):
        (folder / file).write_text(json.dumps(value, indent=2), "utf-8")


def _tfds_feature(feature: TfdsFeature) -> dict[str, Any]:
    dtype, shape = feature
    if dtype == "text":
        return {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}
    if dtype == "jpeg":
        image = {"shape": _tfds_shape((*shape, 3)), "dtype": "uint8", "encodingFormat": "jpeg"}
        return {"pythonClassName": f"{_FEATURES}.image_feature.Image", "image": image}
    tensor = {"shape": _tfds_shape(shape), "dtype": dtype, "encoding": "bytes"}
    return {"pythonClassName": f"{_FEATURES}.tensor_feature.Tensor", "tensor": tensor}


def _tfds_shape(shape: Sequence[int]) -> dict[str, list[str]]:
    return {"dimensions": [str(n) for n in shape]} if len(shape) else {}
