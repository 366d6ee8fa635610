"""Low-rank factors: against merged kernels, and what is trained."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import model, policy_and_batch

from mem0_jax import tree
from mem0_jax.distributed.sharding import STANDARD, placements
from mem0_jax.policies.mem0 import Mem0
from mem0_jax.train.config import SettingsError
from mem0_jax.train.lora import LoraConfig, LoraPolicy, LowRank

QUICK = {"xla_backend_optimization_level": 0}
KERNELS = (r"backbone/language_model/layers/.*_proj/kernel", r"memory/.*kernel")
EVERYWHERE = LoraConfig(rank=2, alpha=3.0, kernels=KERNELS)


def disturbed(params):
    """Factors `b` that are not zero any more."""
    flat = tree.flatten(params)
    for number, path in enumerate(flat):
        if path.endswith("lora_b"):
            flat[path] = 0.1 * jax.random.normal(jax.random.key(number), flat[path].shape)
    return tree.unflatten(flat)


def test_fresh_factors_change_nothing_and_merged_ones_compute_the_same():
    given_noise, batch = policy_and_batch(lanes=2, frames=3)
    lora = LoraPolicy(given_noise, EVERYWHERE)
    base = given_noise.init(jax.random.key(1))
    run = jax.jit(lambda p: lora.loss(p, lora.init_state(2), batch, jax.random.key(0), False), compiler_options=QUICK)
    plain = jax.jit(
        lambda p: given_noise.loss(p, lora.init_state(2), batch, jax.random.key(0), False), compiler_options=QUICK
    )
    fresh = lora.adapt(base, jax.random.key(2))
    factors = [path for path in tree.flatten(fresh) if path.endswith(("lora_a", "lora_b"))]
    assert len(factors) == 2 * (7 + 10)
    assert float(run(fresh)[0]) == pytest.approx(float(plain(base)[0]), rel=1e-6)
    moved = disturbed(fresh)
    merged = lora.merge(moved)
    assert tree.flatten(merged).keys() == tree.flatten(base).keys()
    adapted, expected = run(moved), plain(merged)
    assert float(adapted[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert float(adapted[0]) != pytest.approx(float(plain(base)[0]), rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), adapted[2], expected[2])


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.floats(0.1, 8), st.integers(0, 2**31))
def test_the_product_is_that_of_the_merged_kernel(inputs, outputs, rank, scale, seed):
    rng = np.random.default_rng(seed)
    kernel, a, b = (rng.normal(size=s).astype(np.float32) for s in ((inputs, outputs), (inputs, rank), (rank, outputs)))
    x, rows = rng.normal(size=(3, inputs)).astype(np.float32), rng.normal(size=(inputs, 1)).astype(np.float32)
    low = LowRank(jax.numpy.asarray(kernel), jax.numpy.asarray(a), jax.numpy.asarray(b), scale)
    np.testing.assert_allclose(jax.numpy.asarray(x) @ low[...], x @ (kernel + scale * a @ b), rtol=1e-4, atol=1e-4)
    scaled = jax.numpy.asarray(x) @ (jax.numpy.asarray(rows) * low)
    np.testing.assert_allclose(scaled, x @ (rows * (kernel + scale * a @ b)), rtol=1e-4, atol=1e-4)


def test_factors_lie_on_a_mesh_like_their_kernels():
    policy = LoraPolicy(Mem0(model()), EVERYWHERE)
    abstract = jax.eval_shape(policy.init, jax.random.key(0))
    placed = placements(abstract, policy.logical_axes, STANDARD, {"fsdp": 2, "tensor": 2})
    stem = "backbone/language_model/layers/mlp/up_proj/"
    kernel, a, b = (placed[stem + leaf] for leaf in ("kernel", "lora_a", "lora_b"))
    assert (kernel.axes, a.axes, b.axes) == (
        ("layers", "embed", "mlp"),
        ("layers", "embed", "small"),
        ("layers", "small", "mlp"),
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank": 0}, "rank >= 1"),
        ({"alpha": 0.0}, "alpha > 0"),
        ({"kernels": ()}, "at least one pattern"),
        ({"kernels": ("backbone/language_model/layers/nothing",)}, "match no parameter"),
        ({"kernels": ("action/.*bias",)}, "only kernels can be adapted, not action/"),
    ],
)
def test_impossible_adaptations_are_named(config, message):
    with pytest.raises((SettingsError, tree.TreeError), match=message):
        LoraPolicy(Mem0(model()), LoraConfig(**config))
