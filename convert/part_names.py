"""Which files are the byte parts of one file, and in which order.

Parts are named `X.part00`, `X.part01`, ... with any number of digits, counting from 0 or 1, also hexadecimal ones
(`X.part0a`), or by letters, `X.partaa`, as `split` names them; it also leaves out the `.part` (`X.00`, `X.aa`, `xaa`),
and other programs write `X.001`. Such a name could be that of a file of its own: it is a part only beside the first one
of its set.
"""

import glob
import re
import string
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from mem0_jax.errors import UserError

PART = re.compile(r"(?P<stem>(?P<name>.+)[._-]part[._-]?)(?P<index>[0-9a-f]{1,9}|[a-z]{2,9})")
FIRST = re.compile(r"(?P<stem>.*?)(?P<index>0+[01]|aa+)")  # the first part of a set without `.part`
HEXADECIMAL = "0123456789abcdef"
SUMS = frozenset((".sha256", ".sha512", ".sha1", ".md5", ".b2", ".sfv"))  # files of sums beside parts
ADVICE = "parts are called X.part00, X.part01, ... or X.partaa, X.partab, ...; `cat` joins others"


class PartsError(UserError):
    """A file, or a set of byte parts, that is missing, incomplete, or not the one its sums describe."""


def whole_of(file: str) -> str:
    """The name of the whole whose part has this file name, "" for a name without `.part`."""
    match = PART.fullmatch(file)
    return match["name"] if match else ""


def find(source: Path) -> tuple[str, list[Path]]:
    """The name of the whole, and its parts in order; a file that is no part is its own.

    Args:
        source: a file; a directory with the parts of one file; a pattern such as `X.pt.part*` (a file of that very
            name comes first); or any one part, which stands for all of them.

    Raises:
        PartsError: naming parts that are missing or there twice, or what was found instead of parts.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.is_file())
        sets = _marked(files) or _unmarked(files)
        if not sets:
            held = few(path.name for path in files) if files else "no files"
            raise PartsError(
                f"{source}: a directory without parts such as X.pt.part00, it holds {held}: name a file ({ADVICE})"
            )
        return _only(source, sets)
    if source.exists():
        beside = sorted(path for path in source.parent.iterdir() if path.is_file())
        for sets in (_marked(beside), _unmarked(beside)):
            mine = {name: parts for name, parts in sets.items() if source in parts.values()}
            if mine:
                return _only(source, mine)
        return source.name, [source]
    return _matching(source)


def _matching(pattern: Path) -> tuple[str, list[Path]]:
    found = [path for path in sorted(map(Path, glob.glob(str(pattern)))) if path.is_file()]
    found = [path for path in found if path.suffix not in SUMS]
    if not found:
        sets = _marked(list(map(Path, glob.glob(f"{glob.escape(str(pattern))}.part*"))))
        some = "".join(f" or any one such as {min(parts.values())}" for parts in sets.values())
        hint = f", but parts of it: name {pattern}.part*{some}" if sets else ""
        raise PartsError(f"{pattern}: No such file or directory{hint}")
    sets = _marked(found) or _unmarked(found)
    strays = [path for path in found if not any(path in parts.values() for parts in sets.values())]
    if strays == found[:1] == found:
        return found[0].name, found
    if len({path.parent for path in found}) > 1:
        raise PartsError(f"{pattern}: files in several folders, {few(map(str, found))}: name one of them")
    if strays:
        names = {*sets, *(path.name for path in strays)}
        part = "".join(f"any part such as {min(parts.values())} for all; " for parts in list(sets.values())[:1])
        raise PartsError(f"{pattern}: holds {few(names)}: name one of them ({part}{ADVICE})")
    return _only(pattern, sets)


Sets = dict[str, dict[tuple[str, str], Path]]  # name of the whole -> (stem of the file name, index) -> part


def _marked(files: Sequence[Path]) -> Sets:
    """The sets whose names have `.part`."""
    sets: Sets = defaultdict(dict)
    for path in files:
        if (match := PART.fullmatch(path.name)) and path.suffix not in SUMS:
            sets[match["name"]][match["stem"], match["index"]] = path
    return {name: kept for name, parts in sets.items() if (kept := _without_words(parts))}


def _without_words(parts: dict[tuple[str, str], Path]) -> dict[tuple[str, str], Path]:
    """Without names like `X.partial` and `X.part2b`: letters count from a, and grow only behind z."""
    indexes = [index for _, index in parts]
    kept = _hexadecimal(indexes)
    if not kept:
        letters = [index for index in indexes if index.isalpha() and len(index) > 1]
        width = min(map(len, letters), default=0)
        counted = any(index.startswith("a") and len(index) == width for index in letters)
        kept = {index for index in letters if counted and (len(index) == width or index.startswith("z"))}
    return {(stem, index): path for (stem, index), path in parts.items() if index.isdigit() or index in kept}


def _hexadecimal(indexes: Iterable[str]) -> set[str]:
    """Those of `split -x`: as wide as the numbers among them, or grown behind f; none where nothing tells it was -x."""
    indexes = set(indexes)
    width = min((len(index) for index in indexes if index.isdigit()), default=0)
    fit = {i for i in indexes if not set(i) - set(HEXADECIMAL) and (len(i) == width or i.startswith("f"))}
    letters = {index for index in fit if not index.isdigit() and (not index.isalpha() or width == 1)}
    return fit if width and letters else set()


def _unmarked(files: Sequence[Path]) -> Sets:
    """The sets that `split` and others name without `.part`: a first one and more beside it, in the order of names."""
    sets: Sets = {}
    taken: set[Path] = set()
    for first in files:
        match = FIRST.fullmatch(first.name)
        if match is None or first in taken or whole_of(first.name):
            continue
        stem, index = match["stem"], match["index"]
        rest = re.compile(rf"[a-z]{{{len(index)},9}}" if index.isalpha() else rf"[0-9a-f]{{{len(index)},9}}")
        others = {path.name.removeprefix(stem): path for path in files if path.name.startswith(stem)}
        others = {i: path for i, path in others.items() if rest.fullmatch(i)}
        kept = others.keys() if index.isalpha() else _hexadecimal(others)
        parts = {(stem, i): path for i, path in others.items() if i.isdigit() or i in kept}
        if len(parts) > 1 and not any(map(_whole_zip, parts.values())):
            sets[stem.rstrip("._-") or first.name] = parts
            taken.update(parts.values())
    return sets


def _whole_zip(path: Path) -> bool:
    """Whether a file is a checkpoint of its own: it has the beginning and the end of a zip file."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(path)


