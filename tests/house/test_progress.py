"""How long work tells how far it is: a bar on a terminal, lines in a log, nothing of what is quick."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import termios
import time

from mem0_jax.progress import Progress, duration

CLOCK = r"\d\d:\d\d:\d\d "


class Log(io.StringIO):
    """A log that can be waited for."""

    def wait_for_a_line(self) -> str:
        for _ in range(6000):
            if self.getvalue().endswith("\n"):
                break
            time.sleep(0.01)
        return self.getvalue()


def begin_log(monkeypatch) -> Log:
    """A log in place of stderr; not by a fixture, between which and the test pytest puts its own there."""
    monkeypatch.setattr(sys, "stderr", Log())
    return sys.stderr  # pyright: ignore[reportReturnType]


def test_a_log_gets_a_line_of_long_work_and_its_end(monkeypatch):
    log = begin_log(monkeypatch)
    with Progress("packing", 1200, "frame", done=200) as progress:
        progress.advance(100)
        progress.note("loss 0.4")
        assert re.fullmatch(
            CLOCK + r"packing: 300 of 1200 frames, [\d.]+ frames/s, \d+ s left, loss 0.4\n", log.wait_for_a_line()
        )
        progress.reach(1200, 1200)
    assert re.fullmatch(CLOCK + r"packing: 1200 frames in \d+ s", log.getvalue().splitlines()[1])


def test_slow_work_has_a_rate_too_and_one_is_one(monkeypatch):
    log, now = begin_log(monkeypatch), time.monotonic
    with Progress("compiling", 9, "program") as progress:
        progress.advance()
        monkeypatch.setattr(time, "monotonic", lambda: now() + 120)
        assert re.fullmatch(
            CLOCK + r"compiling: 1 of 9 programs, 0.5 programs/min, 16 min \d+ s left\n", log.wait_for_a_line()
        )
    log = begin_log(monkeypatch)
    with Progress("compiling", 1, "program"):
        assert re.fullmatch(CLOCK + "compiling: 0 of 1 program\n", log.wait_for_a_line())


def test_a_step_that_cannot_be_counted_is_named_while_it_lasts(monkeypatch):
    log = begin_log(monkeypatch)
    with Progress("compiling"):
        assert re.fullmatch(CLOCK + "compiling\n", log.wait_for_a_line())
    assert re.fullmatch(CLOCK + r"compiling: done in \d+ s", log.getvalue().splitlines()[1])


def test_bytes_are_counted_in_the_unit_that_fits(monkeypatch):
    log = begin_log(monkeypatch)
    with Progress("reading", 15_300_000_000, "B") as progress:
        progress.advance(1_500_000_000)
        assert "reading: 1.5 of 15.3 GB, " in log.wait_for_a_line()


def test_quick_and_hidden_and_failed_work_leaves_no_end(monkeypatch):
    log = begin_log(monkeypatch)
    with Progress("quick", 3) as progress:
        assert list(progress.over("abc")) == ["a", "b", "c"]
    with Progress("hidden", shown=False) as progress:
        progress.reach(1, 1)
    assert log.getvalue() == ""
    with contextlib.suppress(KeyError), Progress("failing"):
        log.wait_for_a_line()
        raise KeyError
    assert log.getvalue().count("\n") == 1


def test_a_log_that_nobody_reads_any_more_ends_no_work(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w", buffering=1))
    with Progress("talking to itself", 2, "word") as progress:
        time.sleep(2.2)
        progress.advance(2)
    monkeypatch.setattr(sys, "stderr", None)
    with Progress("said to nobody"):
        pass


def test_a_terminal_gets_a_bar():
    code = """if True:
        from mem0_jax.progress import Progress
        with Progress("packing", 4, "frame") as progress:
            progress.advance(3)
            progress.note("loss 0.4")
            progress.reach(5, 5)
        with Progress("compiling"):
            pass
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    subprocess.run([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.DEVNULL, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert re.search(r"packing: 100%.* 5/5 .*frame/s, loss 0.4", shown)
    assert "compiling [00:00]" in shown


def test_durations_for_people():
    assert [duration(s) for s in (45.2, 723, 65100)] == ["45 s", "12 min 3 s", "18 h 5 min"]
