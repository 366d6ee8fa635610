"""Safetensors: what is written is read back, files of the safetensors library are read, everything else is refused."""

import json
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem0_jax.convert.hf_safetensors import DTYPES, SafetensorsError, open_safetensors, write_safetensors
from mem0_jax.convert.stored import StoredTensor
from mem0_jax.errors import UserError

INDEX = "model.safetensors.index.json"


def sample() -> dict[str, np.ndarray]:
    """One array of every dtype, an empty one, a scalar, and a single byte that shifts whatever comes behind it."""
    every: dict[str, np.ndarray] = {
        f"model.{name}": np.arange(-6, 6).astype(dtype).reshape(3, 4) for name, dtype in DTYPES.items()
    }
    every["byte"] = np.ones(1, np.int8)
    return every | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 7), np.float16), "größe": np.ones(3)}


def assert_equal(tensors, arrays):
    assert set(tensors) == set(arrays)
    for name, want in arrays.items():
        tensor = tensors[name]
        assert isinstance(tensor, StoredTensor)
        got = tensor.read()
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == (want.dtype, want.shape, want.nbytes)
        assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
        assert not got.flags.writeable


# ----------------------------------------------------------------------------------------------- round trips


def test_one_file(tmp_path):
    write_safetensors(tmp_path / "a" / "b", sample())
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["model.safetensors"]
    for source in (tmp_path / "a" / "b", str(tmp_path / "a" / "b" / "model.safetensors")):
        assert_equal(open_safetensors(source), sample())
        assert all(tensor.read().flags.aligned for tensor in open_safetensors(source).values())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 1200))
def test_shards(tmp_path_factory, limit):
    folder = tmp_path_factory.mktemp("shards")
    write_safetensors(folder, sample(), shard_bytes=limit)
    assert_equal(open_safetensors(folder), sample())
    files = sorted(path.name for path in folder.iterdir())
    if len(files) == 1:
        assert files == ["model.safetensors"]
        return
    count = len(files) - 1
    assert files[:-1] == [f"model-{k:05}-of-{count:05}.safetensors" for k in range(1, count + 1)]
    assert_equal(open_safetensors(folder / INDEX), sample())
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in sample().values())}
    for file in files[:-1]:
        held = open_safetensors(folder / file)
        assert {name for name, shard in index["weight_map"].items() if shard == file} == set(held)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit


def test_lazy_big_endian_and_scattered_tensors(tmp_path):
    arrays = {"a": np.arange(12, dtype=np.int64).reshape(3, 4), "b": np.arange(3, dtype=np.int8)}
    write_safetensors(tmp_path / "1", {"a": arrays["a"].astype(">i8"), "b": arrays["b"]})
    lazy = open_safetensors(tmp_path / "1")
    assert_equal(lazy, arrays)
    write_safetensors(tmp_path / "2", lazy)
    assert_equal(open_safetensors(tmp_path / "2"), arrays)
    write_safetensors(tmp_path / "3", {"a": arrays["a"][:, ::-2]})
    np.testing.assert_array_equal(open_safetensors(tmp_path / "3")["a"].read(), arrays["a"][:, ::-2])


def test_one_tensor_at_a_time_and_every_byte_reported(tmp_path):
    class Large:
        dtype = np.dtype(np.float32)
        shape = (2**22,)

        def read(self):
            return np.zeros(self.shape, self.dtype)

    seen = []
    tracemalloc.start()
    write_safetensors(tmp_path, {str(n): Large() for n in range(6)}, 2**25, seen.append)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(seen) == 6 * 2**24
    assert peak < 2.2 * 2**24
    assert len(list(tmp_path.iterdir())) == 4


def test_the_safetensors_library_reads_and_writes_the_same(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "ours", sample())
    theirs = library.load_file(tmp_path / "ours" / "model.safetensors")
    assert set(theirs) == set(sample())
    for name, want in sample().items():
        assert (theirs[name].dtype, theirs[name].tobytes()) == (want.dtype, want.tobytes())
    library.save_file(sample(), tmp_path / "theirs.safetensors", {"format": "np"})
    assert_equal(open_safetensors(tmp_path / "theirs.safetensors"), sample())


