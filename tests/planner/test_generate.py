"""Generation equals Hugging Face's token for token, whatever else is in the batch; and what must fail does."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_models
from hypothesis import given
from hypothesis import strategies as st
from random_models import BOUNDS, CONFIGS, prompts

from mem0_jax.backbones.qwen3_vl import decode
from mem0_jax.backbones.qwen3_vl.decode import take_apart
from mem0_jax.backbones.qwen3_vl.generate import ContextError, GenerationError, Generator, Prompt, Settings
from mem0_jax.backbones.qwen3_vl.images import PixelBounds, fitted_size, image_patches, most_tokens
from mem0_jax.errors import UserError
from mem0_jax.nn.int8 import quantized
from mem0_jax.tree import flatten, unflatten

SEED, NEW = 1, 40
GOLDEN = dict(np.load(Path(__file__).parent / "assets" / "generation.npz"))
ASKED = prompts(SEED)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def generators():
    return {name: random_models.generator(name, SEED) for name in CONFIGS}


def expected(name: str) -> list[tuple[int, ...]]:
    return [tuple(GOLDEN[f"{name}/answer_{i}"].tolist()) for i in range(len(ASKED))]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_hugging_face(name, generators):
    pieces = [""] * len(ASKED)

    def told(number: int, piece: str) -> None:
        pieces[number] += piece

    answers = generators[name].generate(ASKED, Settings(max_tokens=NEW), told)
    assert [answer.tokens for answer in answers] == expected(name)
    assert [answer.text for answer in answers] == pieces
    assert not any(answer.finished for answer in answers)


def test_an_answer_does_not_depend_on_the_batch(generators):
    generator, settings = generators["tied"], Settings(max_tokens=NEW)
    alone = generator.generate([ASKED[1]], settings)[0]
    assert alone.tokens == expected("tied")[1]
    drawn = Settings(max_tokens=20, temperature=1.0, top_p=0.9, top_k=50, seed=7)
    together = generator.generate(ASKED, [settings, drawn, Settings(max_tokens=3), settings])
    assert [len(answer.tokens) for answer in together] == [NEW, 20, 3, NEW]
    assert together[0].tokens == expected("tied")[0]
    assert together[1] == generator.generate([ASKED[1]], drawn)[0]
    assert together[1].tokens != alone.tokens[:20]


class PlaceOff(decode.Decoder):
    def _turn(self, weights, cache, progress):
        return super()._turn(weights, cache, progress._replace(place=progress.place + 1))


class PositionByLength(decode.Decoder):
    def _turn(self, weights, cache, progress):
        place = progress.length + progress.place - progress.start
        return super()._turn(weights, cache, progress._replace(position=place))


class NoDeepstack(decode.Decoder):
    def _see(self, weights, image, *, rows):
        return super()._see(weights, image, rows=rows)[:, :1]


@pytest.mark.parametrize("mutant", [PlaceOff, PositionByLength, NoDeepstack])
def test_mutants_answer_otherwise(mutant, monkeypatch):
    monkeypatch.setattr(decode, "Decoder", mutant)
    answer = random_models.generator("tied", SEED).generate([ASKED[3]], Settings(max_tokens=NEW))[0]
    assert answer.tokens != expected("tied")[3]


@pytest.mark.parametrize("name", CONFIGS)
def test_images_are_cut_as_hugging_face_does(name):
    for number, image in enumerate(image for prompt in ASKED for image in prompt.images):
        patches, grid = image_patches(image, CONFIGS[name].vision, BOUNDS[name])
        assert grid == tuple(GOLDEN[f"{name}/grid_{number}"])
        np.testing.assert_array_equal(patches, GOLDEN[f"{name}/patches_{number}"])


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300_000), st.integers(0, 300_000))
def test_fitted_sizes_keep_their_bounds(height, width, least, more):
    bounds, side = PixelBounds(least, least + more), 32
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(UserError, match="ratio"):
            fitted_size(height, width, side, bounds)
        return
    rows, columns = fitted_size(height, width, side, bounds)
    assert rows % side == columns % side == 0 < min(rows, columns)
    # Where whole tokens meet no bound, it is passed by less than one row and one column of them, or by a strip.
    over = rows * columns > bounds.max_pixels
    assert not over or min(rows, columns) == side or (rows - side) * (columns - side) < bounds.min_pixels
    assert (rows + side) * (columns + side) > bounds.min_pixels
    assert rows * columns <= most_tokens(side, bounds) * side**2


def test_control_tokens_and_texts_end_answers(generators):
    generator, stops = generators["tied"], (295, 296)
    hot = [Settings(max_tokens=60, temperature=100.0, seed=seed) for seed in range(8)]
    answers = generator.generate([ASKED[2]] * 8, hot)
    ended = [answer for answer in answers if answer.finished]
    assert ended
    for answer in answers:
        assert answer.finished == (answer.tokens[-1] in stops)
        assert not set(answer.tokens[:-1]) & set(stops)
        assert "<|im_end|>" not in answer.text
    whole = generator.generate([ASKED[2]], Settings(max_tokens=NEW))[0]
    word, pieces = whole.text.split()[9], []
    cut = generator.generate(
        [ASKED[2]], Settings(max_tokens=NEW, stop=(word + " ",)), lambda _, piece: pieces.append(piece)
    )[0]
    assert cut.finished
    assert cut.text == "".join(pieces) == whole.text[: whole.text.index(word + " ")]


def test_the_listener_can_end_an_answer(generators):
    answer = generators["tied"].generate([ASKED[2]], Settings(max_tokens=NEW), lambda number, piece: False)[0]
    assert len(answer.tokens) == 1
    assert not answer.finished


def test_draws_follow_the_probabilities():
    logits = jnp.tile(jnp.log(jnp.array([0.05, 0.5, 0.15, 0.3])), (4000, 1))
    every = jnp.ones(4000)

    def shares(**settings):
        sampling = decode.Sampling(
            temperature=settings.get("temperature", 1.0) * every,
            top_p=settings.get("top_p", 1.0) * every,
            top_k=jnp.full(4000, settings.get("top_k", 4)),
            seed=jnp.arange(4000, dtype=jnp.uint32),
        )
        return np.bincount(decode.choose(logits, sampling, jnp.int32(3)), minlength=4) / 4000

    np.testing.assert_allclose(shares(), [0.05, 0.5, 0.15, 0.3], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0, 0.625, 0, 0.375], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.81), [0, 0.526, 0.158, 0.316], atol=0.03)  # 0.5 + 0.3 < 0.81
    np.testing.assert_allclose(shares(top_p=0.79), [0, 0.625, 0, 0.375], atol=0.03)
    np.testing.assert_allclose(shares(top_k=3, top_p=0.6), [0, 0.625, 0, 0.375], atol=0.03)
    cold = np.array([0.05, 0.5, 0.15, 0.3]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), cold / cold.sum(), atol=0.03)
    np.testing.assert_array_equal(shares(temperature=0.0), [0, 1, 0, 0])


def test_eight_bit_weights_are_near_the_others():
    kernel = jax.random.normal(jax.random.key(0), (96, 40)) * jnp.logspace(-3, 1, 40)
    x, small = jax.random.normal(jax.random.key(1), (5, 96)), quantized(kernel)
    assert jnp.abs(small.values * small.scale - kernel).max(0).tolist() <= (0.501 * small.scale).tolist()
    product = x @ small
    assert product.dtype == x.dtype
    np.testing.assert_allclose(product, x @ (small.values * small.scale), rtol=1e-4, atol=1e-4)
    assert quantized(jnp.zeros((3, 2))).scale.tolist() == [1, 1]


def test_eight_bit_models_answer_as_their_rounded_weights_do():
    """Rounded in `take_apart`, or rounded and widened again beforehand: the same tokens, and not those of before."""
    params = random_models.params(CONFIGS["tied"], SEED)
    layers, rounded_too = flatten(params["language_model"]["layers"]), {}
    for path, leaf in layers.items():
        if path.endswith("/kernel"):
            small = [quantized(layer) for layer in leaf]
            leaf = np.stack([one.values * one.scale for one in small])
        rounded_too[path] = leaf
    params["language_model"]["layers"] = unflatten(rounded_too)
    widened = Generator(CONFIGS["tied"], take_apart(params), random_models.tokenizer(), bounds=BOUNDS["tied"])
    small = random_models.generator("tied", SEED, int8=True)
    answers = [each.generate(ASKED, Settings(max_tokens=20)) for each in (small, widened)]
    assert answers[0] == answers[1]
    assert [answer.tokens for answer in answers[0]] != [tokens[:20] for tokens in expected("tied")]


def test_bfloat16_answers(generators):
    half = random_models.generator("untied", SEED, dtype=jnp.bfloat16)
    answer = half.generate(ASKED[:1], Settings(max_tokens=4))[0]
    assert answer.tokens[:1] == expected("untied")[0][:1]


def test_what_cannot_be_answered_is_refused_by_name(generators):
    generator = random_models.generator("tied", SEED, context=40)
    with pytest.raises(ContextError, match=r"prompt of 30 tokens .* up to 11 .* context of 40"):
        generator.encode(ASKED[2], Settings(max_tokens=11))
    assert len(generator.generate([ASKED[2]])[0].tokens) == 10  # what the context leaves
    with pytest.raises(GenerationError, match=r"1 marks <\|image_pad\|> for 0 images"):
        generator.encode(Prompt(ASKED[0].text))
    with pytest.raises(GenerationError, match="empty"):
        generator.encode(Prompt(""))
    with pytest.raises(UserError, match="uint8"):
        generator.encode(Prompt(ASKED[0].text, (np.zeros((40, 40, 3), np.float32),)))
    with pytest.raises(GenerationError, match=r"max_tokens .* temperature .* top_p .* top_k .* stop"):
        Settings(max_tokens=0, temperature=-1, top_p=0, top_k=-1, stop=("",))
    assert generators["tied"].generate([]) == []


def test_nothing_is_compiled_after_the_warm_up(compiled):
    """Prompts of any length, with any images, alone or together, drawn or not, with answers beyond all sizes."""
    config, bounds = CONFIGS["untied"], PixelBounds(2048, 4096)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_hidden_layers=2))
    weights = take_apart(random_models.params(config, SEED))
    generator = Generator(config, weights, random_models.tokenizer(), bounds=bounds, context=300, batch=2)
    generator.warm_up()
    rng, image = np.random.default_rng(3), random_models.IMAGE
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(40, 72), (7, 9), (300, 400), (1, 199)]]
    many, one = Prompt("w1 " + image * 4, tuple(pictures)), Prompt(image, (pictures[2],))
    short, long = (Prompt("w7 " * count) for count in (20, 290))
    hot = Settings(max_tokens=20, temperature=1.0, top_k=3, seed=1)
    compiled.clear()
    for asked in ([one], [many], [short], [long], [many, short], [short, one, long]):
        generator.generate(asked, Settings(max_tokens=5))
    generator.generate([many, one], [hot, Settings(max_tokens=3)])
    generator.generate([short], Settings(max_tokens=275))
    generator.generate([short, long], [Settings(max_tokens=275), Settings(max_tokens=10)])
    assert compiled == []


def test_more_prompts_than_are_answered_together_wait(generators):
    settings, few = Settings(max_tokens=8), random_models.generator("tied", SEED, batch=3)
    said: dict[int, str] = {}
    answers = few.generate(ASKED, settings, lambda number, piece: said.update({number: said.get(number, "") + piece}))
    assert answers == generators["tied"].generate(ASKED, settings)
    assert [said[number] for number in range(4)] == [answer.text for answer in answers]
