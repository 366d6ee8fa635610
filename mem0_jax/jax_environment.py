"""What the environment tells JAX: what would change our numbers is not followed, what cannot work is said in a line.

Imports no JAX, which reads most of these variables once, when it is imported.
"""

import os
import re
import subprocess
import sys
from importlib import metadata

from mem0_jax.errors import UserError
from mem0_jax.installed import how_to_install

# With other values the same command would give other numbers, or none: variable -> what counts, and other spellings.
FIXED = {
    "JAX_ENABLE_X64": ("0", "n", "no", "f", "false", "off"),
    "JAX_NUMPY_DTYPE_PROMOTION": ("standard",),
    "JAX_NUMPY_RANK_PROMOTION": ("allow",),
    "JAX_THREEFRY_PARTITIONABLE": ("1", "y", "yes", "t", "true", "on"),
    "JAX_DEFAULT_PRNG_IMPL": ("threefry2x32",),
    "JAX_TRANSFER_GUARD": ("allow", "log"),
}
EXTRAS = {"gpu": "gpu", "cuda": "gpu", "tpu": "tpu"}  # of pyproject.toml, which bring a backend
_CHOICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE")
_CPU_COUNTS = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
_BACKEND = re.compile(r"Un(?:able to initialize|known) backend:? '?([\w ]*)'?")
_NO_BACKEND = (RuntimeError, AssertionError)  # the second where JAX_PLATFORMS=cuda and no card is visible
# XLA ends the process where it cannot read its flags, so another one reads them first.
PROBE = "from jaxlib import xla_client; xla_client.CompileOptions()"


def settle() -> list[str]:
    """Sets the variables of `FIXED` that say otherwise; returns a remark on each.

    Raises:
        UserError: XLA does not know a flag of XLA_FLAGS, or its value.
    """
    remarks = []
    for name, (counts, *same) in FIXED.items():
        given = os.environ.get(name)
        if given is not None and given.lower() not in (counts, *same):
            remarks.append(f"{name}={given} is not followed, so that numbers are the same everywhere")
            os.environ[name] = counts
    if os.environ.get("XLA_FLAGS", "").strip() and "jaxlib" not in sys.modules:
        probe = subprocess.run([sys.executable, "-c", PROBE], stderr=subprocess.PIPE, text=True, errors="replace")
        said = re.search(r"^[EF]\d{4} .*\] (.+)", probe.stderr, re.MULTILINE)
        if probe.returncode and said:
            raise UserError(f"XLA cannot read XLA_FLAGS: {said[1]} Correct or unset XLA_FLAGS")
    return remarks


def explained(error: Exception) -> str | None:
    """What an error says in which JAX cannot be imported, or start a backend, for what the environment tells it.

    None for other errors.
    """
    if isinstance(error, ValueError) and "jax" not in sys.modules:
        for name, value in os.environ.items():
            if name.startswith("JAX_") and (name.lower() in str(error).lower() or repr(value) in str(error)):
                return f"JAX cannot read {name}={value} ({error}): correct or unset {name}"
    if "jax" not in sys.modules or not isinstance(error, _NO_BACKEND):
        return None
    if _BACKEND.match(str(error)):
        return _without_backend(str(error))
    if any(os.environ.get(name) for name in _CHOICES):  # asked again, it may say more
        try:
            sys.modules["jax"].devices()
        except _NO_BACKEND as again:
            return _without_backend(str(again))
    return None


def _without_backend(said: str) -> str | None:
    named = _BACKEND.match(said)
    given = {name: os.environ[name].split(",") for name in _CHOICES if os.environ.get(name)}
    variable = next((name for name in given if named and named[1] in given[name]), next(iter(given), None))
    wanted = given[variable] if variable else []
    backend = named[1] if named else next(iter(wanted), None)
    if backend is None:
        return None
    if backend == "cpu" and (counts := [name for name in _CPU_COUNTS if os.environ.get(name)]):
        told = " and ".join(f"{name}={os.environ[name]}" for name in counts)
        return f"JAX cannot start its backend 'cpu' with {told}: correct or unset it"
    if backend not in wanted and "gpu" in wanted:
        backend = "gpu"  # which JAX takes for all kinds of them
    because = f" ({variable}={os.environ[variable]})" if variable else ""
    if said and "list of known backends" not in said and not said.startswith("Unknown"):
        cause = said.partition(": ")[2].partition(" (set JAX_")[0].partition(" (you may")[0]
        return f"JAX cannot start its backend '{backend}'{because}: {cause} Without it: JAX_PLATFORMS=cpu"
    if backend in ("cuda", "gpu") and _cuda_is_installed():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = "no NVIDIA GPU is visible" + ("" if hidden is None else f" with CUDA_VISIBLE_DEVICES={hidden!r}")
        return f"JAX has no backend '{backend}' here{because}: {seen}. Without one: JAX_PLATFORMS=cpu"
    install = f"{how_to_install(EXTRAS[backend])}, or " if backend in EXTRAS else ""
    alone = "" if variable in (None, "JAX_PLATFORMS") else f" without {variable}"
    return f"JAX has no backend '{backend}' here{because}: {install}do without it: JAX_PLATFORMS=cpu{alone}"


def _cuda_is_installed() -> bool:
    return any((dist.name or "").startswith("jax-cuda") for dist in metadata.distributions())
