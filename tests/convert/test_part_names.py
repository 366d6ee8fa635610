"""Names of byte parts, as real `split` gives them: order, gaps, and what is no part."""

import subprocess
from pathlib import Path

import pytest

from mem0_jax.convert.files import Parts, PartsError
from mem0_jax.convert.torch_pt import PtError, open_pt

CONTENT = bytes(n % 251 for n in range(4000))


def split(folder: Path, size: int, *words: str, content: bytes = CONTENT) -> list[Path]:
    """Parts of a file x.pt, which is gone then, in the order in which split wrote them."""
    (folder / "x.pt").write_bytes(content)
    flags, prefix = words[:-1], words[-1]
    command = ["split", "--verbose", "-b", str(size), *flags, "x.pt", *([prefix] if prefix else [])]
    told = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    (folder / "x.pt").unlink()
    return [folder / line.split("'")[1] for line in told.splitlines()]


FORMS = {
    "letters": (400, ("x.pt.part",), "x.pt"),
    "three letters": (400, ("-a", "3", "x.pt.part"), "x.pt"),
    "more than z": (100, ("x.pt.part",), "x.pt"),
    "letters grown": (4, ("x.pt.part",), "x.pt"),
    "digits grown": (40, ("-d", "x.pt.part"), "x.pt"),
    "one digit": (500, ("-d", "-a", "1", "x.pt.part"), "x.pt"),
    "other separators": (400, ("x.pt_part-",), "x.pt"),
    "plain": (400, ("",), "x"),
    "plain grown": (4, ("",), "x"),
    "no part, letters": (400, ("x.pt.",), "x.pt"),
    "glued": (400, ("x.pt",), "x.pt"),
    "no part, digits": (400, ("-d", "x.pt."), "x.pt"),
    "no part, digits grown": (40, ("-d", "x.pt."), "x.pt"),
    "hexadecimal": (100, ("-x", "x.pt.part"), "x.pt"),
    "hexadecimal from 1": (200, ("-a", "3", "--hex-suffixes=1", "x.pt.part"), "x.pt"),
    "hexadecimal, one digit": (300, ("-x", "-a", "1", "x.pt.part"), "x.pt"),
    "hexadecimal grown": (15, ("-x", "x.pt_part_"), "x.pt"),
    "no part, hexadecimal": (100, ("-x", "x.pt."), "x.pt"),
    "plain, hexadecimal": (20, ("-x", ""), "x"),
    "from 001": (400, ("-a", "3", "--numeric-suffixes=1", "x.pt."), "x.pt"),
}


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_read_in_the_order_in_which_split_wrote_them(tmp_path, form):
    size, words, name = FORMS[form]
    written = split(tmp_path, size, *words)
    (tmp_path / "README.md").write_text("beside")
    for source in (tmp_path, tmp_path / "x*", written[0], written[-1]):
        parts = Parts.open(source)
        assert parts.paths == tuple(written)
        assert parts.name == name
        assert parts.read(0, parts.size).tobytes() == CONTENT


def test_numbers_without_zeros(tmp_path):
    for n in range(12):
        (tmp_path / f"x.pt.part{n}").write_bytes(bytes([n]) * 7)
    parts = Parts.open(tmp_path)
    assert parts.read(0, parts.size).tobytes() == b"".join(bytes([n]) * 7 for n in range(12))


@pytest.mark.parametrize("prefix", ["x.pt.part", "x.pt.", ""])
def test_a_gap_is_named(tmp_path, prefix):
    written = split(tmp_path, 400, prefix)
    written[1].unlink()
    written[5].unlink()
    with pytest.raises(PartsError, match=f"missing {prefix or 'x'}ab, {prefix or 'x'}af: download"):
        Parts.open(written[0])


