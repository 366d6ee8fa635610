"""The command line: help that teaches, exit codes, messages."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mem0_jax import __version__
from mem0_jax.cli import COMMANDS, Command, main

PROBE = """
from mem0_jax.cli import CommandParser
from mem0_jax.errors import UserError

def main(argv):
    parser = CommandParser("probe", "Does what the test asks.", ["mem0-jax probe --steps 3"])
    parser.add_argument("--steps", type=int, default=7, help="how many")
    parser.add_argument("--fail", default="", help="how to fail")
    parser.add_argument("--note", help="a remark")
    args = parser.parse_args(argv)
    if args.fail == "user":
        raise UserError("policy.json: missing field 'window', add it")
    if args.fail == "interrupt":
        raise KeyboardInterrupt
    if args.fail == "bug":
        raise RuntimeError("a bug")
    print(f"{args.steps} steps")
    return 5 if args.fail == "code" else None
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    (tmp_path / "probe_command.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MEM0_DEBUG", raising=False)
    return {"probe": Command("does what the test asks", "mem0-jax probe --steps 3", "probe_command")}


def test_help_lists_commands_and_examples(commands, capsys):
    for flag in ("--help", "-h", "help"):
        assert main([flag], commands) == 0
        out = capsys.readouterr().out
        assert "usage: mem0-jax COMMAND" in out
        assert "probe  does what the test asks" in out
        assert "mem0-jax probe --steps 3" in out
    assert main([], commands) == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mem0-jax {__version__}\n"


def test_misspelt_command(commands, capsys):
    assert main(["prob", "--steps", "2"], commands) == 2
    captured = capsys.readouterr()
    assert "unknown command 'prob', did you mean 'probe'?" in captured.err
    assert captured.out == ""
    assert main(["--frobnicate"], commands) == 2
    assert "unknown flag '--frobnicate'" in capsys.readouterr().err


def test_command_help_shows_defaults_and_examples(commands, capsys):
    assert main(["probe", "--help"], commands) == 0
    out = capsys.readouterr().out
    for part in ("usage: mem0-jax probe", "Does what the test asks.", "how many (default: 7)", "probe --steps 3"):
        assert part in out
    assert "None" not in out


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--step", "3"], 2, "unknown argument '--step', did you mean '--steps'?"),
        (["--stesp=3"], 2, "did you mean '--steps'?"),
        (["--steps", "many"], 2, "invalid int value: 'many'"),
        (["--fail", "user"], 1, "mem0-jax probe: policy.json: missing field 'window', add it"),
        (["--fail", "interrupt"], 130, "mem0-jax probe: interrupted"),
    ],
)
def test_failures_are_one_line_with_an_exit_code(commands, capsys, flags, code, message):
    assert main(["probe", *flags], commands) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_results_and_codes_of_commands(commands, capsys):
    assert main(["probe", "--steps", "3"], commands) == 0
    assert capsys.readouterr().out == "3 steps\n"
    assert main(["probe", "--fail", "code"], commands) == 5
    with pytest.raises(RuntimeError, match="a bug"):
        main(["probe", "--fail", "bug"], commands)


def test_debug_shows_the_traceback(commands, capsys, monkeypatch):
    monkeypatch.setenv("MEM0_DEBUG", "1")
    assert main(["probe", "--fail", "user"], commands) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(name):
    run = subprocess.run([sys.executable, "-m", "mem0_jax.cli", name, "--help"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"usage: mem0-jax {name}")
    assert "examples:" in run.stdout
    assert COMMANDS[name].example.startswith(f"mem0-jax {name}")


def test_installed_program_is_light():
    """`mem0-jax --help` answers without importing jax or anything as heavy."""
    code = """
        import sys
        from mem0_jax.cli import main
        assert main(["--help"]) == 0
        heavy = {"jax", "numpy", "flax", "matplotlib", "torch", "tensorflow", "transformers"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)
    program = Path(sys.executable).parent / "mem0-jax"
    run = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"mem0-jax {__version__}"


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["data", "stats", "--help"]])
def test_a_full_disk_behind_standard_output_is_one_line(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mem0_jax.cli", *words]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 1
    assert re.fullmatch(r"mem0-jax.*: .*standard output: No space left on device.*\n", run.stderr)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files_lead_nowhere(tmp_path, closed):
    """As launchers close them. No file of the command's own may take their place: print would write into it."""
    words = [sys.executable, "-m", "mem0_jax.cli", "convert", "inspect", "tests/model/assets/tiny_a/initial.pt"]
    run = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *words, "--json", tmp_path / "found.json"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads((tmp_path / "found.json").read_text())


def test_a_reader_that_has_seen_enough_is_no_error():
    """As `mem0-jax --help | head -1`: the pipe is closed before anything is written."""
    for words in (["--help"], ["convert", "inspect", "tests/model/assets/tiny_a/initial.pt"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "mem0_jax.cli", *words]
        run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        os.close(writer)
        assert (run.returncode, run.stderr) == (0, "")
