"""One process at a time in a folder: real processes that hold it, are killed, fork, and other machines' words."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from toy import make_config, make_loader, make_policy

from mem0_jax.disk import DiskError
from mem0_jax.lock import STALE, TAKE_OVER, LockedError, hold_folder, hold_output
from mem0_jax.train.log import read_rows
from mem0_jax.train.loop import fit

HOLD = """
import os, sys, time
from pathlib import Path
from mem0_jax.lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    if "fork" in sys.argv:
        if os.fork():
            os.wait()
    print("held", flush=True)
    time.sleep(60)
"""


def start(folder, *words):
    """A process that holds `folder`, once it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def write(folder, **changes):
    """A lock file as another process left it."""
    with hold_folder(folder):
        content = json.loads((folder / ".lock").read_text())
    (folder / ".lock").write_text(json.dumps(content | changes))
    return folder / ".lock"


def test_a_second_process_is_refused_in_one_sentence_and_gets_it_after_a_kill(tmp_path):
    process = start(tmp_path)
    with pytest.raises(LockedError) as error, hold_folder(tmp_path):
        pass
    assert f"is in use by process {process.pid} of " in str(error.value)
    assert f"stop it (kill {process.pid})" in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / ".lock").exists()
    process.kill()
    process.wait()
    with hold_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_forked_child_keeps_nothing_when_its_parent_is_killed(tmp_path):
    process = start(tmp_path, "fork")
    process.kill()
    process.wait()
    with hold_folder(tmp_path):  # though the child lives on
        pass


FORK = """
import os, subprocess, sys
from pathlib import Path
from mem0_jax.lock import hold_folder
folder = Path(sys.argv[1])
with hold_folder(folder):
    child = os.fork()
    if not child:
        with hold_folder(folder):
            pass
        sys.exit(0)  # through the parent's block, whose end is not the child's to tell
    assert os.waitpid(child, 0)[1] == 0
    assert b"LockedError" in subprocess.run([sys.executable, "-c", sys.argv[2], folder], stderr=-1).stderr
"""


def test_a_forked_child_neither_is_refused_nor_lets_go(tmp_path):
    subprocess.run([sys.executable, "-c", FORK, tmp_path, HOLD], check=True)
    assert not list(tmp_path.iterdir())


def test_within_a_process_nesting_is_fine_and_another_thread_is_not(tmp_path):
    found = []

    def other():
        try:
            with hold_folder(tmp_path):
                found.append("held")
        except LockedError as error:
            found.append(str(error))

    with hold_folder(tmp_path), hold_folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1
    assert "is in use by process" in found[0]


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage", b"[1, 2]", b'{"process": "x"}', b"[" * 5000])
def test_garbage_is_no_lock(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with hold_folder(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_the_number_of_a_dead_process_may_be_anothers(tmp_path):
    write(tmp_path, process=1, born="1")
    with hold_folder(tmp_path):
        pass


def test_another_machines_recent_word_counts_unless_told_otherwise(tmp_path, monkeypatch):
    lock = write(tmp_path, boot="another", host="node-7", process=1)
    with pytest.raises(LockedError, match=rf"process 1 of .* on node-7 .* last sign of life .* {TAKE_OVER}=1"):
        hold_folder(tmp_path).__enter__()
    assert json.loads(lock.read_text())["host"] == "node-7"
    monkeypatch.setenv(TAKE_OVER, "1")
    with hold_folder(tmp_path):
        assert json.loads(lock.read_text())["process"] == os.getpid()


def test_another_machines_old_word_does_not_count(tmp_path, caplog):
    lock = write(tmp_path, boot="another", host="node-7")
    old = time.time() - 2 * STALE
    os.utime(lock, (old, old))
    with hold_folder(tmp_path):
        pass
    assert "taken over from process" in caplog.text
    assert "node-7" in caplog.text


def test_taking_over_does_not_break_what_the_system_itself_holds(tmp_path, monkeypatch):
    process = start(tmp_path)
    monkeypatch.setenv(TAKE_OVER, "1")
    with pytest.raises(LockedError), hold_folder(tmp_path):
        pass
    process.kill()
    process.wait()


def test_outputs_are_held_beside(tmp_path):
    out = tmp_path / "made" / "bundle"
    with hold_output(out):
        assert [path.name for path in out.parent.iterdir()] == [".bundle.lock"]
        assert not out.exists()
    assert not list(out.parent.iterdir())


def test_a_second_run_is_refused_and_the_first_unharmed(tmp_path):
    """The first is stopped in its middle, so that it certainly lives; killed, it is continued at once."""
    toy = [sys.executable, str(os.path.join(os.path.dirname(__file__), "toy.py")), tmp_path / "run", "200", "20", "0"]
    first = subprocess.Popen(toy, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not read_rows(tmp_path / "run" / "metrics.jsonl") and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    with pytest.raises(LockedError, match=f"run is in use by process {first.pid} "):
        fit(make_policy(), make_loader, make_config(200, save_every=20, seed=7), tmp_path / "run")
    first.kill()
    first.wait()
    fit(make_policy(), make_loader, make_config(200, save_every=20, seed=7), tmp_path / "run")
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == list(range(5, 201, 5))
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_link_to_what_is_made_is_the_same_place(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with hold_output(tmp_path / "real"), ThreadPoolExecutor(1) as beside, pytest.raises(LockedError):
        beside.submit(hold_output(tmp_path / "link").__enter__).result()


def test_a_link_in_the_place_of_the_lock_and_a_full_disk_leave_nothing(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(DiskError, match="a link is in the way: remove it"), hold_folder(tmp_path):
        pass
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    code = limited + "from mem0_jax.lock import hold_folder; from pathlib import Path; "
    code += f"hold_folder(Path({str(tmp_path / 'full')!r})).__enter__()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DiskError" in run.stderr
    assert not list((tmp_path / "full").iterdir())
