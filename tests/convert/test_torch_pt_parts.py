"""Lazy tensors of .pt files, of one part or many, and parts that do not belong together."""

import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pt_files import ASSETS, leaves, tensor_pickle, write

from mem0_jax.convert.files import Parts
from mem0_jax.convert.torch_pt import PtError, StoredTensor, open_pt, read_pt


def cut(path: Path, folder: Path, size: int) -> list[Path]:
    """Cuts a file into parts of `size` bytes in a new folder."""
    folder.mkdir()
    content = path.read_bytes()
    paths = [folder / f"{path.name}.part{n:03}" for n in range(-(-len(content) // size))]
    for n, part in enumerate(paths):
        part.write_bytes(content[n * size : (n + 1) * size])
    return paths


def assert_lazy_equals_mapped(lazy, mapped):
    tensors = 0
    for tensor, array in zip(leaves(lazy), leaves(mapped), strict=True):
        if not isinstance(array, np.ndarray):
            assert tensor == array
            continue
        assert isinstance(tensor, StoredTensor)
        got = tensor.read()
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == (array.dtype, array.shape, array.size * array.itemsize)
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert not got.flags.writeable
        tensors += 1
    assert tensors > 3


@pytest.mark.parametrize("name", ["checkpoint", "dtypes", "views"])
@pytest.mark.parametrize("size", [101, 1000, 10**6])
def test_lazy_tensors_and_parts_read_the_same(tmp_path, name, size):
    path = ASSETS / f"{name}.pt"
    expected = read_pt(path)
    assert_lazy_equals_mapped(open_pt(path), expected)
    parts = cut(path, tmp_path / "parts", size)
    for source in (tmp_path / "parts", str(parts[0]), Parts.open(tmp_path / "parts")):
        assert_lazy_equals_mapped(open_pt(source), expected)
    for got, want in zip(leaves(read_pt(tmp_path / "parts")), leaves(expected), strict=True):
        np.testing.assert_array_equal(got, want)


def test_tied_tensors_are_told_from_views_of_one_storage():
    tree = open_pt(ASSETS / "views.pt")
    base = tree["base"]
    again = open_pt(ASSETS / "views.pt")["base"]
    assert base.same_as(base)
    assert not base.same_as(again)  # of another opening: the file may have changed in between
    assert not any(base.same_as(other) for key, other in tree.items() if key != "base")
    assert not base.same_as(base.read())
    assert (base.shape, base.strides, base.offset) == ((6, 8), (8, 1), 0)
    assert (tree["strided"].storage, tree["strided"].strides, tree["strided"].offset) == (base.storage, (16, 3), 8)


def test_a_lazy_tensor_maps_its_own_bytes_and_lets_go_of_them(tmp_path):
    """So that a file larger than the memory can be converted."""
    path = write(tmp_path / "large.pt", tensor_pickle(elements=2**24), {"data/0": bytes(4 * 2**24)})
    code = f"""
import gc, re
from mem0_jax.convert.torch_pt import open_pt

def resident():
    text = open("/proc/self/status").read()
    return sum(int(re.search(key + r":\\s+(\\d+)", text)[1]) for key in ("RssAnon", "RssFile")) / 1024

tensor = open_pt({str(path)!r})
before = resident()
array = tensor.read()
array.max()
while_held = resident()
del array
assert while_held - before > 60, (before, while_held)
assert resident() - before < 5, (before, resident())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def many_tensors(path: Path) -> Path:
    """A file of 40 storages of 100 bytes: any part of a few hundred bytes holds a local header."""
    tree = {f"data/{n}": bytes([n] * 100) for n in range(40)}
    return write(path, tensor_pickle(25), tree)


def test_parts_out_of_order_repeated_or_of_another_file_are_named(tmp_path):
    parts = cut(many_tensors(tmp_path / "x.pt"), tmp_path / "parts", 700)
    good = [part.read_bytes() for part in parts]
    open_pt(tmp_path / "parts")
    for a, b in [(1, 2), (3, 4), (2, 5)]:
        parts[a].write_bytes(good[b])
        for second in (good[a], good[b]):  # swapped; repeated
            parts[b].write_bytes(second)
            with pytest.raises(PtError, match=rf"of {parts[a].name}: out of order, repeated, truncated or damaged"):
                open_pt(tmp_path / "parts")
        parts[a].write_bytes(good[a])
        parts[b].write_bytes(good[b])
    parts[0].write_bytes(good[1])
    with pytest.raises(PtError, match=f"first part is missing or another one: {parts[0].name} starts with"):
        open_pt(tmp_path / "parts")
    parts[0].write_bytes(good[0])
    parts[-1].unlink()
    with pytest.raises(PtError, match=f"end of the last part, {parts[-2].name}, the zip directory is missing"):
        open_pt(tmp_path / "parts")


def test_parts_within_the_pickle_are_told_by_its_checksum(tmp_path):
    parts = cut(ASSETS / "checkpoint.pt", tmp_path / "parts", 300)
    good = [part.read_bytes() for part in parts]
    parts[1].write_bytes(good[2])
    parts[2].write_bytes(good[1])
    with pytest.raises(PtError, match=rf"in {parts[0].name} to .*, data\.pkl does not match its checksum"):
        open_pt(tmp_path / "parts")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), size=st.integers(200, 900))
def test_shuffled_parts_are_never_read_as_something_else(tmp_path_factory, data, size):
    folder = tmp_path_factory.mktemp("shuffled")
    parts = cut(ASSETS / "checkpoint.pt", folder / "parts", size)
    good = [part.read_bytes() for part in parts]
    order = data.draw(st.permutations(range(len(parts) - 1)))  # the last one is shorter
    for part, n in zip(parts, order):
        part.write_bytes(good[n])
    expected = read_pt(ASSETS / "checkpoint.pt")
    if order == sorted(order):
        assert_lazy_equals_mapped(open_pt(folder / "parts"), expected)
    else:
        with pytest.raises(PtError):
            open_pt(folder / "parts")


@pytest.mark.parametrize("field", [0, 6, 8, 30])
def test_a_bad_local_header_is_found_though_no_tensor_uses_it(tmp_path, field):
    """Signature, flags, method and name of a stray storage that the pickle never mentions."""
    path = write(tmp_path / "a.pt", tensor_pickle(4), {"data/0": bytes(16), "data/stray": bytes(8)})
    content = bytearray(path.read_bytes())
    header = content.index(b"x/data/stray") - 30
    content[header + field] ^= 1
    path.write_bytes(content)
    with pytest.raises(PtError, match=r"entry 'x/data/stray' has (no header|the header of another entry)"):
        open_pt(path)


def test_sizes_in_local_headers_count(tmp_path):
    path = write(tmp_path / "a.pt", tensor_pickle(4), {"data/0": bytes(16)})
    content = bytearray(path.read_bytes())
    header = content.index(b"x/data/0") - 30
    content[header + 22] = 17
    path.write_bytes(content)
    with pytest.raises(PtError, match="other sizes in its header"):
        open_pt(path)
    content = bytearray((ASSETS / "views.pt").read_bytes())
    descriptor = content.index(b"PK\x07\x08")
    content[descriptor + 8] ^= 1  # torch writes sizes behind the content
    path.write_bytes(content)
    with pytest.raises(PtError, match="does not end where it should"):
        open_pt(path)


def test_entries_must_not_overlap(tmp_path):
    """The content of one entry is, with its header, another entry."""
    inner = write(tmp_path / "inner.pt", tensor_pickle(4), {"data/1": bytes(16)}).read_bytes()
    header = inner.index(b"x/data/1") - 30
    hidden = inner[header : header + 30 + 8 + 16]
    path = write(tmp_path / "a.pt", tensor_pickle(4), {"data/2": hidden, "data/1": bytes(16), "data/0": bytes(16)})
    open_pt(path)
    content = bytearray(path.read_bytes())
    first = content.index(hidden)
    second = content.index(b"x/data/1", first + len(hidden)) - 30
    field = content.index(struct.pack("<I", second), second + 60)  # in the directory
    content[field : field + 4] = struct.pack("<I", first)
    path.write_bytes(content)
    with pytest.raises(PtError, match=r"entry 'x/data/1' overlaps another one"):
        open_pt(path)


def test_a_directory_that_claims_all_memory(tmp_path):
    path = write(tmp_path / "a.pt", tensor_pickle(4), {"data/0": bytes(16)})
    content = bytearray(path.read_bytes())
    with path.open("wb") as file:
        file.truncate(2**25)  # sparse
        file.write(content[:-22])
        file.seek(2**25)
        file.write(content[-22:-10] + struct.pack("<II", 2**25 - 100, 50) + b"\0\0")
    tracemalloc.start()
    with pytest.raises(PtError, match="directory is missing or damaged"):
        open_pt(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
