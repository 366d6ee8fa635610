"""Settings of every test run."""

import os

# Before jax is first imported: the tests run on the CPU even where an accelerator is installed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
