"""What a shell profile, a container or another program left in JAX's environment: the same numbers, or one line."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mem0_jax.jax_environment import settle

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "model" / "assets" / "tiny_a"
WITHOUT = "do without it: JAX_PLATFORMS=cpu"
UNKNOWN = "JAX has no backend '{}' here ({}): "


# A command that is quickly there.
PROBE = """
import sys, types
from mem0_jax.cli import Command, main

def probe(argv):
    import jax
    jax.devices()
    print(jax.numpy.ones(3).sum())

sys.modules["probe"] = types.SimpleNamespace(main=probe)
sys.exit(main(["golden"], {"golden": Command("looks for devices", "mem0-jax golden", "probe")}))
"""


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JAX_PLATFORMS", "cuda", UNKNOWN.format("cuda", "JAX_PLATFORMS=cuda")),
        ("JAX_PLATFORMS", "gpu,cpu", UNKNOWN.format("gpu", "JAX_PLATFORMS=gpu,cpu")),
        ("JAX_PLATFORMS", "cpuu", UNKNOWN.format("cpuu", "JAX_PLATFORMS=cpuu") + WITHOUT),
        ("JAX_PLATFORM_NAME", "gpu", UNKNOWN.format("gpu", "JAX_PLATFORM_NAME=gpu")),
        (
            "JAX_PLATFORMS",
            "cpu,cpuu",
            UNKNOWN.format("cpuu", "JAX_PLATFORMS=cpu,cpuu") + WITHOUT,
        ),
        ("JAX_PLATFORM_NAME", "cpuu", UNKNOWN.format("cpuu", "JAX_PLATFORM_NAME=cpuu")),
        ("JAX_DEFAULT_DEVICE", "gpu", UNKNOWN.format("gpu", "JAX_DEFAULT_DEVICE=gpu")),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=0", "JAX cannot start its backend 'cpu' with XLA_FLAGS="),
        ("JAX_DEBUG_NANS", "maybe", "JAX cannot read JAX_DEBUG_NANS=maybe (invalid truth value 'maybe'"),
        ("JAX_NUM_CPU_DEVICES", "two", "JAX cannot read JAX_NUM_CPU_DEVICES=two"),
        (
            "XLA_FLAGS",
            "--xla_no_such_flag=1",
            "XLA cannot read XLA_FLAGS: Unknown flag in XLA_FLAGS: --xla_no_such_flag",
        ),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=two", "XLA cannot read XLA_FLAGS: Couldn't interpret"),
    ],
)
def test_what_jax_cannot_work_with_is_one_line(variable, value, message):
    if importlib.util.find_spec("jax_cuda12_plugin") and ("cuda" in value or "gpu" in value):
        pytest.skip("this JAX has the backend")
    done = run("-c", PROBE, **{variable: value})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"mem0-jax golden: {message}")
    assert done.stderr.count("\n") == 1


def test_a_command_without_jax_works_without_its_backend():
    done = run(
        "-m",
        "mem0_jax.cli",
        "data",
        "check",
        ROOT / "tests/data/assets/lerobot_v30",
        "--no-video",
        JAX_PLATFORMS="cuda",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_settings_that_would_change_numbers_are_not_followed(monkeypatch):
    given = {"JAX_ENABLE_X64": "True", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_THREEFRY_PARTITIONABLE": "off"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "threefry2x32")
    assert settle() == [f"{n}={v} is not followed, so that numbers are the same everywhere" for n, v in given.items()]
    assert [os.environ[name] for name in given] == ["0", "standard", "1"]
    assert settle() == []


def test_the_same_settings_are_no_news(monkeypatch):
    for name, value in {"JAX_ENABLE_X64": "false", "JAX_THREEFRY_PARTITIONABLE": "Yes", "XLA_FLAGS": " "}.items():
        monkeypatch.setenv(name, value)
    assert settle() == []
    assert os.environ["JAX_ENABLE_X64"] == "false"


@pytest.mark.slow
def test_the_reference_is_met_where_64_bits_are_on():
    given = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
    # What such a process compiles is what any other does: it reads what is kept of them.
    kept = ("JAX_PLATFORMS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    done = run("-m", "mem0_jax.cli", "golden", GOLDEN, **given, **{name: os.environ[name] for name in kept})
    assert done.returncode == 0, done.stderr
    assert "all within their gates" in done.stdout
    assert all(f"{name}={value} is not followed" in done.stderr for name, value in given.items())
    assert "compiling and replaying training" in done.stderr


def test_a_flag_that_xla_knows_is_let_through():
    code = "from mem0_jax.jax_environment import settle; print(settle())"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
