"""Where compiled programs are kept, and where not."""

import os
import stat
import warnings

import jax
import pytest

from mem0_jax.errors import UserError
from mem0_jax.inference.compiled import ENVIRONMENT, keep_compiled, keep_compiled_if_possible

SETTINGS = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "compilation_cache_max_size")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in SETTINGS}
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def in_use() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009


def test_a_folder_of_the_users_own(root):
    folder = keep_compiled()
    assert folder is not None
    assert folder == root / "mem0_jax" / "compiled"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert in_use() == str(folder)
    assert keep_compiled() == folder


def test_a_relative_place_is_not_taken(root, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(root))
    assert keep_compiled() == root / ".cache" / "mem0_jax" / "compiled"


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_jax_own_variables_decide(root, monkeypatch, name):
    monkeypatch.setenv(name, "false")
    assert keep_compiled() is None
    assert not list(root.iterdir())


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_what_others_can_write_is_not_executed(root, mode):
    folder = root / "mem0_jax" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    before = in_use()
    with pytest.raises(UserError, match="others own it or can write to it"):
        keep_compiled()
    assert in_use() == before


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs users")
def test_what_others_own_is_not_executed(root, monkeypatch):
    folder = root / "mem0_jax" / "compiled"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(UserError, match="others own it"):
        keep_compiled()


def test_a_place_that_cannot_be_made_is_named(root, monkeypatch):
    (root / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in .*file/mem0_jax/compiled: Not a directory"):
        keep_compiled()


def test_where_nothing_can_be_kept_a_line_says_so_and_work_goes_on(root, monkeypatch, capsys):
    (root / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "file"))
    keep_compiled_if_possible()
    assert capsys.readouterr().err.count("\n") == 1
    assert jax.jit(lambda x: x + 1)(1) == 2


def test_programs_that_cannot_be_written_are_one_line(root, monkeypatch, capsys):
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *where: others.append(str(message)))
    keep_compiled_if_possible()
    for name in ("step", "play"):
        text = f"Error writing persistent compilation cache entry for 'jit_{name}': OSError: no space"
        warnings.showwarning(UserWarning(text), UserWarning, "compiler.py", 1)
    assert capsys.readouterr().err == "warning: some compiled programs are not kept: OSError: no space\n"
    warnings.showwarning(UserWarning("another"), UserWarning, "compiler.py", 1)
    assert others == ["another"]


def test_half_written_programs_go(root):
    folder = keep_compiled()
    assert folder is not None
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (folder / name).write_bytes(b"x")
    keep_compiled()
    assert sorted(path.name for path in folder.iterdir()) == ["whole-atime", "whole-cache"]
