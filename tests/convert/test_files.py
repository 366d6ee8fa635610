"""Parts of a file as one file, their faults, and their SHA-256 sums."""

import hashlib
import os
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem0_jax.convert.files import BLOCK_BYTES, Digest, Parts, PartsError
from mem0_jax.errors import UserError

CONTENT = bytes(range(250))


def cut(folder: Path, content: bytes = CONTENT, size: int = 100, first: int = 0, digits: int = 2, name: str = "x.pt"):
    """Writes NAME.partNN of `size` bytes and returns their paths."""
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    paths = [folder / f"{name}.part{n:0{digits}}" for n in range(first, first + len(pieces))]
    for path, piece in zip(paths, pieces):
        path.write_bytes(piece)
    return paths


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ----------------------------------------------------------------------------------------------------- finding, reading


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("digits", [1, 2, 5])
def test_every_way_to_name_the_parts_reads_the_whole(tmp_path, first, digits):
    paths = cut(tmp_path, size=20, first=first, digits=digits)  # 13: more than one digit
    for source in (tmp_path, str(tmp_path), tmp_path / "x.pt.part*", f"{tmp_path}/*.part*", paths[3]):
        parts = Parts.open(source)
        assert parts.paths == tuple(paths)
        assert (parts.name, parts.size) == ("x.pt", 250)
        assert parts.read(0, 250).tobytes() == CONTENT


def test_a_single_file(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(CONTENT)
    for source in (path, str(path), tmp_path / "*.pt", tmp_path / "x.*"):
        parts = Parts.open(source)
        assert (parts.name, parts.paths, parts.size) == ("x.pt", (path,), 250)
        (tmp_path / "x.pt.sha256").write_text(sha256(CONTENT))  # no pattern takes it for a checkpoint
    assert parts.reader().read() == CONTENT


def test_names_with_pattern_letters_are_names(tmp_path):
    paths = cut(tmp_path, name="a[1].pt")
    assert Parts.open(paths[0]).paths == tuple(paths)
    (tmp_path / "b[2].pt").write_bytes(b"b")
    assert Parts.open(tmp_path / "b[2].pt").size == 1


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), content=st.binary(min_size=1, max_size=60))
def test_reads_equal_slices_of_the_whole(tmp_path_factory, data, content):
    folder = tmp_path_factory.mktemp("parts")
    parts = Parts.open(cut(folder, content, data.draw(st.integers(1, 60)))[0])
    start = data.draw(st.integers(0, len(content)))
    count = data.draw(st.integers(0, len(content) - start))
    found = parts.read(start, count)
    assert (found.dtype, found.shape, found.tobytes()) == (np.uint8, (count,), content[start : start + count])
    assert not found.flags.writeable
    reader = parts.reader()
    reader.seek(start)
    assert reader.read(count) == content[start : start + count]
    assert reader.seek(0, os.SEEK_END) == len(content)
    if count:
        offset = sum(path.stat().st_size for path in parts.paths[: parts.paths.index(parts.part_at(start))])
        assert parts.part_at(start).read_bytes()[start - offset] == content[start]


def test_ranges_within_a_part_are_mapped_others_copied(tmp_path):
    parts = Parts.open(cut(tmp_path)[0])
    assert isinstance(parts.read(110, 90).base, np.memmap)
    assert not isinstance(parts.read(110, 91).base, np.memmap)
    for start, count in [(0, 251), (251, 0), (-1, 1), (0, -1)]:
        with pytest.raises(PartsError, match="of 250"):
            parts.read(start, count)


def test_the_reader_is_a_file_to_other_libraries(tmp_path):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("a", b"1" * 500)
        archive.writestr("b", b"2" * 500)
    parts = Parts.open(cut(tmp_path, (tmp_path / "whole.zip").read_bytes(), 77)[0])
    with zipfile.ZipFile(parts.reader()) as archive:
        assert archive.testzip() is None
        assert archive.read("b") == b"2" * 500
    with pytest.raises(ValueError, match="negative"):
        parts.reader().seek(-1)


def test_a_part_that_shrinks_meanwhile_is_named(tmp_path):
    parts = Parts.open(cut(tmp_path)[0])
    os.truncate(parts.paths[1], 50)
    for start, count in [(120, 70), (90, 100)]:
        with pytest.raises(PartsError, match="changed meanwhile"):
            parts.read(start, count)


# --------------------------------------------------------------------------------------------------------------- faults


