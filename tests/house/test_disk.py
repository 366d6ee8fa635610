"""Disks that refuse: a sentence that names the place and the reason, whatever library met it; and names of files."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.cli import main
from mem0_jax.convert.torch_pt_write import write_pt
from mem0_jax.disk import DiskError, disk_told, explained, safe_name, write_json, write_whole
from mem0_jax.errors import UserError

TINY = Path(__file__).parents[1] / "model" / "assets" / "tiny_a"
LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
PROGRAM = LIMITED + "from mem0_jax.cli import main; sys.exit(main(sys.argv[1:]))"


def test_many_writes_that_fail_at_once_are_one_line(tmp_path):
    arguments = ["convert", TINY / "initial.pt", tmp_path / "bundle", "--config", TINY / "config.json"]
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 1
    told = rf"mem0-jax convert: {tmp_path}/bundle: File too large; raise the limit on the size of files .*\n"
    line = rf"([\d:]+ convert .*\n)*{told}"  # a slow machine tells its progress, too
    assert re.fullmatch(line, process.stderr), process.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device [os_error_code='28']"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_every_librarys_words_are_understood(error):
    with pytest.raises(DiskError) as told, disk_told("out", "shards are kept"):
        raise error
    assert str(told.value) == "out: No space left on device; shards are kept; make room"
    assert told.value.__cause__ is error
    outer = RuntimeError("the writer's thread ended")
    outer.__cause__ = error
    assert explained(outer, "out") is not None


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("shape (28,)"), FileNotFoundError(2, "no", "x")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), disk_told("out"):
        raise error


def during(handled: Exception) -> Exception:
    try:
        try:
            raise handled
        except OSError:
            return {}["a fault of ours"]
    except KeyError as error:
        return error


def test_a_fault_while_a_harmless_refusal_was_handled_is_not_the_disks():
    assert explained(during(FileExistsError(errno.EEXIST, "there already", "x"))) is None
    assert explained(during(OSError(errno.ENOSPC, "full", "x"))) is not None


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path):
    path, before = tmp_path / "a.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_whole(path, "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, "newer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_disk_that_fills_is_told_with_the_file_and_keeps_no_part_of_it(tmp_path):
    """The limit of a process's files is to it what a full disk is."""
    code = f"""if True:
        import resource, signal, sys
        import numpy as np
        from pathlib import Path
        from mem0_jax.disk import write_whole, explained
        from mem0_jax.eval.film import Film
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        folder, rng = Path({str(tmp_path)!r}), np.random.default_rng(0)
        try:
            write_whole(folder / "page.html", "x" * 10000)
        except OSError as error:
            print(explained(error))
        film = Film(folder / "film.mp4", 64, 64)
        for _ in range(9):
            film.append(rng.integers(0, 256, (64, 64, 3), np.uint8))
        try:
            film.close()
        except OSError as error:
            print("film:", explained(error) is not None)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    page, film = done.stdout.splitlines()
    assert page.startswith(f"{tmp_path / 'page.html'}: ")
    assert film == "film: True"
    assert list(tmp_path.iterdir()) == []


def test_streams_are_written_as_they_stand_and_links_stay_links(tmp_path):
    fifo, target, link = (tmp_path / name for name in ("fifo", "target.json", "link.json"))
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True) as reader:
        write_json(fifo, [1])
        assert reader.communicate()[0] == "[\n 1\n]"
    assert fifo.is_fifo()
    link.symlink_to(target.name)
    for value in ("dangling", "there"):
        write_whole(link, value)
        assert (link.is_symlink(), target.read_text()) == (True, value)
    with pytest.raises(UserError, match="a device or a pipe"):
        write_pt(fifo, {"a": np.zeros(2)})
    write_pt(link, {"a": np.zeros(2)})
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link.json", "target.json"]


def test_results_go_to_standard_output_where_that_is_asked_for(tmp_path):
    code = "import sys; from pathlib import Path; from mem0_jax.disk import write_json; print('table', flush=True); "
    code += "write_json(Path('/dev/stdout'), 1)"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "table\n1"


@given(st.text())
def test_names_are_safe_and_safe_names_stay(text):
    name = safe_name(text)
    assert name
    assert not re.search(r"[\s:/\\]|^\.", name)
    assert safe_name(name) == name


def test_an_address_is_no_folder_of_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["train", "--config=small", "--workdir=gs://bucket/run"],
        ["data", "pack", "data", "s3://bucket/packed"],
        ["demo", "--out", "gs://bucket/demo"],
    ):
        assert main(arguments) == 2
        assert re.search(r"(gs|s3):// is no folder of this machine; mount the bucket", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