@pytest.mark.torch
def test_torch_and_its_metadata(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    write_safetensors(tmp_path, {"a": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)})
    got = safetensors.load_file(tmp_path / "model.safetensors")["a"]
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.importorskip("safetensors").safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses files without
    safetensors.save_file({"a": got.T.contiguous()}, tmp_path / "b.safetensors")
    assert open_safetensors(tmp_path / "b.safetensors")["a"].read().astype(int).tolist() == [[0, 3], [1, 4], [2, 5]]


# ----------------------------------------------------------------------------------------------- damaged files


def write(path: Path, header, content: bytes = bytes(16), length: int | None = None) -> Path:
    """A file with any header: text, or what JSON makes of it."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content)
    return path


def entry(dtype="F32", shape=(4,), begin=0, end=16) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_the_hand_written_file_is_a_good_one(tmp_path):
    path = write(tmp_path / "a.safetensors", {"__metadata__": {"k": "v"}, "a": entry()})
    assert_equal(open_safetensors(path), {"a": np.zeros(4, np.float32)})


BAD = {
    "no JSON": ("{", "not JSON"),
    "list": ("[]", "expected a JSON object, got a list"),
    "nested": ("[" * 100_000, "not JSON"),
    "twice": ('{"a":' + json.dumps(entry()) + ',"a":' + json.dumps(entry()) + "}", "given twice"),
    "long number": ('{"a": ' + "9" * 10_000 + "}", "not JSON"),
    "bytes": ("\udcff", "not JSON"),
    "metadata": ({"__metadata__": {"a": 1}, "a": entry()}, "__metadata__ is not a table of texts"),
    "no table": ({"a": 3}, "'a' is not described by"),
    "more keys": ({"a": entry() | {"x": 1}}, "'a' is not described by"),
    "dtype": ({"a": entry("F4")}, "'a' has dtype 'F4', expected one of BF16"),
    "dtype list": ({"a": entry() | {"dtype": []}}, r"has dtype \[\]"),
    "shape": ({"a": entry(shape=(5,))}, "do not hold F32 of shape"),
    "shape of texts": ({"a": entry(shape=("4",))}, "whole numbers"),
    "shape of bools": ({"a": entry(shape=(True, 4))}, "whole numbers"),
    "fractions": ({"a": entry(shape=(4.0,))}, "whole numbers"),
    "negative": ({"a": entry(shape=(-4,))}, "whole numbers"),
    "negative offsets": ({"a": entry(begin=-16, end=0)}, "whole numbers"),
    "three offsets": ({"a": entry() | {"data_offsets": [0, 8, 16]}}, "whole numbers"),
    "absurd": ({"a": entry(shape=[2**61] * 32)}, "do not hold"),
    "axes": ({"a": entry(shape=[1] * 40)}, "32 axes"),
    "backwards": ({"a": entry(begin=16, end=0)}, "do not hold"),
    "beyond": ({"a": entry(shape=(5,), end=20)}, "do not hold"),
    "overlap": ({"a": entry(), "b": entry(shape=(2,), end=8)}, "overlap"),
    "gap": ({"a": entry(shape=(2,), begin=8)}, "leave gaps"),
    "rest": ({"a": entry(shape=(2,), end=8)}, "truncated"),
    "empty beyond": ({"a": entry(), "b": entry(shape=(0,), begin=17, end=17)}, "do not hold"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_headers(tmp_path, case):
    header, message = BAD[case]
    path = tmp_path / "a.safetensors"
    if case == "bytes":
        path.write_bytes(struct.pack("<Q", 1) + b"\xff")
    else:
        write(path, header)
    with pytest.raises(SafetensorsError, match=message) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 800
    assert issubclass(SafetensorsError, UserError)


def test_lengths_that_do_not_fit(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"1234567"):
        path.write_bytes(content)
        with pytest.raises(SafetensorsError, match="not a safetensors file"):
            open_safetensors(path)
    for length in (2**64 - 1, 2**30, 200):
        write(path, {"a": entry()}, length=length)
        with pytest.raises(SafetensorsError, match=f"header claims {length} bytes"):
            open_safetensors(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**26))
        file.truncate(2**27)  # sparse: a header that is there, but too long
    with pytest.raises(SafetensorsError, match="at most 33554432 fit"):
        open_safetensors(path)


def test_every_truncation_is_refused(tmp_path):
    write_safetensors(tmp_path / "a", sample())
    content = (tmp_path / "a" / "model.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(SafetensorsError):
            open_safetensors(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_give_tensors_or_the_one_error(tmp_path, data):
    path = write(tmp_path / "a.safetensors", {"a": entry(), "bb": entry("BF16", (2, 2), 16, 24)}, bytes(24))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.sampled_from(b'{}[]",:0159eE-aFUI\\ \xff') | st.integers(0, 255))
    path.write_bytes(content)
    try:
        tensors = open_safetensors(path)
    except SafetensorsError:
        return
    for tensor in tensors.values():
        tensor.read().copy()


# ----------------------------------------------------------------------------------------------- folders


def shards(folder: Path) -> dict:
    """Four tensors in two shards; returns the weight_map."""
    write_safetensors(folder, {name: np.full(4, n, np.float32) for n, name in enumerate("abcd")}, shard_bytes=32)
    return json.loads((folder / INDEX).read_text())["weight_map"]


def test_index_and_shards_disagree(tmp_path):
    where = shards(tmp_path)
    first, second = sorted(set(where.values()))
    changed = {"a": first, "c": first, "d": second, "x": second, "y": "model-00003-of-00003.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": changed}))
    write(tmp_path / "model.safetensors", {"a": entry()})
    with pytest.raises(SafetensorsError) as caught:
        open_safetensors(tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        f"  b is in {first}, but not by the index",
        f"  c is not in {first}",
        f"  c is in {second}, but not by the index",
        f"  x is not in {second}",
        "  model-00003-of-00003.safetensors is missing",
        "  model.safetensors lies beside, but is not in the index",
    ]


def test_many_problems_do_not_flood(tmp_path):
    where = shards(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {f"x{n}": where["a"] for n in range(1000)}}))
    with pytest.raises(SafetensorsError, match="and 983 more") as caught:
        open_safetensors(tmp_path)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/a.safetensors", "a.bin", 3, "..", "a\0.safetensors", None])
def test_an_index_names_files_beside_it_only(tmp_path, shard):
    (tmp_path / "in").mkdir()
    write(tmp_path / "a.safetensors", {"a": entry()})
    (tmp_path / "in" / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(SafetensorsError, match="expected a weight_map"):
        open_safetensors(tmp_path / "in")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(SafetensorsError, match=r"expected a weight_map|is damaged|is empty"):
        open_safetensors(tmp_path)


def test_sources_that_do_not_name_one_model(tmp_path):
    with pytest.raises(SafetensorsError, match="No such file"):
        open_safetensors(tmp_path / "none")
    with pytest.raises(SafetensorsError, match="found none: name a file"):
        open_safetensors(tmp_path)
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", {"a": entry()})
    with pytest.raises(SafetensorsError, match="found 2 of them: name a file"):
        open_safetensors(tmp_path)


# ----------------------------------------------------------------------------------------------- writing


class Liar:
    dtype = np.dtype(np.float32)
    shape = (3,)

    def read(self):
        return np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": np.zeros(2, np.complex64)}, "'a': safetensors have no complex64"),
        ({"__metadata__": np.zeros(2)}, "expected a text other than"),
        ({3: np.zeros(2)}, "expected a text other than"),
        ({"a": np.zeros(2), "b": Liar()}, r"b: announced as float32 \(3,\), but reads as float32 \(4,\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_left(tmp_path, tensors, message):
    with pytest.raises(UserError, match=message):
        write_safetensors(tmp_path, tensors, shard_bytes=8)
    assert list(tmp_path.iterdir()) == []


def test_shards_of_another_model_are_never_mixed_in(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(tmp_path, {"a": np.zeros(2)})
    with pytest.raises(SafetensorsError, match=r"holds model\.safetensors already"):
        write_safetensors(tmp_path, {"a": np.zeros(2)})
    (tmp_path / "model.safetensors").rename(tmp_path / INDEX)
    with pytest.raises(SafetensorsError, match="already"):
        write_safetensors(tmp_path, {"a": np.zeros(2)})
