"""What a visitor relies on before reading any code: what an install brings, what an import costs, what make offers."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
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
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


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
    beside = {path.parent.relative_to(ROOT) for path in (ROOT / "convert").rglob("__init__.py")} | {Path("configs")}
    names = {".".join(path.parts) for path in inside | {Path("mem0_jax", path) for path in beside}}
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


def extras() -> list[str]:
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(len(r.specifier) == 1 and str(r.specifier).startswith("==") for r in requirements)
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in requirements}


def test_pins_cover_the_base_install_and_agree():
    base = pins("base")
    assert set(base_install()) - {"mem0-jax"} <= set(base)
    for name in extras():
        assert base.items() <= pins(name).items()


def test_extras_can_be_had_together():
    """No two of them pin a package at different versions: to install one takes nothing from another.

    But for libtpu, which jax holds back where there are chips: make puts that one back whatever is installed later.
    """
    chosen: dict[str, set[str]] = {}
    for name in extras():
        for package, version in pins(name).items():
            chosen.setdefault(package, set()).add(version)
    assert {package for package, versions in chosen.items() if len(versions) > 1} <= {"libtpu"}


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


def made(target: str, **environment: str) -> str:
    """What a dry run of make prints, for an environment that is not there yet."""
    command = ["make", "--no-print-directory", "-n", "VENV=absent", target]
    kept = {name: value for name, value in os.environ.items() if name != "CI"} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=kept).stdout


def test_make_installs_every_extra_and_says_how_to_go_on():
    for extra in set(extras()) - {"test", "lint"}:
        assert f"-r requirements/{extra}.txt" in made(extra)
    (last,) = made("install").splitlines()[-1:]
    said = subprocess.run(
        ["sh", "-c", last], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    assert said.stdout == "Installed. Now: . absent/bin/activate, then mem0-jax --help\n"
    in_ci = {"PATH": os.environ["PATH"], "CI": "1"}
    assert subprocess.run(["sh", "-c", last], capture_output=True, check=True, env=in_ci).stdout == b""


def test_a_missing_package_is_answered_with_a_command_that_works_here(tmp_path):
    code = "from mem0_jax.installed import how_to_install; print(how_to_install('serve'))"
    for folder in (ROOT, tmp_path):
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
            assert done.stdout == "pip install 'aiohttp>=3.11' 'prometheus-client>=0.21'\n"
        elif folder == ROOT:
            assert done.stdout == "make serve\n"
        else:
            assert done.stdout == f"make -C {ROOT} serve\n"


def test_packages_that_do_not_fit_are_named(tmp_path):
    """As after another package took NumPy back below 2, or when one was removed or is damaged."""
    code = "import sys; from mem0_jax.cli import main; sys.exit(main(sys.argv[1:]))"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site-packages")}
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)

    def put(name: str, version: str, text: str) -> None:
        (tmp_path / f"site-packages/{name}-{version}.dist-info").mkdir(parents=True)
        (tmp_path / f"site-packages/{name}-{version}.dist-info/METADATA").write_text(
            f"Name: {name}\nVersion: {version}\n"
        )
        (tmp_path / f"site-packages/{name}.py").write_text(text)

    put("numpy", "1.26.4", "")
    done = run("golden", "nowhere")
    assert done.returncode == 1
    assert "this environment does not fit: numpy is 1.26.4, 2.0 or newer is needed. To mend it: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert run("golden", "--help").returncode == 0  # says how to call it all the same
    shutil.rmtree(tmp_path / "site-packages")
    put("flax", "99.0", "raise TypeError('built for another jax')")
    done = run("golden", str(ROOT / "tests" / "model" / "assets" / "tiny_a"))
    assert done.returncode == 1
    assert "the package flax cannot be imported here (TypeError: built for another jax)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ci_runs_in_place():
    mode = subprocess.run(["git", "ls-files", "-s", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert mode.stdout.startswith("100755")
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


def test_license_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
