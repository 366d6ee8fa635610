"""Writing .pt files: our reader and torch read back exactly what was written."""

import itertools
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from mem0_jax.convert.torch_pt import STORAGE_DTYPES, open_pt, read_pt
from mem0_jax.convert.torch_pt_write import PtWriteError, write_pt

ASSETS = Path(__file__).parent / "assets"
DTYPES = sorted(STORAGE_DTYPES.values(), key=str)


@dataclass
class Lazy:
    """A tensor made when read; `twin` says what it is tied to."""

    array: np.ndarray
    twin: object = None
    reads: int = 0

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self) -> np.ndarray:
        self.reads += 1
        return self.array

    def same_as(self, other: object) -> bool:
        return self.twin is other


def arrays():
    """Arrays of every dtype, with any bits, of any layout."""

    def build(dtype, shape, data, transpose):
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.frombuffer((data * (size // len(data) + 1))[:size], np.uint8)
        array = (raw % 2).view(dtype) if dtype == np.bool_ else raw.view(dtype)
        return array.reshape(shape).T if transpose else array.reshape(shape)

    shapes = nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    return st.builds(build, st.sampled_from(DTYPES), shapes, st.binary(min_size=1, max_size=40), st.booleans())


def texts():
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def trees():
    scalars = st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | texts()
    keys = texts() | st.integers() | st.booleans() | st.tuples(texts(), st.integers())

    def containers(child):
        items = st.dictionaries(keys, child, max_size=3)
        return st.lists(child, max_size=3) | st.lists(child, max_size=3).map(tuple) | items | items.map(OrderedDict)

    return st.recursive(scalars | arrays(), containers, max_leaves=12)


def assert_same(got, want):
    if isinstance(want, np.ndarray):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert got.tobytes() == want.tobytes()
    elif isinstance(want, dict):
        assert type(got) is dict  # of an OrderedDict too
        assert list(got) == list(want)
        assert [type(key) for key in got] == [type(key) for key in want]
        for key in want:
            assert_same(got[key], want[key])
    elif isinstance(want, list | tuple):
        assert type(got) is type(want)
        assert len(got) == len(want)
        for a, b in zip(got, want):
            assert_same(a, b)
    else:
        assert (type(got), got) == (type(want), want)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees())
def test_our_reader_reads_back_every_tree(tmp_path, tree):
    write_pt(tmp_path / "a.pt", tree)
    assert_same(read_pt(tmp_path / "a.pt"), tree)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_storages_are_aligned_and_the_archive_is_sound(tmp_path):
    write_pt(tmp_path / "a.pt", [np.arange(n, dtype=np.int16) for n in range(1, 90)])
    assert [tensor.start % 64 for tensor in open_pt(tmp_path / "a.pt")] == [0] * 89
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None  # every checksum
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"


@pytest.mark.parametrize("name", ["checkpoint", "dtypes", "views"])
def test_files_of_torch_are_copied(tmp_path, name):
    lazy = open_pt(ASSETS / f"{name}.pt")
    write_pt(tmp_path / "copy.pt", lazy)
    assert_same(read_pt(tmp_path / "copy.pt"), read_pt(ASSETS / f"{name}.pt"))


def test_tied_tensors_share_a_storage(tmp_path):
    array = np.arange(6, dtype=np.float32)
    first = Lazy(array)
    second = Lazy(array, twin=first)
    tree = {"a": array, "again": array, "copy": array.copy(), "first": first, "second": second, "view": array[:]}
    write_pt(tmp_path / "a.pt", tree)
    got = open_pt(tmp_path / "a.pt")
    ties = {pair for pair in itertools.combinations(got, 2) if got[pair[0]].same_as(got[pair[1]])}
    assert ties == {("a", "again"), ("first", "second")}
    assert (first.reads, second.reads) == (1, 0)
    write_pt(tmp_path / "b.pt", got)
    got = open_pt(tmp_path / "b.pt")
    assert ties == {pair for pair in itertools.combinations(got, 2) if got[pair[0]].same_as(got[pair[1]])}


def test_big_endian_and_scattered_arrays_become_plain_ones(tmp_path):
    array = np.arange(24, dtype=">f4").reshape(4, 6)
    write_pt(tmp_path / "a.pt", [array, array[::2, ::-1], np.broadcast_to(array[:1], (3, 6))])
    for got, want in zip(read_pt(tmp_path / "a.pt"), [array, array[::2, ::-1], np.broadcast_to(array[:1], (3, 6))]):
        assert got.dtype == np.dtype("<f4")
        np.testing.assert_array_equal(got, want)
    tensor = open_pt(tmp_path / "a.pt")[1]
    assert (tensor.shape, tensor.strides, tensor.offset) == ((2, 6), (6, 1), 0)


def test_one_tensor_at_a_time_and_every_byte_reported(tmp_path):
    class Large:
        dtype = np.dtype(np.float32)
        shape = (2**22,)

        def read(self):
            return np.zeros(self.shape, self.dtype)

    seen = []
    tracemalloc.start()
    write_pt(tmp_path / "a.pt", [Large() for _ in range(6)], seen.append)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(seen) == 6 * 2**24
    assert peak < 2.2 * 2**24


def test_sizes_are_written_in_64_bits(tmp_path):
    """So that storages of more than 4 GiB need no other form than those that the tests read."""
    write_pt(tmp_path / "a.pt", [np.arange(400, dtype=np.int32)])
    assert b"\x01\x00\x10\x00" + struct.pack("<QQ", 1600, 1600) in (tmp_path / "a.pt").read_bytes()


class Liar(Lazy):
    @property
    def shape(self) -> tuple[int, ...]:
        return (3, 2)


LOOP: list = []
LOOP.append(LOOP)
BAD = {
    "set": ({"a": [1, {2}]}, "/a/1 is a set, expected a dict"),
    "root": (object(), "the root is a object"),
    "numpy number": ({"a": np.float32(1)}, "/a is a float32"),
    "float64 is no Python number": ({"a": np.float64(1)}, "/a is a float64"),
    "dtype": ({"a": np.zeros(2, np.uint32)}, "/a: torch has no storage of dtype uint32"),
    "text": ({"a": np.array(["x"])}, "/a: torch has no storage"),
    "objects": ({"a": np.array([None])}, "/a: torch has no storage"),
    "loop": ({"a": LOOP}, "more than 64 deep, or holds itself"),
    "key": ({"a": {b"k": 1}}, "/a: key b'k' is a bytes"),
    "nested key": ({((1,),): 1}, "the root: key"),
    "large number": ({"a": 2**3000}, "/a: a whole number of 376 bytes"),
    "half a character": ({"a": "\ud800"}, "/a: text that is not Unicode"),
    "lying tensor": ({"a": Liar(np.zeros(6))}, r"/a: announced as float64 \(3, 2\), but reads as float64 \(6,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named_and_nothing_left(tmp_path, case):
    tree, message = BAD[case]
    (tmp_path / "a.pt").write_bytes(b"old")
    with pytest.raises(PtWriteError, match=message):
        write_pt(tmp_path / "a.pt", tree)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == b"old"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_pt(tmp_path / "no" / "a.pt", {})


@pytest.mark.torch
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees())
def test_torch_reads_back_every_tree(tmp_path, tree):
    torch = pytest.importorskip("torch")

    def compare(got, want):
        if isinstance(want, np.ndarray):
            assert isinstance(got, torch.Tensor)
            assert got.stride() == torch.empty(want.shape).stride()
            assert str(got.dtype) == f"torch.{want.dtype.name}"
            assert tuple(got.shape) == want.shape
            if want.size:
                assert got.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == want.tobytes()
            assert not got.requires_grad
        elif isinstance(want, dict):
            assert type(got) is type(want)
            assert list(got) == list(want)
            for key in want:
                compare(got[key], want[key])
        elif isinstance(want, list | tuple):
            assert type(got) is type(want)
            assert len(got) == len(want)
            for a, b in zip(got, want):
                compare(a, b)
        else:
            assert (type(got), got) == (type(want), want)

    write_pt(tmp_path / "a.pt", tree)
    compare(torch.load(tmp_path / "a.pt", weights_only=True), tree)
    compare(torch.load(tmp_path / "a.pt", weights_only=True, mmap=True), tree)


@pytest.mark.torch
def test_torch_loads_a_state_dict_with_tied_weights(tmp_path):
    torch = pytest.importorskip("torch")
    weight = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    write_pt(tmp_path / "a.pt", OrderedDict({"0.weight": weight, "1.weight": weight}))
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    model = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 3, bias=False)).bfloat16()
    model.load_state_dict(state, strict=True)
    assert model[1].weight.float().tolist() == weight.astype(np.float32).tolist()
    assert state["0.weight"].stride() == (4, 1)
