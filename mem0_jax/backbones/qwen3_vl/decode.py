"""Decoding with a cache of keys and values, as pure functions with static shapes.

The images of a prompt are seen (`see`) and the prompts of a batch, padded on the right to one length, are read
(`prefill`) one by one, so that the number of either needs no programs of its own; then all samples advance together, a
token a turn (`decode`). Token number n of every answer lies at the same place of the cache, after the padding of the
longest prompt, and places of padding are masked: so a turn writes one slice, and rotary positions, which know nothing
of places, go on from each prompt's own largest position + 1.

Axis letters: B samples, S tokens of a prompt, M places of the cache, T tokens of a call, P patches of an image, C
numbers of a patch, R rows of image tokens, K deepstack taps, H width, V vocabulary.
Source: the behaviour of transformers 4.57.1 and 5 (`generate` of Qwen3-VL).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mem0_jax.backbones.qwen3_vl.config import Qwen3VLConfig
from mem0_jax.backbones.qwen3_vl.model import normalised
from mem0_jax.backbones.qwen3_vl.vision import VisionTower
from mem0_jax.nn import module, rope
from mem0_jax.nn.decoder import KeysValues, Layer
from mem0_jax.nn.int8 import quantized
from mem0_jax.nn.layers import RMSNorm
from mem0_jax.nn.numbers import same_numbers
from mem0_jax.tree import flatten, unflatten

Array = jax.Array
Weights = dict[str, Any]
Cache = tuple[KeysValues, ...]  # one a layer, [B, M, G, D]
TURNS = 16  # tokens of one call of `decode`; between calls the host looks at them


class Sampling(NamedTuple):
    """How the next token is chosen, for each sample.

    Attributes:
        temperature: float32 [B]; 0 takes the likeliest token.
        top_p: float32 [B]; only the likeliest tokens that together reach this probability are drawn from.
        top_k: int32 [B]; only so many of the likeliest tokens are drawn from.
        seed: uint32 [B]; what is drawn depends on it and on the number of the token, not on the rest of the batch.
    """

    temperature: Array | np.ndarray
    top_p: Array | np.ndarray
    top_k: Array | np.ndarray
    seed: Array | np.ndarray


class Progress(NamedTuple):
    """Where the answers of a batch are.

    Attributes:
        token: int32 [B], the last tokens chosen, which are not in the cache yet.
        position: int32 [B], their rotary positions.
        length: int32 [B], tokens of the prompts.
        left: int32 [B], tokens that may follow; 0 where the answer is complete.
        start, place: int32 [], where in the cache the answers begin, and where `token` goes.
    """

    token: Array | np.ndarray
    position: Array | np.ndarray
    length: Array | np.ndarray
    left: Array | np.ndarray
    start: Array | np.ndarray
    place: Array | np.ndarray


def take_apart(params: dict[str, Any], *, int8: bool = False) -> Weights:
    """Parameters of a `Qwen3VL` with one tree a text layer in place of stacked ones.

    A turn reads every weight once and does little with it, so a scan's copy of each layer would double its time.

    Args:
        params: the text layers are removed from it one leaf after the other, so that both forms of all of them are
            never in memory together; pass a copy of the dicts to keep it.
        int8: round the kernels of the text layers, see `nn.int8`. The token table and the head stay as they are.
    """
    stacked = flatten(params["language_model"].pop("layers"))
    layers: list[dict[str, Any]] = []
    for path in list(stacked):
        leaf = stacked.pop(path)
        layers = layers or [{} for _ in range(len(leaf))]
        round_it = int8 and path.endswith("/kernel")
        for number, layer in enumerate(layers):
            layer[path] = _layer_of(leaf, number, round_it)
    return params | {"language_model": params["language_model"] | {"layers": [unflatten(layer) for layer in layers]}}


@partial(jax.jit, static_argnames="round_it")
def _layer_of(leaf: Array, number: Array | int, round_it: bool) -> Any:
    layer = jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)
    return quantized(layer) if round_it else layer


class Decoder:
    """The functions of one configuration; `weights` are of `take_apart`.

    Attributes:
        config: sizes.
        stops: ids of tokens that end an answer.
        dtype: compute dtype, and that of the cache. Logits are float32.
    """

    def __init__(self, config: Qwen3VLConfig, stops: tuple[int, ...], dtype: Any = jnp.float32):
        self.config, self.stops, self.dtype = config, stops, dtype
        self._tower = module.bind(lambda rngs: VisionTower(config.vision, rngs))
        self._layer = module.bind(lambda rngs: Layer(config.text, rngs, norms=True))
        self._norm = module.bind(lambda _: RMSNorm(config.text.hidden_size, eps=config.text.rms_norm_eps))
        self.see = same_numbers(jax.jit(self._see, static_argnames="rows"))
        self.prefill = same_numbers(jax.jit(self._prefill, static_argnames="places"))
        self.decode = same_numbers(jax.jit(self._decode, donate_argnames="cache"))
        self.grow = same_numbers(jax.jit(_grow, static_argnames=("size", "axis")))
        self.put = same_numbers(jax.jit(_put, donate_argnums=0))

    def _see(self, weights: Weights, image: Mapping[str, Array], *, rows: int) -> Array:
        """Features [rows, 1 + K, H] of one image's patches, patch_mask, row_column, table_index and table_weight
        [1, P, ...]: its tokens and their deepstack features, zeros where it has fewer."""
        arrays = dict(image) | {"grid_id": jnp.zeros(1, jnp.int32)}
        tokens, deepstack = self._tower(weights["visual"])(normalised(arrays.pop("patches"), self.dtype), arrays)
        features = tokens if deepstack is None else jnp.concatenate([tokens, deepstack[:, 0]])
        return _grow(jnp.moveaxis(features, 0, 1), rows, 0)

    def _prefill(
        self,
        weights: Weights,
        prompt: Mapping[str, Array],
        seen: Array,
        limit: Array,
        sampling: Sampling,
        *,
        places: int,
    ) -> tuple[Array, Progress, Cache]:
        """Reads prompts and chooses the first token of each answer.

        Args:
            weights: see above.
            prompt: input_ids, image_row [B, S] (the row of `seen` where a token is one of an image, else -1), position
                [B, 3, S], length [B]; all int32.
            seen: features of `see` of all images, [R, 1 + K, H].
            limit: int32 [B], tokens that each answer may have, 0 for samples that only fill up a batch.
            sampling: see there.
            places: of the cache, more than S.

        Returns:
            Logits [B, V] after the last token of each prompt, and the progress and cache to go on with.
        """
        length, row = prompt["length"], prompt["image_row"]
        batch, tokens = row.shape
        x = self._embedded(weights, prompt["input_ids"])
        is_image, features = (row >= 0)[..., None], seen.astype(self.dtype)
        # An image's tokens are what the tower saw; row -1 picks some row, which `where` drops.
        x = jnp.where(is_image, features[row, 0], x)
        angle = self._angle(jnp.moveaxis(prompt["position"], 1, 0))
        # Prompts are padded behind, so their tokens see neither padding nor what follows them.
        valid = jnp.arange(tokens) < length[:, None]
        mask = jnp.tril(jnp.ones((tokens, tokens), bool)) & valid[:, None]
        cache = []
        for number, layer in enumerate(weights["language_model"]["layers"]):
            x, kept = self._layer(layer)(x, angle, mask)
            cache.append(_grow(kept, places, 1))
            if number + 1 < features.shape[1]:  # deepstack: the tower's earlier layers join the first text layers
                x = x + jnp.where(is_image, features[row, number + 1], 0)
        logits = self._logits(weights, x[jnp.arange(batch), length - 1])
        # Images take fewer positions than tokens: an answer goes on after the greatest of any axis.
        following = jnp.where(valid[:, None], prompt["position"], -1).max((1, 2)) + 1
        token = choose(logits, sampling, jnp.int32(0))
        progress = Progress(token, following, length, self._left(limit, token), jnp.int32(tokens), jnp.int32(tokens))
        return logits, progress, tuple(cache)

    def _decode(
        self, weights: Weights, cache: Cache, progress: Progress, sampling: Sampling
    ) -> tuple[Array, Progress, Cache]:
        """Up to `TURNS` tokens more, fewer where all answers are complete or the cache is full (see `grow`).

        Returns:
            int32 [B, TURNS], -1 where an answer was complete before or there was no turn; progress and cache.
        """
        batch, places = progress.token.shape[0], cache[0].keys.shape[1]

        def unfinished(carry):
            turn, _, progress, _ = carry
            return (turn < TURNS) & (progress.left > 0).any() & (progress.place < places)

        def turn_once(carry):
            turn, said, progress, cache = carry
            logits, cache = self._turn(weights, cache, progress)
            # Complete answers run along, for the batch's shape is fixed, and say nothing.
            running = progress.left > 0
            token = choose(logits, sampling, progress.place - progress.start + 1)
            said = said.at[:, turn].set(jnp.where(running, token, -1))
            progress = progress._replace(
                token=token,
                position=progress.position + 1,
                left=self._left(progress.left, token),
                place=progress.place + 1,
            )
            return turn + 1, said, progress, cache

        said = jnp.full((batch, TURNS), -1, jnp.int32)
        return jax.lax.while_loop(unfinished, turn_once, (jnp.int32(0), said, progress, cache))[1:]

    def _turn(self, weights: Weights, cache: Cache, progress: Progress) -> tuple[Array, Cache]:
        # Answers are written behind the longest prompt: a shorter one has a gap that nobody may see.
        place = jnp.arange(cache[0].keys.shape[1])
        answered = (place >= progress.start) & (place <= progress.place)
        mask = ((place < progress.length[:, None]) | answered)[:, None]
        x = self._embedded(weights, progress.token[:, None])
        angle = self._angle(jnp.broadcast_to(progress.position[:, None], (3, len(progress.token), 1)))
        grown = []
        for layer, old in zip(weights["language_model"]["layers"], cache):
            x, new = self._layer(layer)(x, angle, mask, old, progress.place)
            grown.append(new)
        return self._logits(weights, x[:, 0]), tuple(grown)

    def _left(self, left: Array, token: Array) -> Array:
        return jnp.where(jnp.isin(token, jnp.array(self.stops)), 0, jnp.maximum(left - 1, 0))

    def _embedded(self, weights: Weights, ids: Array | np.ndarray) -> Array:
        return weights["language_model"]["embed_tokens"]["embedding"][ids].astype(self.dtype)

    def _angle(self, position: Array) -> Array:
        text = self.config.text
        return rope.mrope_angles(position, text.head_dim, text.rope_theta, text.mrope_section)

    def _logits(self, weights: Weights, x: Array) -> Array:
        x = self._norm(weights["language_model"]["norm"])(x)
        if self.config.text.tie_word_embeddings:
            form, table = "bh,vh->bv", weights["language_model"]["embed_tokens"]["embedding"]
        else:
            form, table = "bh,hv->bv", weights["lm_head"]["kernel"]
        return jnp.einsum(form, x, table.astype(x.dtype), preferred_element_type=jnp.float32)


def _grow(tree: Any, size: int, axis: int) -> Any:
    """Arrays with zeros behind, up to `size` along an axis."""

    def grown(leaf: Array) -> Array:
        return jnp.pad(leaf, [(0, size - n if i == axis else 0) for i, n in enumerate(leaf.shape)])

    return jax.tree.map(grown, tree)


def _put(tree: Any, parts: Any, at: Array) -> Any:
    """Arrays with those of `parts` in them, from row `at` on."""
    return jax.tree.map(lambda leaf, part: jax.lax.dynamic_update_slice_in_dim(leaf, part, at, 0), tree, parts)


def choose(logits: Array, sampling: Sampling, number: Array) -> Array:
    """The next token int32 [B] by float32 logits [B, V]; `number` counts the tokens of the answers.

    Temperature comes first, then top-k, then top-p among what is left (Holtzman et al., 2020), as in transformers.
    """
    likeliest = jnp.argmax(logits, -1).astype(jnp.int32)
    warm = sampling.temperature > 0

    def draw() -> Array:
        scaled = logits / jnp.where(warm, sampling.temperature, 1.0)[:, None]
        order = jnp.argsort(scaled, -1, descending=True)
        ranked = jnp.take_along_axis(scaled, order, -1)
        ranked = jnp.where(jnp.arange(logits.shape[-1]) < sampling.top_k[:, None], ranked, -jnp.inf)
        probability = jax.nn.softmax(ranked, -1)
        before = jnp.cumsum(probability, -1) - probability
        ranked = jnp.where(before < sampling.top_p[:, None], ranked, -jnp.inf)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(sampling.seed)
        rank = jax.vmap(jax.random.categorical)(keys, ranked)
        return jnp.take_along_axis(order, rank[:, None], -1)[:, 0].astype(jnp.int32)

    return jnp.where(warm, jax.lax.cond(warm.any(), draw, lambda: likeliest), likeliest)
