"""Where things are: token positions, patch positions and image slots, computed on the host in NumPy.

Axis letters: B samples, S tokens, V views (images of a sample, padded to the most), P patches of an image (padded to
the largest), M image tokens of an image (P / merge^2), C numbers of a patch, G distinct grids of the batch. A grid is
(time, rows, columns) in patches. Every array leads with B, so a batch can be sharded without moving images.
Source: the behaviour of transformers 4.57.1 (`get_rope_index`, `fast_pos_embed_interpolate`, `rot_pos_emb`).
"""

from collections.abc import Sequence

import numpy as np

from mem0_jax.backbones.chat import Grid
from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, VisionConfig


def merge_order(rows: int, columns: int, merge: int) -> np.ndarray:
    """Row-major patch numbers in the tower's order (merge x merge blocks together): int [rows * columns]."""
    number = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    return number.transpose(0, 2, 1, 3).reshape(-1)


def patch_positions(grid: Grid, config: VisionConfig) -> dict[str, np.ndarray]:
    """Position data of one image.

    Returns:
        row_column: int32 [P, 2] for the rotary embedding.
        table_index: int32 [P, 4], the four corners in the learned table.
        table_weight: float32 [P, 4], their bilinear weights.
    """
    _check_grid(grid, config)
    _, rows, columns = grid
    order = merge_order(rows, columns, config.spatial_merge_size)
    row_column = np.stack([order // columns, order % columns], -1).astype(np.int32)
    corners = [_corners(size, config.table_side) for size in (rows, columns)]
    index, weight = [], []
    for row_corner in range(2):
        for column_corner in range(2):
            r, wr = corners[0][0][row_corner][row_column[:, 0]], corners[0][1][row_corner][row_column[:, 0]]
            c, wc = corners[1][0][column_corner][row_column[:, 1]], corners[1][1][column_corner][row_column[:, 1]]
            index.append(r * config.table_side + c)
            weight.append(wr * wc)
    return {
        "row_column": row_column,
        "table_index": np.stack(index, -1).astype(np.int32),
        "table_weight": np.stack(weight, -1).astype(np.float32),
    }


def _check_grid(grid: Grid, config: VisionConfig) -> None:
    time, rows, columns = grid
    if time != 1:
        raise ValueError(f"grid {grid}: only still images (time 1) are supported")
    if rows % config.spatial_merge_size or columns % config.spatial_merge_size:
        raise ValueError(f"grid {grid}: rows and columns must be multiples of {config.spatial_merge_size}")


def _corners(size: int, side: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Lower and upper table coordinates of `size` evenly spread points on [0, side - 1], and their linear weights."""
    point = np.linspace(0, side - 1, size, dtype=np.float32)
    low = point.astype(np.int32)
    fraction = point - low
    return (low, np.minimum(low + 1, side - 1)), (1 - fraction, fraction)


def token_positions(
    input_ids: np.ndarray, attention_mask: np.ndarray, grids: Sequence[Grid], config: Qwen3VLConfig
) -> np.ndarray:
    """MRoPE positions (time, height, width) of every token: int32 [B, 3, S]; 1 where masked.

    Text advances all three axes by one. An image block stands still in time, counts rows and columns from the running
    position, and the text after it continues from its largest position + 1. `grids` lists the images of all samples
    in reading order.
    """
    position = np.ones((input_ids.shape[0], 3, input_ids.shape[1]), np.int32)
    remaining = list(grids)
    for b, (ids, mask) in enumerate(zip(input_ids, attention_mask.astype(bool))):
        tokens = ids[mask]
        columns, at, running = [], 0, 0
        while at < len(tokens):
            if tokens[at] != config.tokens.image:
                columns.append(np.full((3, 1), running))
                at, running = at + 1, running + 1
                continue
            if not remaining:
                raise ValueError(f"sample {b}: the prompt holds more image blocks than there are images")
            block = _image_block(remaining.pop(0), config.vision.spatial_merge_size)
            if (tokens[at : at + block.shape[1]] != config.tokens.image).any() or at + block.shape[1] > len(tokens):
                raise ValueError(f"sample {b}: an image block is shorter than its grid's {block.shape[1]} tokens")
            columns.append(block + running)
            at, running = at + block.shape[1], running + int(block.max()) + 1
        if columns:
            position[b][:, mask] = np.concatenate(columns, 1)
    if remaining:
        raise ValueError(f"{len(remaining)} images have no block of image tokens in any prompt")
    return position


def _image_block(grid: Grid, merge: int) -> np.ndarray:
    time, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
    return np.indices((time, rows, columns)).reshape(3, -1)


def views_of_samples(input_ids: np.ndarray, grids: Sequence[Grid], config: Qwen3VLConfig) -> list[list[int]]:
    """Which images (indices into `grids`, in reading order) belong to each sample, by counting image tokens."""
    merge, owners, at = config.vision.spatial_merge_size, [], 0
    for b, ids in enumerate(input_ids):
        missing, own = int((ids == config.tokens.image).sum()), []
        while missing > 0 and at < len(grids):
            missing -= int(np.prod(grids[at])) // merge**2
            own.append(at)
            at += 1
        if missing:
            raise ValueError(f"sample {b}: its image tokens do not match the grids of the images ({missing:+d} tokens)")
        owners.append(own)
    if at != len(grids):
        raise ValueError(f"{len(grids) - at} images have no image tokens in any prompt")
    return owners


def image_slots(
    input_ids: np.ndarray, token_counts: Sequence[Sequence[int]], padded: int, image_token: int
) -> np.ndarray:
    """For each token its row in the sample's image tokens [V * padded], -1 for text: int32 [B, S].

    `token_counts` holds the number of image tokens of every view of every sample.
    """
    slots = np.full(input_ids.shape, -1, np.int32)
    for b, counts in enumerate(token_counts):
        rows = [view * padded + np.arange(count) for view, count in enumerate(counts)]
        slots[b, input_ids[b] == image_token] = np.concatenate(rows) if rows else []
    return slots


def arrays_of(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    patches: np.ndarray,
    grids: Sequence[Sequence[int]],
    config: Qwen3VLConfig,
) -> dict[str, np.ndarray]:
    """Everything `Qwen3VL.encode` needs for one batch, from what the Hugging Face processor gives.

    Args:
        input_ids: int [B, S].
        attention_mask: int or bool [B, S].
        patches: [sum of patches, C], all images one after the other in merge order; uint8 or normalised float.
        grids: one (time, rows, columns) per image, in reading order.
        config: the backbone's sizes.

    Returns:
        patches [B, V, P, C], patch_mask bool [B, V, P], grid_id int32 [B, V], input_ids int32 [B, S],
        attention_mask bool [B, S], position int32 [B, 3, S], image_slot int32 [B, S], and the tables of
        `grid_tables` [G, P, ...].
    """
    grids = [(int(t), int(h), int(w)) for t, h, w in grids]
    sizes = [t * h * w for t, h, w in grids]
    if sum(sizes) != len(patches):
        raise ValueError(f"the grids hold {sum(sizes)} patches, got {len(patches)}")
    if not grids:
        raise ValueError("a batch needs at least one image")
    for grid in grids:
        _check_grid(grid, config.vision)
    owners = views_of_samples(input_ids, grids, config)
    pieces = np.split(patches, np.cumsum(sizes)[:-1])
    distinct, longest, views = sorted(set(grids)), max(sizes), max(map(len, owners))
    merged = config.vision.spatial_merge_size**2
    padded = np.zeros((len(owners), views, longest, patches.shape[-1]), patches.dtype)
    mask, grid_id = np.zeros(padded.shape[:3], bool), np.zeros(padded.shape[:2], np.int32)
    for b, own in enumerate(owners):
        for v, i in enumerate(own):
            padded[b, v, : sizes[i]], mask[b, v, : sizes[i]], grid_id[b, v] = pieces[i], True, distinct.index(grids[i])
    counts = [[sizes[i] // merged for i in own] for own in owners]
    return {
        "patches": padded,
        "patch_mask": mask,
        "grid_id": grid_id,
        "input_ids": input_ids.astype(np.int32),
        "attention_mask": attention_mask.astype(bool),
        "position": token_positions(input_ids, attention_mask, grids, config),
        "image_slot": image_slots(input_ids, counts, longest // merged, config.tokens.image),
        **grid_tables(distinct, config.vision),
    }


def grid_tables(grids: Sequence[Grid], config: VisionConfig) -> dict[str, np.ndarray]:
    """`patch_positions` of several grids, padded to the largest: row_column, table_index, table_weight [G, P, ...]."""
    tables = [patch_positions(grid, config) for grid in grids]
    longest = max(len(table["row_column"]) for table in tables)
    pad = lambda x: np.pad(x, [(0, longest - len(x)), (0, 0)])  # noqa: E731
    return {key: np.stack([pad(table[key]) for table in tables]) for key in tables[0]}