def _only(source: Path, sets: Sets) -> tuple[str, list[Path]]:
    """The parts of the one set, sorted; refuses gaps and numbers given twice."""
    if len(sets) > 1:
        raise PartsError(f"{source}: holds {few(sets)}: name one of them")
    ((name, parts),) = sets.items()
    whole = next(iter(parts.values())).parent / name
    stem, example = next(iter(parts))
    indexes = [index for _, index in parts]
    alphabet = string.digits if example.isdigit() else string.ascii_lowercase
    alphabet = HEXADECIMAL if _hexadecimal(indexes) else alphabet
    if set("".join(indexes)) - set(alphabet):
        raise PartsError(f"{whole}: has parts with numbers and parts with letters: name a pattern of one kind")
    places = _places(indexes, alphabet)
    numbered: dict[int, list[Path]] = defaultdict(list)
    for (_, index), path in parts.items():
        numbered[places[index]].append(path)
    first = 1 if min(numbered) == 1 and alphabet != string.ascii_lowercase else 0
    missing = [n for n in range(first, min(max(numbered), first + 10_000)) if n not in numbered]
    problems = [
        f"{' and '.join(sorted(p.name for p in same))} have one number" for same in numbered.values() if same[1:]
    ]
    if missing:
        problems.append(f"missing {few(stem + _spelled(n, len(example), alphabet) for n in missing)}")
    if problems:
        raise PartsError(f"{whole}: {'; '.join(problems)}: download these parts again")
    return name, [numbered[n][0] for n in sorted(numbered)]


def _places(indexes: Sequence[str], alphabet: str) -> dict[str, int]:
    """The number of each index: its value, or where `split` ran out of one width its place: yz, zaaa; 89, 9000."""
    base, last, width = len(alphabet), alphabet[-1], min(map(len, indexes))
    longer = {index: (len(index) - width) // 2 for index in indexes}
    grown = width > 1 and all(index.startswith(last * k) and len(index) == width + 2 * k for index, k in longer.items())
    if not grown:
        longer = dict.fromkeys(indexes, 0)
    before = [0]  # places of narrower ones
    for k in range(max(longer.values())):
        before.append(before[-1] + (base - 1) * base ** (width + k - 1))

    def value(digits: str) -> int:
        return sum(alphabet.index(digit) * base**n for n, digit in enumerate(reversed(digits)))

    return {index: before[k] + value(index[k:]) for index, k in longer.items()}


def _spelled(number: int, width: int, alphabet: str) -> str:
    """The index of a small number."""
    word = ""
    while number or len(word) < width:
        number, digit = divmod(number, len(alphabet))
        word = alphabet[digit] + word
    return word


def few(names: Iterable[str]) -> str:
    """At most ten names, so that a hostile directory cannot flood the terminal."""
    shown = sorted(names)
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
