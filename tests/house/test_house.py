"""What a visitor relies on before reading any code: what an install brings, what an import costs, what make offers."""

import importlib.metadata
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "tensorflow", "transformers", "jax")


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_import_is_light():
    code = f"import sys, mem0_jax, mem0_jax.config, mem0_jax.cli; print([m for m in {HEAVY} if m in sys.modules])"
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert run.stdout.strip() == "[]"
    assert seconds < 1.5


def test_no_module_needs_torch_tensorflow_or_transformers():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    code = f"""if True:
        import importlib, pkgutil, sys
        for package in {packages}:
            module = importlib.import_module(package)
            for found in pkgutil.iter_modules(module.__path__, package + "."):
                importlib.import_module(found.name)
        print([name for name in {HEAVY[:3]} if name in sys.modules])
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("[]")


def test_every_package_is_installed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    inside = {path.parent.relative_to(ROOT) for path in (ROOT / "mem0_jax").rglob("__init__.py")}
    names = {".".join(path.parts) for path in inside} | {"mem0_jax.convert", "mem0_jax.configs"}
    assert listed == names


def base_install() -> dict[str, str]:
    """Name -> version of all that `pip install mem0-jax` without extras brings, from the installed metadata."""
    found: dict[str, str] = {}
    pending = [Requirement("mem0-jax")]
    done: set[tuple[str, str]] = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version
        for extra in ("", *requirement.extras):
            if (name, extra) not in done:
                done.add((name, extra))
                wanted = map(Requirement, distribution.requires or [])
                pending += [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def test_base_install_is_free_of_other_frameworks_and_cuda():
    installed = base_install()
    assert {"jax", "flax", "numpy"} <= set(installed)
    unwanted = re.compile(r"^(torch|tensorflow|transformers|keras|nvidia-|libtpu|jax-cuda)")
    assert [name for name in installed if unwanted.match(name)] == []


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in requirements)
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in requirements}


def test_pins_cover_the_base_install_and_agree():
    base = pins("base")
    assert set(base_install()) - {"mem0-jax"} <= set(base)
    for name in ("test", "lint", "gpu", "tpu"):
        assert base.items() <= pins(name).items()


def test_pins_are_within_the_ranges_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, wanted in {"base": project["dependencies"], **project["optional-dependencies"]}.items():
        chosen = pins(name)
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(Version(chosen[canonicalize_name(requirement.name)])), requirement


def test_no_traces_of_a_machine_or_an_index():
    # Written with a gap, or this file would find itself.
    words = ["/wo", "rk/", "/ro", "ot/", "/ho", "me/", "pythonho", "sted", "pypi.", "org", "/opt/wh", "eels"]
    words = [first + second for first, second in zip(words[::2], words[1::2])]
    traces = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        for word in words
        if word.encode() in path.read_bytes()
    ]
    assert traces == []


def test_make_says_what_it_can_do():
    run = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("install", "demo", "test", "lint", "pins"):
        assert re.search(rf"^make {target} +\w+", run.stdout, re.MULTILINE), target


def test_ci_runs_in_place():
    mode = subprocess.run(["git", "ls-files", "-s", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert mode.stdout.startswith("100755")
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


def test_license_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
