"""The same numbers whatever the program around ours has set in JAX's configuration."""

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")
# Name in `jax.config` -> its context manager and our value. In 64 bits counters and literals are of other dtypes than
# the arrays they meet; other generators draw other numbers; strict promotion refuses what is meant.
SETTINGS = {
    "jax_enable_x64": (jax.enable_x64, False),
    "jax_numpy_dtype_promotion": (jax.numpy_dtype_promotion, "standard"),
    "jax_numpy_rank_promotion": (jax.numpy_rank_promotion, "allow"),
    "jax_threefry_partitionable": (jax.threefry_partitionable, True),
    "jax_default_prng_impl": (jax.default_prng_impl, "threefry2x32"),
}


def same_numbers(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function run with `SETTINGS`, in its own thread and while it runs; afterwards all is as it was."""

    @functools.wraps(function)
    def alike(*args: P.args, **kwargs: P.kwargs) -> R:
        with contextlib.ExitStack() as stack:
            for name, (setting, ours) in SETTINGS.items():
                if getattr(jax.config, name) != ours:
                    stack.enter_context(setting(ours))
            return function(*args, **kwargs)

    return alike
