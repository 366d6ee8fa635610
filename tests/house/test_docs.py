"""What README and the pages of docs say is true: their commands are read by the program, their links lead somewhere."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from mem0_jax.cli import CommandParser, main
from mem0_jax.commands.train import read_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "scripts" / "rmbench" / "README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIGURED = ("train", "aot", "plan train")  # their settings are flags as well
# What a user's machine brings, or another project's.
OTHERS = {"ln", "export", "curl", "vllm", "git", "."}


def blocks(page: Path, *languages: str) -> list[str]:
    """The code of a page that is written in one of the languages."""
    return [code for language, code in BLOCK.findall(page.read_text()) if language in languages]


def calls(page: Path) -> list[list[str]]:
    """The commands of a page, in words, without variables set before them."""
    found = []
    for code in blocks(page, "", "bash"):
        if re.search(r"^\w+/.* {2,}", code, re.MULTILINE):  # the map of folders
            continue
        for line in code.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word != "&"]
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    text = BLOCK.sub("", page.read_text())
    inline = re.findall(r"`((?:mem0-jax|make|scripts/\w+\.\w+) [^`]+)`", text)
    return found + [shlex.split(call) for call in inline if not re.search(r"\b[A-Z]{4,}\b|-- ", call)]


class ParsedError(Exception):
    """The flags were read: the command would begin now."""


def read_by_the_program(words: list[str], monkeypatch) -> None:
    """Fails where `mem0-jax WORDS` would be refused before it begins."""
    name = " ".join(words[:2]) if words[0] in ("plan", "data", "eval") else words[0]
    if name in CONFIGURED:
        command = importlib.import_module(f"mem0_jax.commands.{name.replace(' ', '_')}")
        flags, overrides = command.parser().parse_known_args(words[len(name.split()) :])
        read_config(flags.config, overrides)
        return
    parse = CommandParser.parse_args

    def parse_only(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(CommandParser, "parse_args", parse_only)
    with pytest.raises(ParsedError):
        main(words)


def read_by_a_script(words: list[str]) -> None:
    """Fails where a script of ours does not exist or knows nothing of a flag."""
    script, *flags = words
    text = (ROOT / script).read_text()
    for flag in flags:
        assert not flag.startswith("--") or flag == "--" or flag.split("=")[0] in text, f"{script} has no {flag}"


@pytest.mark.parametrize(
    ("page", "words"),
    [pytest.param(page, words, id=f"{page.stem}: {' '.join(words)[:60]}") for page in PAGES for words in calls(page)],
)
def test_commands_are_read(page, words, monkeypatch):
    program, *rest = words
    if program == "mem0-jax":
        if all(word.isalpha() for word in rest):  # a mention
            assert main([*rest, "--help"]) == 0
        elif rest != ["--help"]:
            read_by_the_program(rest, monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+)(?: [a-z -]+)?:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest[0] in targets
    elif program == "python":
        read_by_a_script(rest)
    elif program == "bash":  # in RMBench's checkout, where the folder has another name
        read_by_a_script([re.sub("^policy/Mem0_JAX", "scripts/rmbench", rest[0])])
    elif program.startswith("scripts/"):
        read_by_a_script(words)
    else:
        assert program in OTHERS, f"{page.name}: what is {program}?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_imports_what_is_there(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text())
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:mem0_jax|scripts|tests|configs|docs)/[\w./]+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing + [path for path in paths if not (ROOT / path).exists()] == []


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert [page.name for page in PAGES[1:-1] if f"](docs/{page.name})" not in text] == []


def test_the_files_of_make_quick_exist():
    names = (ROOT / "tests" / "quick.txt").read_text().split()
    assert names == sorted(set(names))
    assert [name for name in names if not (ROOT / name).is_file()] == []
