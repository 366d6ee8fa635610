"""The program ``mem0-jax COMMAND [flags]``: finds the command, runs it, turns errors into messages and exit codes.

A command is a module of ``mem0_jax.commands`` with ``main(argv) -> int | None``; it is imported only when it is called,
so that ``mem0-jax --help`` answers at once. Commands with a fixed set of flags read them with ``CommandParser``.
"""

import argparse
import glob
import importlib
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mem0_jax import __version__, disk, installed, jax_environment
from mem0_jax.errors import UserError, did_you_mean

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
TPU_DEVICES = ("/dev/accel*", "/dev/vfio/*")
# Where libtpu is installed, for `aot`, and has no chips, it would complain at every start that nobody tells it these.
NO_TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}


@dataclass(frozen=True)
class Command:
    """One line of the program's help.

    Attributes:
      summary: what the command does, in one line.
      example: a call that works as it stands.
      module: the module that holds its ``main(argv)``.
    """

    summary: str
    example: str
    module: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "record, train with and without memory, evaluate, report: all on this machine",
        "mem0-jax demo --out runs/demo",
        "mem0_jax.commands.demo",
    ),
    "convert": Command(
        "turn PyTorch checkpoints into bundles and back, look into them, compare them",
        "mem0-jax convert m1_mix_final_step50000.pt bundles/m1_mix --backbone checkpoints/backbone",
        "mem0_jax.commands.convert",
    ),
    "data": Command(
        "import, check, show, measure and pack datasets",
        "mem0-jax data --help",
        "mem0_jax.commands.data",
    ),
    "train": Command(
        "train a policy as a configuration file says, or continue a run",
        "mem0-jax train --config=small --workdir=runs/small",
        "mem0_jax.commands.train",
    ),
    "serve": Command(
        "serve a bundle to robots and simulators: WebSocket, HTTP, a page of live sessions",
        "mem0-jax serve runs/demo/with_memory/bundle --n-action-steps 2",
        "mem0_jax.commands.serve",
    ),
    "eval": Command(
        "measure a policy: episodes of a built-in task, or a recorded dataset",
        "mem0-jax eval --help",
        "mem0_jax.commands.eval",
    ),
    "aot": Command(
        "compile a training step for a TPU slice, without one: memory, network, roofline",
        "mem0-jax aot --config=m1_mix --topology=v5e:4x4 --config.hardware=v5e-16",
        "mem0_jax.commands.aot",
    ),
    "plan": Command(
        "prepare, train, merge and serve the planner of staged tasks",
        "mem0-jax plan --help",
        "mem0_jax.commands.plan",
    ),
    "golden": Command(
        "replay a folder of the reference's inputs and outputs and print the greatest errors",
        "mem0-jax golden tests/model/assets/tiny_a",
        "mem0_jax.commands.golden",
    ),
}


def main(
    argv: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS, program: str = "mem0-jax"
) -> int:
    """Runs one command.

    Args:
      argv: the arguments after the program's name; by default those of the process.
      commands: the commands to choose from.
      program: what precedes the command; a command that has commands of its own gives its name too.

    Returns:
      The exit code: 0 all went well; 1 the command failed; 2 wrong usage; 130 interrupted by Ctrl-C. With the
      environment variable ``MEM0_DEBUG=1`` the traceback of an expected error is printed as well.
    """
    _open_standard_files()
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv:
        print(usage(commands, program), file=sys.stderr)
        return BAD_USAGE
    if strange := [word for word in argv if any("\ud800" <= letter <= "\udfff" for letter in word)]:
        return _complain(program, f"{strange[0]!r} is no UTF-8 text: rename the file or folder", BAD_USAGE)
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help", "help"):
        return _print(program, usage(commands, program))
    if name == "--version":
        return _print(program, f"mem0-jax {__version__}")
    if name not in commands:
        kind = "flag" if name.startswith("-") else "command"
        hint = did_you_mean(name, commands)
        return _complain(program, f"unknown {kind} {name!r}{hint}; '{program} --help' lists them", BAD_USAGE)
    return _run(f"{program} {name}", commands[name], rest)


