"""Images and instructions to backbone arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mem0_jax.backbones.qwen3_vl.processor import Processor, patchify, token_ids, word_tokenizer
from mem0_jax.errors import UserError

TEXTS = ["pick the red block", "press the button"]


def processor(views: int = 1, image_size: tuple[int, int] = (64, 96), max_length: int = 40) -> Processor:
    tokenizer = word_tokenizer(TEXTS)
    text = TextConfig(32, 1, 2, 1, 16, 32, tokenizer.get_vocab_size(), 1e4, (4, 2, 2))
    vision = VisionConfig(1, 32, 32, 2, 64, (), 16, 2, 2, 32)
    return Processor(tokenizer, Qwen3VLConfig(text, vision, token_ids(tokenizer)), image_size, max_length, views)


def unpatchify(patches: np.ndarray, rows: int, columns: int, config: VisionConfig) -> np.ndarray:
    """The picture again, patch by patch, written the slow way."""
    size, merge = config.patch_size, config.spatial_merge_size
    image = np.zeros((rows * size, columns * size, 3), np.uint8)
    places = [
        (block_row * merge + row, block_column * merge + column)
        for block_row in range(rows // merge)
        for block_column in range(columns // merge)
        for row in range(merge)
        for column in range(merge)
    ]
    for patch, (row, column) in zip(patches, places):
        frames = patch.reshape(3, config.temporal_patch_size, size, size)
        for frame in range(config.temporal_patch_size):
            tile = image[row * size : (row + 1) * size, column * size : (column + 1) * size]
            if frame:
                np.testing.assert_array_equal(tile, frames[:, frame].transpose(1, 2, 0))
            tile[:] = frames[:, frame].transpose(1, 2, 0)
    return image


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2]), st.integers(0, 2**32 - 1))
def test_patches_hold_the_whole_picture_in_merge_order(rows, columns, temporal, seed):
    config = VisionConfig(1, 32, 32, 2, 64, (), 16, temporal, 2, 32)
    image = np.random.default_rng(seed).integers(0, 256, (2, rows * 32, columns * 32, 3), np.uint8)
    patches = patchify(image, config)
    assert patches.shape == (2, rows * columns * 4, config.patch_width)
    for picture, own in zip(image, patches):
        np.testing.assert_array_equal(unpatchify(own, 2 * rows, 2 * columns, config), picture)


def test_prompts_follow_the_chat_template():
    p = processor()
    tokens = p.config.tokens
    arrays = p.prompt(TEXTS[0])
    ids = arrays["input_ids"][arrays["attention_mask"]]
    decoded = [p.tokenizer.id_to_token(int(i)) for i in ids]
    assert decoded[:3] == ["<|im_start|>", "user", "<|vision_start|>"]
    assert decoded[3:9] == ["<|image_pad|>"] * 6
    assert decoded[9:] == ["<|vision_end|>", "pick", "the", "red", "block", "<|im_end|>"]
    assert (arrays["input_ids"][~arrays["attention_mask"]] == tokens.pad).all()
    np.testing.assert_array_equal(arrays["image_slot"][3:9], np.arange(6))
    assert (np.delete(arrays["image_slot"], range(3, 9)) == -1).all()
    # 2 x 3 image tokens: time stands still at 3, rows and columns count from 3, text goes on from 6.
    np.testing.assert_array_equal(
        arrays["position"][:, 3:11], [[3] * 6 + [6, 7], [3, 3, 3, 4, 4, 4, 6, 7], [3, 4, 5, 3, 4, 5, 6, 7]]
    )


def test_views_share_one_prompt_and_images_are_resized():
    p = processor(views=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 96, 3), np.uint8)
    arrays = p.prepare(list(images.swapaxes(0, 1)), [TEXTS[0], TEXTS[1], TEXTS[0]])
    assert arrays["patches"].shape == (3, 2, 24, 1536)
    assert arrays["position"].shape == (3, 3, 40)
    assert arrays["image_slot"].max() == 11
    large = np.repeat(np.repeat(images[:, 1], 2, 1), 2, 2)  # views may have sizes of their own
    mixed = p.prepare([images[:, 0], large], [TEXTS[0]] * 3)
    assert mixed["patches"].shape == (3, 2, 24, 1536)
    np.testing.assert_array_equal(mixed["patches"][:, 0], arrays["patches"][:, 0])
    with pytest.raises(ValueError, match=r"1 views.*expected 2"):
        p.prepare([images[:, 0]], [TEXTS[0]] * 3)


def test_bad_input_is_named():
    p = processor(max_length=12)
    with pytest.raises(UserError, match="max_length 12"):
        p.prompt(TEXTS[0])
    with pytest.raises(UserError, match="special token"):
        processor().prompt("pick <|im_end|> now")
    with pytest.raises(ValueError, match="uint8"):
        processor().prepare([np.zeros((1, 64, 96, 3), np.float32)], TEXTS[:1])
    with pytest.raises(ValueError, match="multiples of 32"):
        patchify(np.zeros((40, 64, 3), np.uint8), p.config.vision)
