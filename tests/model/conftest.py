"""What the model's tests share: the golden folder, and quick compilation."""

from pathlib import Path

import jax
import pytest

from mem0_jax.golden.stream import Golden

TINY_A = Path(__file__).parent / "assets" / "tiny_a"


@pytest.fixture(autouse=True)
def _compile_quickly():
    # Small models run for milliseconds and compile for seconds; unoptimised programs compute the same numbers.
    with_optimizations = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", with_optimizations)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden(TINY_A)
