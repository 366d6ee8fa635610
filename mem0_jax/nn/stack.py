"""Repeated layers as one layer with a leading axis, applied by `jax.lax.scan`.

Scanning keeps programs small (compile time and size do not grow with depth) and gives one parameter leaf per kind.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from mem0_jax.nn.partition import by_samples

# What recomputation keeps from the forward pass: nothing but a layer's input, the results of all matrix products, or of
# those with weights (the products of attention have a batch axis).
REMAT = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_saveable,
    "weight_products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
UNROLLED = 4  # stacks up to this deep compile as fast without a loop and run a quarter faster on a CPU


def stacked(build: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` copies of a module as one module whose parameters have a leading layer axis."""
    return nnx.split_rngs(splits=layers)(nnx.vmap(build, in_axes=0))(rngs)


def scan_layers(
    module: nnx.Module,
    body: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: bool | str = False,
) -> tuple[Any, Any]:
    """Runs `carry, y = body(layer, carry, x)` over the layers of a `stacked` module.

    Args:
        module: from `stacked`.
        body: gets one layer (a module), the carry and this layer's slice of `xs`.
        carry: pytree that flows through the layers; the first axis of its arrays, and of those of `y`, is samples.
        xs: pytree with a leading layer axis, or None.
        remat: recompute each layer in the backward pass instead of storing its activations; a name of `REMAT` says what
            is stored still, True is "nothing".

    Returns:
        The last carry and the stacked `y`.
    """
    graphdef, state = nnx.split(module)
    layers = len(jax.tree.leaves(state)[0])

    def step(carry, scanned):
        layer, x = scanned
        return by_samples(body(nnx.merge(graphdef, layer), carry, x))

    if remat:
        keep = REMAT["nothing" if remat is True else remat]
        step = jax.checkpoint(step, prevent_cse=False, policy=keep)
    return jax.lax.scan(step, by_samples(carry), (state, xs), unroll=layers <= UNROLLED)