def test_missing_parts_are_named(tmp_path):
    paths = cut(tmp_path, size=20)
    for n in (3, 7):
        paths[n].unlink()
    with pytest.raises(PartsError, match=r"missing x\.pt\.part03, x\.pt\.part07: download"):
        Parts.open(tmp_path)
    paths[0].unlink()
    paths[1].unlink()
    with pytest.raises(PartsError, match=r"missing x\.pt\.part00, x\.pt\.part01, "):
        Parts.open(tmp_path)


def test_a_huge_number_does_not_fill_the_memory(tmp_path):
    cut(tmp_path)
    (tmp_path / "x.pt.part999999999").write_bytes(b"1")
    with pytest.raises(PartsError, match=r"missing x\.pt\.part\d+, .* more") as caught:
        Parts.open(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_last_part_that_the_sums_list_is_missed(tmp_path):
    paths = cut(tmp_path)
    sums = "".join(f"{sha256(path.read_bytes())}  {path.name}\n" for path in paths)
    (tmp_path / "x.pt.sha256").write_text(sums)
    Parts.open(tmp_path)
    paths[2].unlink()
    with pytest.raises(PartsError, match=r"missing x\.pt\.part02, listed in its \.sha256"):
        Parts.open(tmp_path)


def test_a_number_given_twice(tmp_path):
    cut(tmp_path)
    (tmp_path / "x.pt.part1").write_bytes(b"1")
    with pytest.raises(PartsError, match=r"x\.pt\.part01 and x\.pt\.part1 have one number"):
        Parts.open(tmp_path)


def test_parts_cut_short_are_named(tmp_path):
    paths = cut(tmp_path, size=50)
    os.truncate(paths[1], 49)
    os.truncate(paths[3], 0)
    with pytest.raises(PartsError, match=r"x\.pt\.part01, x\.pt\.part03 cut short, expected 50 bytes"):
        Parts.open(tmp_path)


def test_the_last_part_must_not_be_larger_or_empty(tmp_path):
    paths = cut(tmp_path)
    paths[2].write_bytes(bytes(101))
    with pytest.raises(PartsError, match=r"last part x\.pt\.part02 has 101 bytes, expected 1 to 100"):
        Parts.open(tmp_path)
    os.truncate(paths[2], 0)
    with pytest.raises(PartsError, match=r"has 0 bytes"):
        Parts.open(tmp_path)


def test_directories_without_one_set_say_what_they_hold(tmp_path):
    with pytest.raises(PartsError, match="holds no files: name a file"):
        Parts.open(tmp_path)
    (tmp_path / "readme.md").write_text("")
    with pytest.raises(PartsError, match=r"holds readme\.md: name a file"):
        Parts.open(tmp_path)
    cut(tmp_path)
    Parts.open(tmp_path)
    cut(tmp_path, name="y.pt")
    with pytest.raises(PartsError, match=r"holds x\.pt, y\.pt: name one of them"):
        Parts.open(tmp_path)
    with pytest.raises(PartsError, match=r"name one of them"):
        Parts.open(tmp_path / "*")


def test_sources_that_are_not_there(tmp_path):
    for source in (tmp_path / "x.pt", tmp_path / "*.pt", "a\0b"):
        with pytest.raises(UserError, match=r"No such file|null"):
            Parts.open(source)
    cut(tmp_path)
    with pytest.raises(PartsError, match=r"No such file or directory, but parts of it: name .*x\.pt\.part\*"):
        Parts.open(tmp_path / "x.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(PartsError, match="not a regular file"):
        Parts.open(tmp_path / "pipe.pt")


# ----------------------------------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("line", ["{h}  x.pt", "{h} *x.pt", "{h}", "{h}  /data/run/x.pt", "{H}  x.pt\r", "{h}  old.pt"])
@pytest.mark.parametrize("name", ["x.pt.sha256", "x.sha256"])
def test_forms_of_sums(tmp_path, line, name):
    parts = Parts.open(cut(tmp_path)[0])
    (tmp_path / name).write_text(line.format(h=sha256(CONTENT), H=sha256(CONTENT).upper()) + "\n")
    assert parts.expected_sha256() == {"x.pt": sha256(CONTENT)}
    assert Digest(parts).result() == sha256(CONTENT)


def test_sums_of_parts_in_one_file_or_each_its_own(tmp_path):
    paths = cut(tmp_path)
    sums = {path.name: sha256(path.read_bytes()) for path in paths}
    (tmp_path / "x.pt.sha256").write_text(
        "".join(f"{value}  ./{name}\n" for name, value in sums.items()) + f"{'0' * 64}  z"
    )
    assert Parts.open(tmp_path).expected_sha256() == sums
    (tmp_path / "x.pt.sha256").unlink()
    for name, value in sums.items():
        (tmp_path / f"{name}.sha256").write_text(value)
    assert Parts.open(tmp_path).expected_sha256() == sums
    assert Digest(Parts.open(tmp_path)).result() == sha256(CONTENT)


def test_files_of_sums_under_other_names_count_where_they_name_us(tmp_path):
    cut(tmp_path)
    zeros = "0" * 64
    (tmp_path / "all.sha256").write_text(f"# made today\n{zeros}\n{sha256(CONTENT)}  run/x.pt\n{zeros}  y.pt\n")
    (tmp_path / "y.pt.sha256").write_text(f"{zeros}  y.pt\n")
    assert Parts.open(tmp_path).expected_sha256() == {"x.pt": sha256(CONTENT)}
    (tmp_path / "x.pt.sha256").write_text(f"{zeros}\n")  # our own goes first
    assert Parts.open(tmp_path).expected_sha256() == {"x.pt": zeros}


def test_what_sha256sum_writes(tmp_path):
    cut(tmp_path)
    command = "cat x.pt.part* > x.pt && sha256sum x.pt x.pt.part* > x.pt.sha256 && rm x.pt"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert len(Parts.open(tmp_path).expected_sha256()) == 4
    assert Digest(Parts.open(tmp_path)).result() == sha256(CONTENT)


@pytest.mark.parametrize("text", ["hello", "0" * 128 + "  x.pt", "0" * 63, "\xff" * 70])
def test_sums_that_are_none(tmp_path, text):
    cut(tmp_path)
    (tmp_path / "x.pt.sha256").write_text(f"\n{text}\n")
    with pytest.raises(PartsError, match=r"x\.pt\.sha256, line 2: expected `HEX  FILE` with 64"):
        Parts.open(tmp_path)


def test_the_damaged_part_is_named(tmp_path):
    paths = cut(tmp_path)
    lines = [f"{sha256(CONTENT)}  x.pt", *(f"{sha256(path.read_bytes())}  {path.name}" for path in paths)]
    (tmp_path / "x.pt.sha256").write_text("\n".join(lines))
    parts = Parts.open(tmp_path)
    paths[1].write_bytes(b"?" + paths[1].read_bytes()[1:])
    with pytest.raises(PartsError, match=r"x\.pt\.part01 has SHA-256 [0-9a-f]{64}, but its") as caught:
        Digest(parts).result()
    assert str(caught.value).count("has SHA-256") == 1
    (tmp_path / "x.pt.sha256").write_text(lines[0])
    with pytest.raises(PartsError, match=r"x\.pt has SHA-256"):
        Digest(parts).result()


@pytest.mark.parametrize("with_sum", [False, True])
def test_a_repeated_part_is_named(tmp_path, with_sum):
    paths = cut(tmp_path, size=50)
    if with_sum:
        (tmp_path / "x.pt.sha256").write_text(sha256(CONTENT))
    paths[3].write_bytes(paths[2].read_bytes())
    with pytest.raises(PartsError, match=r"x\.pt\.part03 repeats x\.pt\.part02"):
        Digest(Parts.open(tmp_path)).result()


def test_equal_parts_are_good_if_the_sum_of_the_whole_says_so(tmp_path):
    cut(tmp_path, bytes(250))
    (tmp_path / "x.pt.sha256").write_text(sha256(bytes(250)))
    assert Digest(Parts.open(tmp_path)).result() == sha256(bytes(250))


def test_progress_counts_every_byte(tmp_path):
    content = bytes(BLOCK_BYTES + 1)
    (tmp_path / "x").write_bytes(content)
    seen = []
    assert Digest(Parts.open(tmp_path / "x"), seen.append).result() == sha256(content)
    assert seen == [BLOCK_BYTES, 1]


def test_cancel_stops_and_faults_come_out_of_result(tmp_path):
    paths = cut(tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    def wait(count: int) -> None:
        begun.set()
        go_on.wait(30)

    digest = Digest(Parts.open(tmp_path), wait)
    assert begun.wait(30)
    threading.Timer(0.05, go_on.set).start()
    digest.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        digest.result()
    parts = Parts.open(tmp_path)
    paths[1].unlink()
    with pytest.raises(PartsError, match=r"x\.pt\.part01: cannot be read: No such file"):
        Digest(parts).result()


def test_a_pointer_in_the_place_of_a_part_is_named(tmp_path):
    (tmp_path / "x.pt.partaa").write_bytes(bytes(500))
    (tmp_path / "x.pt.partab").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 12345\n")
    with pytest.raises(PartsError, match=r"x\.pt\.partab is a Git LFS pointer \(12345 bytes are elsewhere\)"):
        Parts.open(tmp_path / "x.pt.partaa")
