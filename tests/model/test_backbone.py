"""The backbone's host-side layout, and what its features may and may not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig, TextConfig, TokenIds, VisionConfig
from mem0_jax.backbones.qwen3_vl.model import Qwen3VL, normalised
from mem0_jax.backbones.qwen3_vl.positions import arrays_of, token_positions
from mem0_jax.nn import module
from mem0_jax.policies.mem0.policy import pooled_features

TOKENS = TokenIds(vision_start=90, vision_end=91, image=92, video=93, im_start=94, im_end=95, pad=96)
CONFIG = Qwen3VLConfig(
    TextConfig(24, 3, 4, 2, 8, 32, 100, 1e4, (2, 1, 1)),
    VisionConfig(3, 24, 32, 2, 25, (0, 2), 4, 2, 2, 24),
    TOKENS,
)
# (images as grids, tokens before, tokens of the instruction): two images, non-square ones, none as large as another's
SAMPLES = [([(1, 4, 6)], 1, 5), ([(1, 2, 6), (1, 6, 2)], 3, 8), ([(1, 6, 4)], 2, 3), ([(1, 4, 4)], 1, 9)]
LENGTH = 40


def build(rngs):
    return Qwen3VL(CONFIG, rngs)


def params_of(build):
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda key: module.init(build, key), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.25, x.shape), jnp.float32), abstract)


PARAMS = params_of(build)


@jax.jit
def features(arrays):
    """Image and text feature [B, H] and hidden states [B, S, H]."""
    hidden = module.bind(build)(PARAMS).encode(arrays).hidden
    return *pooled_features(hidden, arrays["input_ids"], TOKENS), hidden


def prompt(sample, rng) -> list[int]:
    """A prompt: some text, the images with their marks, the instruction, the end."""
    grids, before, instruction = sample
    ids = [TOKENS.im_start, *rng.integers(0, 90, before)]
    for _, rows, columns in grids:
        ids += [TOKENS.vision_start, *[TOKENS.image] * (rows * columns // 4), TOKENS.vision_end]
    return [*ids, *rng.integers(0, 90, instruction), TOKENS.im_end]


def sample_data(which, seed=0) -> tuple[list[int], np.ndarray]:
    """Prompt and patches of `SAMPLES[which]`, the same wherever it stands in a batch."""
    rng = np.random.default_rng([seed, which])
    ids = prompt(SAMPLES[which], rng)
    count = sum(rows * columns for _, rows, columns in SAMPLES[which][0])
    return ids, rng.normal(size=(count, CONFIG.vision.patch_width)).astype(np.float32)


def batch(order, length=LENGTH, left=(), data=sample_data):
    """The layout of some samples, padded on the right, or on the left where `left` names the place in the batch."""
    ids, mask, patches, grids = np.full((len(order), length), TOKENS.pad), np.zeros((len(order), length), int), [], []
    for b, which in enumerate(order):
        own, pixels = data(which)
        place = slice(length - len(own), length) if b in left else slice(0, len(own))
        ids[b, place], mask[b, place] = own, 1
        patches.append(pixels)
        grids += SAMPLES[which][0]
    return arrays_of(ids, mask, np.concatenate(patches), grids, CONFIG)


def close(value, expected, tolerance=2e-5):
    np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# --- Positions, worked out by hand -----------------------------------------------------------------------------------

IDS = [7, 90, *[92] * 6, 91, 8, 90, *[92] * 2, 91, 9, 95]
GRIDS = [(1, 4, 6), (1, 4, 2)]
EXPECTED = np.array(
    [
        [0, 1, *[2] * 6, 5, 6, 7, *[8] * 2, 10, 11, 12],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9, 10, 11, 12],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 12],
    ]
)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 4), (4, 0), (2, 3)])
def test_positions_of_two_images_between_text(left, right):
    ids = np.array([[TOKENS.pad] * left + IDS + [TOKENS.pad] * right])
    mask = np.array([[0] * left + [1] * len(IDS) + [0] * right])
    position = token_positions(ids, mask, GRIDS, CONFIG)
    assert position.shape == (1, 3, len(IDS) + left + right)
    np.testing.assert_array_equal(position[0][:, left : left + len(IDS)], EXPECTED)
    assert (position[0][:, mask[0] == 0] == 1).all()


def test_images_of_several_samples_are_taken_in_reading_order():
    ids, mask = np.array([IDS, IDS]), np.ones((2, len(IDS)), int)
    swapped = [(1, 6, 4), (1, 2, 4)]
    position = token_positions(ids, mask, [*GRIDS, *swapped], CONFIG)
    np.testing.assert_array_equal(position[0], EXPECTED)
    np.testing.assert_array_equal(position[1][1][2:8], [2, 2, 3, 3, 4, 4])
    np.testing.assert_array_equal(position[1][:, -1], [12, 12, 12])


def test_positions_in_the_learned_table():
    """A table of side 5 under 4 x 6 patches: rows stand at 0, 4/3, 8/3, 4, columns at 0, 0.8, 1.6, ..., 4."""
    arrays = batch([0])
    table = np.arange(25.0)  # entry 5 r + c: linear, so interpolation gives 5 * row + column exactly
    found = (table[arrays["table_index"][0]] * arrays["table_weight"][0]).sum(-1)
    rows, columns = arrays["row_column"][0].T
    np.testing.assert_allclose(found, 5 * rows * 4 / 3 + columns * 0.8, rtol=1e-5)
    # Merge blocks of 2 x 2 stand together, in the order of the tokens they become.
    np.testing.assert_array_equal(rows[:8], [0, 0, 1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(columns[:8], [0, 1, 0, 1, 2, 3, 2, 3])


# --- What features depend on -----------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(order=st.permutations(range(4)), left=st.sets(st.integers(0, 3)))
def test_features_do_not_depend_on_place_neighbours_or_padding_side(order, left):
    image, text, _ = features(batch([0, 1, 2, 3]))
    moved_image, moved_text, _ = features(batch(order, left=left))
    close(moved_image, image[np.array(order)])
    close(moved_text, text[np.array(order)])


def test_features_do_not_depend_on_the_length_of_the_padding():
    image, text, hidden = features(batch([0, 1, 2, 3]))
    longer = features(batch([0, 1, 2, 3], LENGTH + 9))
    close(longer[0], image)
    close(longer[1], text)
    assert hidden.shape[1] == LENGTH


@pytest.mark.parametrize("which", range(4))
def test_features_alone_equal_those_in_a_batch(which):
    """Alone, a sample has fewer views, smaller padded images and other grids in its tables."""
    image, text, _ = features(batch([0, 1, 2, 3]))
    alone = features(batch([which]))
    close(alone[0][0], image[which])
    close(alone[1][0], text[which])


def test_every_image_of_a_sample_counts_and_only_there():
    def other_pixels(which):
        ids, patches = sample_data(which)
        if which == 1:
            patches[12:] += 1  # the second image, behind the first one's 12 patches
        return ids, patches

    before, after = features(batch([0, 1, 2, 3])), features(batch([0, 1, 2, 3], data=other_pixels))
    unchanged = np.array([0, 2, 3])
    close(after[2][unchanged], before[2][unchanged])
    assert min(np.abs(after[i][1] - before[i][1]).max() for i in (0, 1)) > 0.01


def test_image_feature_does_not_depend_on_the_instruction():
    def other_words(which):
        ids, patches = sample_data(which)
        return [*ids[:-4], *((np.array(ids[-4:-1]) + 11) % 90), TOKENS.im_end], patches

    before, after = features(batch([0, 2, 3])), features(batch([0, 2, 3], data=other_words))
    close(after[0], before[0])
    assert np.abs(after[1] - before[1]).max(-1).min() > 0.01


def test_an_empty_or_missing_span_gives_zeros():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 24)), jnp.float32)
    ids = np.array([[90, 91, 95, 96, 96, 96], [1, 2, 3, 4, 5, 6], [90, 92, 91, 4, 91, 95]])
    image, text = pooled_features(hidden, jnp.asarray(ids), TOKENS)
    np.testing.assert_array_equal(image[:2], 0)
    np.testing.assert_array_equal(text[:2], 0)
    close(image[2], hidden[2, 1])
    close(text[2], hidden[2, 3:5].mean(0))  # up to im_end, from the end of the only view


def test_the_image_feature_is_the_mean_of_all_views():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 24)), jnp.float32)
    ids = np.array([[90, 92, 92, 91, 90, 92, 91, 4, 95], [90, 92, 91, 4, 90, 92, 92, 95, 96]])
    image, text = pooled_features(hidden, jnp.asarray(ids), TOKENS)
    close(image[0], hidden[0, [1, 2, 5]].mean(0))
    close(text[0], hidden[0, 7])
    close(image[1], hidden[1, 1])  # the second view never ends
    close(text[1], hidden[1, 3:7].mean(0))


# --- Precision and memory --------------------------------------------------------------------------------------------


def test_bf16_runs_and_stays_close():
    arrays = batch([0, 1, 2, 3])
    exact = module.bind(build)(PARAMS).encode(arrays)
    rough = module.bind(build)(PARAMS).encode(arrays, jnp.bfloat16)
    seen = arrays["attention_mask"]
    for name in ("hidden", "normed"):
        value, expected = getattr(rough, name), np.asarray(getattr(exact, name))[seen]
        assert value.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(value, np.float32)[seen] - expected) / np.linalg.norm(expected)
        assert 1e-4 < error < 0.05


def test_remat_changes_neither_features_nor_gradients():
    arrays = batch([0, 1, 2, 3])

    def loss(params, remat):
        hidden = module.bind(build)(params).encode(arrays, remat=remat).hidden
        return jnp.square(hidden[arrays["attention_mask"]]).mean()

    plain, remat = (jax.value_and_grad(loss)(PARAMS, remat) for remat in (False, True))
    close(remat[0], plain[0])
    jax.tree.map(close, remat[1], plain[1])


def test_without_deepstack_taps():
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, deepstack_visual_indexes=()))
    plain = lambda rngs: Qwen3VL(config, rngs)  # noqa: E731
    params = params_of(plain)
    assert "deepstack_mergers" not in params["visual"]
    hidden = module.bind(plain)(params).encode(batch([0, 1])).hidden
    assert hidden.shape == (2, LENGTH, 24)
    assert np.isfinite(hidden).all()


def test_pixels_are_mapped_to_minus_one_to_one():
    pixels = jnp.array([[0, 51, 255]], jnp.uint8)
    close(normalised(pixels, jnp.float32), np.array([[-1, -0.6, 1]]))
    floats = jnp.array([[0.5]], jnp.float32)
    np.testing.assert_array_equal(normalised(floats, jnp.float32), floats)


# --- Inputs that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grids", "patches", "message"),
    [
        ([(1, 4, 6)], 23, "the grids hold 24 patches, got 23"),
        ([(1, 4, 4)], 16, "image tokens do not match"),
        ([(1, 4, 6), (1, 2, 2)], 28, "1 images have no image tokens"),
        ([(1, 3, 8)], 24, "multiples of 2"),
        ([(2, 4, 3)], 24, "only still images"),
        ([], 0, "at least one image"),
    ],
)
def test_images_that_do_not_fit_the_prompt_are_refused(grids, patches, message):
    ids, _ = sample_data(0)
    pixels = np.zeros((patches, CONFIG.vision.patch_width), np.float32)
    with pytest.raises(ValueError, match=message):
        arrays_of(np.array([ids]), np.ones((1, len(ids)), int), pixels, grids, CONFIG)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TextConfig(mrope_section=(24, 20, 24)), "must sum to head_dim / 2 = 64"),
        (lambda: TextConfig(num_key_value_heads=3), "multiple of num_key_value_heads"),
        (lambda: VisionConfig(num_position_embeddings=2305), "must be a square"),
        (lambda: VisionConfig(deepstack_visual_indexes=(24,)), r"must lie in \[0, 24\)"),
        (lambda: Qwen3VLConfig(TextConfig(hidden_size=1024)), "must equal text.hidden_size 1024"),
        (lambda: Qwen3VLConfig(TextConfig(num_hidden_layers=2)), "more deepstack taps"),
        (lambda: Qwen3VLConfig.from_hf({"model_type": "qwen2_vl"}), "expected model_type 'qwen3_vl'"),
    ],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
