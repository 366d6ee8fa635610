"""Recomputation by name: equal gradients, and fewer products again the more is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mem0_jax.nn import module
from mem0_jax.nn.layers import Linear
from mem0_jax.nn.stack import REMAT, scan_layers, stacked
from mem0_jax.policies.mem0 import Mem0Config


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.layers = stacked(lambda r: Linear(4, 4, r), 6, rngs)

    def __call__(self, x, remat):
        def body(layer, x, _):
            weights = jax.nn.softmax(jnp.einsum("bsd,btd->bst", x, x))  # a product with a batch axis
            return jnp.tanh(layer(jnp.einsum("bst,btd->bsd", weights, x))), None

        return scan_layers(self.layers, body, x, remat=remat)[0]


def test_gradients_are_equal_and_products_are_recomputed_as_the_name_says():
    params, bind = module.init(Stack, jax.random.key(0)), module.bind(Stack)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    gradients, products = {}, {}
    for remat in (False, True, *REMAT):
        gradient = jax.grad(lambda p, remat=remat: jnp.sum(bind(p)(x, remat) ** 2))
        gradients[remat] = gradient(params)["layers"]["kernel"]
        products[remat] = str(jax.make_jaxpr(gradient)(params)).count("dot_general[")
    for remat in (True, *REMAT):
        np.testing.assert_allclose(gradients[remat], gradients[False], rtol=1e-5, atol=1e-7)
    assert products[True] == products["nothing"]
    assert products["nothing"] > products["weight_products"] > products["products"] == products[False]
    with pytest.raises(KeyError, match="everything"):
        bind(params)(x, "everything")


def test_the_configuration_names_what_is_kept():
    assert not Mem0Config().recompute
    assert Mem0Config(remat=True).recompute == "nothing"
    assert Mem0Config(remat=True, remat_keep="products").recompute in REMAT