def usage(commands: Mapping[str, Command], program: str = "mem0-jax") -> str:
    """The text of ``mem0-jax --help``, or of a command that has commands of its own."""
    width = max((len(name) for name in commands), default=0)
    return "\n".join(
        [
            f"usage: {program} COMMAND [flags]",
            "",
            "Memory-equipped robot policies in JAX/Flax: record, train, evaluate.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {command.summary}" for name, command in commands.items()),
            "",
            "examples:",
            *(f"  {command.example}" for command in commands.values()),
            "",
            f"'{program} COMMAND --help' explains a command and its flags; 'mem0-jax --version' prints the version.",
            "Exit codes: 0 all went well, 1 failed, 2 wrong usage, 130 interrupted. MEM0_DEBUG=1 shows tracebacks.",
        ]
    )


RENAMED = {"--action-horizon": "--n-action-steps"}  # flags of version 0.1 that are called otherwise since


class CommandParser(argparse.ArgumentParser):
    """The flags of one command: defaults in the help, examples below it, no abbreviations, help with misspellings.

    Args:
      name: the command.
      summary: what it does, one or more sentences.
      examples: calls that work as they stand, shown under the flags.
    """

    def __init__(self, name: str, summary: str, examples: Sequence[str]):
        super().__init__(
            prog=f"mem0-jax {name}",
            description=textwrap.fill(summary, 100),
            epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def print_help(self, file=None):
        """As argparse does, which says nothing where it cannot be written."""
        print(self.format_help(), end="", file=file)

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse does; an address such as gs://bucket in place of a file or folder of this machine is refused.

        A flag's old name is taken for its new one, with a word.
        """
        args = list(sys.argv[1:] if args is None else args)
        for place, word in enumerate(args):
            flag, equals, value = word.partition("=")
            new = RENAMED.get(flag)
            if new in self._option_string_actions:
                print(f"{self.prog}: {flag} is now called {new}", file=sys.stderr)
                args[place] = f"{new}{equals}{value}"
        parsed, unknown = super().parse_known_args(args, namespace)
        for name, value in vars(parsed).items():
            if isinstance(value, Path) and (match := re.match(r"([a-z][a-z0-9+.-]+):/(?!/)", str(value))):
                hint = "mount the bucket (gcsfuse, for one) and name the folder"
                self.error(f"{name}: {match[1]}:// is no folder of this machine; {hint}")
        return parsed, unknown

    def parse_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse does; an unknown argument is an error that suggests the flag that was meant."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            self.error(f"unknown argument {word!r}{did_you_mean(word, flags)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Says what is wrong in one line and ends the program with `BAD_USAGE`."""
        self.exit(_complain(self.prog, f"{message}; '{self.prog} --help' explains the flags", BAD_USAGE))


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the examples' lines and shows defaults, except "None" for flags that have none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _open_standard_files() -> None:
    """Those that were closed, as launchers do, lead nowhere: the next file opened would else take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the least number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def _run(title: str, command: Command, argv: list[str]) -> int:
    if not any(map(glob.glob, TPU_DEVICES)):
        os.environ.update(NO_TPU | os.environ)
    disk.tell_once()
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax remarks on every write, and on reading without writing
    try:
        if not {"-h", "--help"} & set(argv):
            installed.check()
            for remark in jax_environment.settle():
                print(f"{title}: {remark}", file=sys.stderr)
        code = _code_of(command, argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _complain(title, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _stop_printing()
    except Exception as error:
        told = error if isinstance(error, UserError) else _explained(error)
        if told is None:
            raise
        if os.environ.get("MEM0_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        try:
            sys.stdout.flush()
        except OSError:  # it goes to a full disk
            _stop_printing()
        return _complain(title, str(told), FAILED)


def _code_of(command: Command, argv: list[str]) -> int:
    try:
        return importlib.import_module(command.module).main(argv) or OK
    except SystemExit as stop:  # from a flag parser: --help, or a wrong flag
        return stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILED


def _print(title: str, text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        return _stop_printing()
    except OSError as error:
        _stop_printing()
        return _complain(title, f"standard output: {error.strerror}", FAILED)
    return OK


def _explained(error: Exception) -> object | None:
    """What to say of an error that comes of the machine around the program, None for a fault of the program's own."""
    return jax_environment.explained(error) or installed.explained(error) or disk.explained(error)


def _stop_printing() -> int:
    """`| head` has seen enough: whatever is still to be written goes nowhere, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


def _complain(title: str, message: str, code: int) -> int:
    print(f"{title}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
