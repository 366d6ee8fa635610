"""Resizing, colour jitter and action chunks."""

import numpy as np
import pytest
from episodes import ASSETS
from hypothesis import given, settings
from hypothesis import strategies as st

from mem0_jax.data.transforms import ColorJitter, action_chunk, adjust_colors
from mem0_jax.resize import resize

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def golden():
    with np.load(ASSETS / "deploy/golden.npz") as file:
        return dict(file)


def test_resize_equals_deployment(golden):
    np.testing.assert_array_equal(resize(golden["image_rgb"], (224, 224), "bicubic"), golden["image_224"])
    assert resize(golden["image_rgb"], (240, 320), "bicubic") is golden["image_rgb"]


def test_training_resize_is_antialiased_bilinear():
    """Halving with the triangle filter of radius 2 weighs 1, 3, 3, 1 pixels along each side."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    weights = np.outer([1, 3, 3, 1], [1, 3, 3, 1])[..., None] / 64
    out = resize(picture, (8, 12), "bilinear")
    for i in range(1, 7):
        for j in range(1, 11):
            block = picture[2 * i - 1 : 2 * i + 3, 2 * j - 1 : 2 * j + 3]
            assert np.abs(out[i, j] - (block * weights).sum((0, 1))).max() <= 1


def test_resize_refuses_other_arrays():
    with pytest.raises(ValueError, match=r"float64 \[4, 4, 3\]; expected uint8"):
        resize(np.zeros((4, 4, 3)), (2, 2), "bicubic")


def slow_jitter(picture, b, c, s):
    x = picture.astype(np.float64) * b
    x = c * x + (1 - c) * (x @ LUMA).mean()
    return np.clip(s * x + (1 - s) * (x @ LUMA)[..., None], 0, 255)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.lists(st.floats(0.5, 1.5), min_size=3, max_size=3))
def test_one_pass_jitter_equals_the_three_steps(seed, factors):
    picture = np.random.default_rng(seed).integers(0, 256, (12, 17, 3)).astype(np.uint8)
    out = adjust_colors(picture, np.array(factors))
    assert out.dtype == np.uint8
    assert np.abs(out - slow_jitter(picture, *factors)).max() <= 1.0


def test_jitter_draws_are_in_range_and_repeatable():
    jitter = ColorJitter(0.1, 0.2, 0)
    factors = jitter.draw(np.random.default_rng(3), 1000)
    assert np.array_equal(factors, jitter.draw(np.random.default_rng(3), 1000))
    spread = np.abs(factors - 1).max(0)
    assert (spread <= [0.1, 0.2, 0]).all()
    assert (spread >= [0.095, 0.19, 0]).all()
    with pytest.raises(ValueError, match=r"jitter contrast is 1\.5"):
        ColorJitter(contrast=1.5)


@given(st.integers(1, 40), st.integers(1, 30), st.data())
def test_action_chunk_clamps_to_the_episode(length, horizon, data):
    actions = np.arange(length * 2, dtype=np.float32).reshape(length, 2)
    t = data.draw(st.integers(0, length - 1))
    chunk, pad = action_chunk(actions, t, horizon)
    for k in range(horizon):
        np.testing.assert_array_equal(chunk[k], actions[min(t + k, length - 1)])
        assert pad[k] == (t + k >= length)
    chunks, pads = action_chunk(actions, np.arange(length), horizon)
    np.testing.assert_array_equal(chunks[t], chunk)
    np.testing.assert_array_equal(pads[t], pad)


def test_action_chunk_outside_the_episode():
    with pytest.raises(IndexError, match="frame 5 is outside the episode's 5 frames"):
        action_chunk(np.zeros((5, 2)), 5, 3)
