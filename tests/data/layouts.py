"""Small datasets with an image column, their episodes laid out over files and row groups as a test wants them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def edit_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def png(episode: int, frame: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), (episode, frame, 7), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_layout(root: Path, layout: dict) -> None:
    """A dataset with one image column, its episodes spread over files and row groups as `layout` says."""
    new, lengths = layout["version"] == "v3.0", layout["lengths"]
    files = layout["file_of"] if new else range(len(lengths))
    name = (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if new else "data/{episode_chunk}/{episode_index}"
    )
    features = {
        key: {"dtype": "int64", "shape": [1]} for key in ("frame_index", "episode_index", "index", "task_index")
    }
    features |= {"timestamp": {"dtype": "float32", "shape": [1]}, "note": {"dtype": "string", "shape": [1]}}
    features |= {"x": {"dtype": "float32", "shape": [2]}, "cam": {"dtype": "image", "shape": [4, 6, 3]}}
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": layout["version"], "fps": 10, "features": features, "data_path": name}
    info |= {"total_episodes": len(lengths), "total_frames": sum(lengths), "chunks_size": 1000}
    (root / "meta/info.json").write_text(json.dumps(info))
    vector = pa.list_(pa.float32(), 2) if layout["fixed"] else pa.list_(pa.float32())
    rows: dict[int, list[dict]] = {}
    index = 0
    for e, length in enumerate(lengths):
        for i in range(length):
            row = {"frame_index": i, "episode_index": e, "index": index, "task_index": 0, "timestamp": i / 10}
            row |= {"note": f"{e % 2}", "x": [e, i], "cam": {"bytes": png(e, i), "path": None}}
            rows.setdefault(files[e], []).append(row)
            index += 1
    types = {"timestamp": pa.float32(), "note": pa.string(), "x": vector}
    types |= {"cam": pa.struct([("bytes", pa.binary()), ("path", pa.string())])}
    for file, content in rows.items():
        keys = list(features)
        layout["shuffled"].shuffle(keys)
        schema = pa.schema([(key, types.get(key, pa.int64())) for key in keys])
        place = {"chunk_index": 0, "file_index": file, "episode_chunk": 0, "episode_index": file}
        path = root / name.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(content, schema), path, row_group_size=layout["group"])
    table = [{"episode_index": e, "length": n, "tasks": ["t"]} for e, n in enumerate(lengths)]
    layout["shuffled"].shuffle(table)  # readers go by the index, not by the place in the table
    if new:
        table = [row | {"data/chunk_index": 0, "data/file_index": files[row["episode_index"]]} for row in table]
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(table), root / "meta/episodes/chunk-000/file-000.parquet")
    else:
        (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, table)))


def simple(tmp_path: Path, **changes) -> Path:
    layout = {"lengths": [5, 4], "file_of": [0, 0], "group": 3, "fixed": True, "version": "v3.0"}
    write_layout(tmp_path / "set", layout | {"shuffled": np.random.default_rng(0)})
    return tmp_path / "set"
