"""The wheel of this checkout: what is in it, and that it runs where nothing of the checkout is."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "model" / "assets" / "tiny_a"
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def tracked(*folders: str) -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without the index, from a copy: the checkout stays as it is."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel; installed by make test")
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in tracked("mem0_jax", "convert", "configs", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(unpacked: Path, cwd: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """With the wheel before whatever is installed."""
    environment = os.environ | {"PYTHONPATH": str(unpacked), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, cwd=cwd, capture_output=True, text=True)


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    inside = {"convert": "mem0_jax/convert", "configs": "mem0_jax/configs", "mem0_jax": "mem0_jax"}
    parts = [Path(name).parts for name in tracked(*inside)]
    assert held == {"/".join((inside[top], *rest)) for top, *rest in parts}


def test_it_runs_in_another_folder(unpacked, tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "golden")
    code = """if True:
        import importlib, sys
        from mem0_jax import cli, installed
        assert cli.__file__.startswith(sys.argv[1]), cli.__file__
        from mem0_jax.commands import convert, data, eval, plan
        print(cli.main(["--help"]))
        for prefix, commands in {"": cli.COMMANDS, "convert ": convert.COMMANDS, "data ": data.COMMANDS,
                                 "eval ": eval.COMMANDS, "plan ": plan.COMMANDS}.items():
            for name in commands:
                assert cli.main([*prefix.split(), name, "--help"]) == 0, (prefix, name)
        print(installed.how_to_install("serve"))
    """
    done = run(unpacked, tmp_path, "-c", code, unpacked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("pip install 'aiohttp>=3.11' 'prometheus-client>=0.21'\n")
    inspected = run(unpacked, tmp_path, "-m", "mem0_jax.cli", "convert", "inspect", "golden/initial.pt")
    assert inspected.returncode == 0, inspected.stderr
    trained = run(unpacked, tmp_path, "-m", "mem0_jax.cli", "train", "--config=small", "--workdir=w")
    assert trained.returncode == 1
    assert "runs/demo/dataset" in trained.stderr  # the configuration is found, its dataset is not


@pytest.mark.index
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MEM0_INDEX"), reason="MEM0_INDEX is not set: nothing is installed")
def test_it_installs_into_an_empty_environment_with_its_extras(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    extras = ",".join(sorted(set(EXTRAS) - {"test", "lint", "gpu", "tpu"}))
    command = [python, "-m", "pip", "install", "--quiet", "--timeout", "15", "--retries", "1"]
    done = subprocess.run([*command, f"mem0-jax[{extras}] @ {wheel.as_uri()}"], capture_output=True, text=True)
    if done.returncode and "ould not find a version" in done.stderr:
        pytest.skip(f"the package index does not answer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    program = [tmp_path / "env" / "bin" / "mem0-jax", "golden", GOLDEN]
    golden = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert golden.returncode == 0, golden.stderr
    modules = "aiohttp, prometheus_client, openai, array_record, fsspec, gcsfs, h5py, libtpu, tensorboardX, wandb"
    subprocess.run([python, "-c", f"import {modules}"], check=True, cwd=tmp_path)