@pytest.mark.parametrize("prefix", ["x.pt.part", "x.pt."])
def test_a_gap_of_hexadecimal_parts_is_named(tmp_path, prefix):
    written = split(tmp_path, 100, "-x", prefix)
    written[11].unlink()
    written[26].unlink()
    with pytest.raises(PartsError, match=f"missing {prefix}0b, {prefix}1a: download"):
        Parts.open(written[0])


def test_sums_of_other_kinds_are_no_parts(tmp_path):
    written = split(tmp_path, 400, "x.pt.part")
    for suffix in ("md5", "sha1", "sha512", "b2"):
        (tmp_path / f"x.pt.part.{suffix}").write_bytes(b"0")
    for source in (tmp_path, tmp_path / "x.pt.part*"):
        assert Parts.open(source).paths == tuple(written)


def test_advice_about_parts_can_be_followed(tmp_path):
    written = split(tmp_path, 400, "x.pt.part")
    (tmp_path / "x.pt.part.txt").write_bytes(b"from somewhere")
    for source in ("x.pt.part*", "x.pt"):
        with pytest.raises(PartsError, match=r"any (part|one) such as \S+/x\.pt\.partaa\b") as caught:
            Parts.open(tmp_path / source)
        advised = str(caught.value).split("such as ")[1].split()[0]
        assert Parts.open(advised).paths == tuple(written)


def test_a_first_part_that_is_missing(tmp_path):
    written = split(tmp_path, 400, "x.pt.part")
    written[0].unlink()
    with pytest.raises(PartsError, match=r"missing x\.pt\.partaa: download"):
        Parts.open(tmp_path)
    for path in written[1:]:
        path.rename(tmp_path / path.name.replace(".part", "."))
    with pytest.raises(PartsError, match=r"parts are called X\.part00, X\.part01, .* or X\.partaa"):
        Parts.open(tmp_path / "x.pt.*")


def test_other_files_beside_parts(tmp_path):
    written = split(tmp_path, 400, "x.pt.part")
    (tmp_path / "x.pt.partial").write_bytes(b"half a download")
    (tmp_path / "x.pt.json").write_text("{}")
    assert Parts.open(tmp_path).paths == Parts.open(written[3]).paths == tuple(written)
    with pytest.raises(PartsError, match=r"holds x\.pt, x\.pt\.json, x\.pt\.partial: name one of them"):
        Parts.open(tmp_path / "x.pt*")
    split(tmp_path, 400, "-d", "x.pt.part")
    with pytest.raises(PartsError, match="parts with numbers and parts with letters: name a pattern of one kind"):
        Parts.open(tmp_path)
    assert Parts.open(tmp_path / "x.pt.parta?").paths == tuple(written)


def test_names_that_look_hexadecimal_are_names(tmp_path):
    for name in ("model.part2b", "model.partb", "model.part.bad"):
        (tmp_path / name).write_bytes(b"1")
        assert Parts.open(tmp_path / name).paths == (tmp_path / name,)


def test_numbered_checkpoints_are_no_parts(tmp_path):
    whole = (Path(__file__).parent / "assets" / "views.pt").read_bytes()
    for n in range(3):
        (tmp_path / f"step_0{n}").write_bytes(whole)
    assert Parts.open(tmp_path / "step_01").paths == (tmp_path / "step_01",)
    with pytest.raises(PartsError, match="holds step_00, step_01, step_02: name one of them"):
        Parts.open(tmp_path / "step_*")


def test_a_lone_first_part_is_known_as_one(tmp_path):
    whole = (Path(__file__).parent / "assets" / "views.pt").read_bytes()
    written = split(tmp_path, 900, "x.pt.part", content=whole)
    for path in written[1:]:
        path.unlink()
    with pytest.raises(PtError, match=r"x\.pt\.partaa, the zip directory is missing .* or the parts behind it"):
        open_pt(written[0])


def test_parts_in_several_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        split(tmp_path / name, 400, "x.pt.part")
    with pytest.raises(PartsError, match="files in several folders"):
        Parts.open(tmp_path / "*" / "x.pt.part*")
