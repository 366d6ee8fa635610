"""Quick compilation: small models run for milliseconds and compile for seconds."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def _compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
