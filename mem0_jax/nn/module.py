"""The two crossings between `flax.nnx` declarations and plain dict parameters.

Models are declared as small `nnx.Module` classes, but their parameters live as a nested dict of arrays with string
keys, and everything else (jit, grad, optimizer, checkpoint, sharding) works on that dict.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]
Build = Callable[[nnx.Rngs], nnx.Module]


def init(build: Build, key: jax.Array) -> Params:
    """Creates the module and returns its parameters as a nested dict. Traceable, by `jax.eval_shape` for one."""
    return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))


def bind(build: Build) -> Callable[[Params], Any]:
    """Returns `with_params(params)`, which gives the module back with these parameters in place (while tracing)."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def with_params(params: Params) -> Any:
        state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: replacing leaves must not touch the template
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    return with_params
