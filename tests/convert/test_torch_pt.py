"""Reading .pt files: equality with torch on files that torch wrote, and refusal of everything else."""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem0_jax.convert.files import Parts
from mem0_jax.convert.torch_pt import PtError, StoredTensor, open_pt, read_pt
from mem0_jax.errors import UserError

ASSETS = Path(__file__).parent / "assets"


# ---------------------------------------------------------------------------------------------- files torch has written


@pytest.mark.parametrize("name", ["dtypes", "views"])
def test_equals_torch(name):
    tree = read_pt(ASSETS / f"{name}.pt")
    expected = np.load(ASSETS / f"{name}.npz")
    assert set(tree) == set(expected.files)
    for key, want in expected.items():
        got = tree[key].view(np.int16) if key == "bfloat16" else tree[key]
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        np.testing.assert_array_equal(got, want, err_msg=key)
    if name == "dtypes":
        assert tree["bfloat16"].dtype == ml_dtypes.bfloat16


def test_shared_storage_stays_shared_and_read_only():
    tree = read_pt(ASSETS / "views.pt")
    assert all(np.shares_memory(tree["base"], tree[key]) for key in ("row", "transposed", "strided", "one"))
    assert tree["transposed"].strides == tree["base"].strides[::-1]
    assert not any(array.flags.writeable for array in tree.values())
    with pytest.raises(ValueError, match="read-only"):
        tree["row"][0] = 1


def test_checkpoint_with_optimizer_and_plain_values():
    tree = read_pt(ASSETS / "checkpoint.pt")
    expected = np.load(ASSETS / "checkpoint.npz")
    got = {f"model/{key}": value for key, value in tree["model_state_dict"].items()}
    got |= {f"moment/{key}": value["exp_avg"] for key, value in tree["optimizer_state_dict"]["state"].items()}
    assert set(got) == set(expected.files)
    for key, want in expected.items():
        np.testing.assert_array_equal(got[key], want, err_msg=key)
    np.testing.assert_array_equal(tree["parameter"], np.arange(3, dtype=np.float32))
    assert tree["plain"] == {
        "a": [1, 2.5, None, True],
        "b": ("x", -7, 2**40, "größe"),
        "c": {3: {}, ("k", 1): []},
    }
    assert tree["number"] == 0.1
    assert type(tree["number"]) is float


def test_weights_are_mapped_not_copied(tmp_path):
    path = write(tmp_path / "large.pt", tensor_pickle(elements=2**24), {"data/0": bytes(4 * 2**24)})
    tracemalloc.start()
    tree = read_pt(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tree.nbytes == 2**26
    assert peak < 2**20


def test_needs_no_torch():
    code = f"import sys; from mem0_jax.convert.torch_pt import read_pt; read_pt({str(ASSETS / 'views.pt')!r}); "
    code += "assert not {'torch', 'jax', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.torch
def test_fresh_files_of_the_installed_torch(tmp_path):
    torch = pytest.importorskip("torch")
    tree = {"w": torch.randn(7, 5).T, "b": torch.randn(3).to(torch.bfloat16)}
    torch.save(tree, tmp_path / "fresh.pt")
    got = read_pt(tmp_path / "fresh.pt")
    np.testing.assert_array_equal(got["w"], tree["w"].numpy())
    np.testing.assert_array_equal(got["b"].astype(np.float32), tree["b"].float().numpy())


# ----------------------------------------------------------------------------------------------- lazy tensors and parts


def leaves(tree) -> list:
    if isinstance(tree, dict | list | tuple):
        return [leaf for node in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(node)]
    return [tree]


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# -------------------------------------------------------------------------------------------------------- hostile files


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def whole_tuple(values) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def storage(elements: int, kind: str = "torch\nFloatStorage") -> bytes:
    return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text("0") + text("cpu") + whole(elements) + b"tQ"


def tensor_pickle(elements, shape=None, strides=None, offset=0, kind="torch\nFloatStorage") -> bytes:
    """The pickle of one tensor on storage "0"; by default a vector of all its elements."""
    shape = (elements,) if shape is None else shape
    strides = (1,) * len(shape) if strides is None else strides
    arguments = storage(elements, kind) + whole(offset) + whole_tuple(shape) + whole_tuple(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + hooks + b"tR."


def write(path: Path, data_pickle: bytes, entries=None, compression=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", data_pickle)
        for name, content in (entries or {}).items():
            archive.writestr(f"x/{name}", content)
    return path


def test_the_hand_written_file_is_a_good_one(tmp_path):
    content = np.arange(6, dtype=np.float32)
    path = write(tmp_path / "a.pt", tensor_pickle(6, (2, 3), (3, 1)), {"data/0": content.tobytes()})
    np.testing.assert_array_equal(read_pt(path), content.reshape(2, 3))


def test_zip64_entries(tmp_path):
    """Archives above 4 GiB carry their sizes in extra fields, in the local headers as well."""
    content = np.arange(4, dtype=np.float32)
    path = write(tmp_path / "a.pt", tensor_pickle(4))
    with zipfile.ZipFile(path, "a") as archive, archive.open("x/data/0", "w", force_zip64=True) as entry:
        entry.write(content.tobytes())
    np.testing.assert_array_equal(read_pt(path), content)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_payload_is_named_and_never_run(tmp_path, protocol):
    marker = tmp_path / "owned"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = write(tmp_path / "evil.pt", pickle.dumps({"a": Payload()}, protocol))
    with pytest.raises(PtError, match=r"system" if protocol < 4 else "STACK_GLOBAL"):
        read_pt(path)
    assert not marker.exists()


def test_all_refused_names_are_listed(tmp_path):
    path = write(tmp_path / "a.pt", b"\x80\x02cos\nsystem\ncbuiltins\neval\n\x86.")
    with pytest.raises(PtError, match=r"'builtins\.eval', 'os\.system'.*state_dict"):
        read_pt(path)


DOUBLING = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))  # 60 tuples, each of the one before, twice
HOSTILE = {
    "list holding itself": (b"\x80\x02]q\x00h\x00a.", "nested"),
    "deep nesting": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested"),
    "doubling lists": (b"\x80\x02]q\x00" + b"".join(b"(h%ch%clq%c" % (i, i, i + 1) for i in range(60)) + b".", "LIST"),
    "doubling tuples": (b"\x80\x02()q\x00" + DOUBLING + b"t.", "objects: not a plausible checkpoint"),
    "doubling tuples as keys": (b"\x80\x02}()q\x00" + DOUBLING + b"Nu.", "dict key is a tuple"),
    "huge memo index": (b"\x80\x02]r\xff\xff\xff\x7fj\x01\x00\x00\x00.", "before it is made"),
    "huge text": (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
    "huge integer": (b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "damaged|LONG4"),
    "no stop": (b"\x80\x02]", "damaged"),
    "empty pickle": (b"", "damaged"),
    "missing operand": (b"\x80\x02a.", "damaged"),
    "missing mark": (b"\x80\x02]Ne.", "damaged"),
    "two results": (b"\x80\x02NN.", "2 objects"),
    "bare global": (b"\x80\x02ctorch\nFloatStorage\n.", "bare"),
    "bare storage": (b"\x80\x02" + storage(4) + b".", "bare"),
    "attributes": (b"\x80\x02}}X\x01\x00\x00\x00aNsb.", "attributes"),
    "unknown storage": (tensor_pickle(4).replace(b"\x00\x00\x000X", b"\x00\x00\x009X"), "data/9"),
    "storage too short": (tensor_pickle(5), "expected 5 x 4"),
    "storage too long": (tensor_pickle(3), "expected 3 x 4"),
    "lazy conjugate": (tensor_pickle(4).replace(b")RtR.", b")R}" + text("conj") + b"\x88stR."), "resolve_conj"),
    "storage of another type": (tensor_pickle(4, kind="torch\nDoubleStorage"), "expected 4 x 8"),
    "absurd shape": (tensor_pickle(4, (2**60, 2**60), (0, 0)), "repeats"),
    "beyond the integers": (tensor_pickle(4, (2**80,)), "whole numbers"),
    "too many elements": (tensor_pickle(4, (5,)), "beyond its storage of 4"),
    "offset": (tensor_pickle(4, (2,), offset=3), "beyond its storage"),
    "far empty view": (tensor_pickle(4, (0,), offset=9), "beyond its storage"),
    "stride": (tensor_pickle(4, (2, 2), (3, 1)), "beyond its storage"),
    "negative stride": (tensor_pickle(4, (2,), (-1,), offset=3), "whole numbers"),
    "negative size": (tensor_pickle(4, (-2,)), "whole numbers"),
    "lengths differ": (tensor_pickle(4, (2, 2), (1,)), "matching tuples"),
    "many axes": (tensor_pickle(4, (1,) * 70), "32"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles(tmp_path, case):
    data_pickle, message = HOSTILE[case]
    path = write(tmp_path / "a.pt", data_pickle, {"data/0": bytes(16)})
    with pytest.raises(PtError, match=message) as caught:
        read_pt(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_zip_bomb(tmp_path):
    path = write(tmp_path / "a.pt", tensor_pickle(2**24), {"data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    with pytest.raises(PtError, match="compressed"):
        read_pt(path)


def test_oversized_pickle(tmp_path):
    with pytest.raises(PtError, match=r"data\.pkl has 36700160 bytes"):
        read_pt(write(tmp_path / "a.pt", b"N" * (35 * 2**20)))


def test_big_endian(tmp_path):
    with pytest.raises(PtError, match="byte order is b'big'"):
        read_pt(write(tmp_path / "a.pt", tensor_pickle(4), {"data/0": bytes(16), "byteorder": b"big"}))


def test_repeated_and_stray_entries(tmp_path):
    path = write(tmp_path / "a.pt", tensor_pickle(4), {"data/0": bytes(16)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data/0", bytes(16))
    with pytest.raises(PtError, match="repeated or stray"):
        read_pt(path)
    for extra in ("y/z", "y/data.pkl"):
        path = write(tmp_path / "b.pt", tensor_pickle(4), {"data/0": bytes(16)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(extra, b"")
        with pytest.raises(PtError, match=r"stray|one NAME/data\.pkl"):
            read_pt(path)


# -------------------------------------------------------------------------------------------------------- damaged files


def test_other_formats(tmp_path):
    with pytest.raises(PtError, match=r"legacy pickle format .*torch\.save\(torch\.load"):
        read_pt(ASSETS / "legacy.pt")
    header = io.BytesIO()
    with tarfile.open(fileobj=header, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    for content, message in [(header.getvalue(), "tar format"), (b"", "empty"), (b"\x93NUMPY", "not a file of torch")]:
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(PtError, match=message):
            read_pt(tmp_path / "a.pt")
    with pytest.raises(PtError, match="No such file"):
        read_pt(tmp_path / "missing.pt")
    with pytest.raises(PtError, match="directory"):
        read_pt(tmp_path)
    assert issubclass(PtError, UserError)


def test_every_truncation_is_refused(tmp_path):
    whole_file = (ASSETS / "views.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for size in range(0, len(whole_file), 37):
        path.write_bytes(whole_file[:size])
        with pytest.raises(PtError):
            read_pt(path)


def flip(data, content: bytes) -> bytes:
    flipped = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        flipped[position] = data.draw(st.integers(0, 255))
    return bytes(flipped)


def read_all(path: Path) -> None:
    """Every byte of every array can be read, or the file is refused with the one error."""
    try:
        arrays = leaves(read_pt(path))
    except PtError:
        return
    for array in arrays:
        if isinstance(array, np.ndarray):
            array.copy()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["checkpoint", "dtypes", "views"]), size=st.sampled_from([500, 10**6]))
def test_flipped_bytes_give_arrays_or_the_one_error(tmp_path, data, name, size):
    """In one file, or in parts."""
    content = flip(data, (ASSETS / f"{name}.pt").read_bytes())
    for old in tmp_path.iterdir():
        old.unlink()
    for n, start in enumerate(range(0, len(content), size)):
        (tmp_path / f"flipped.pt.part{n}").write_bytes(content[start : start + size])
    read_all(tmp_path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["checkpoint", "dtypes", "views"]))
def test_flipped_pickles_with_good_checksums(tmp_path, data, name):
    with zipfile.ZipFile(ASSETS / f"{name}.pt") as archive:
        entries = {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}
    read_all(write(tmp_path / "flipped.pt", flip(data, entries.pop("data.pkl")), entries))


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=64), position=st.integers(0, 400))
def test_pickles_with_spliced_instructions(tmp_path, junk, position):
    good = tensor_pickle(4)
    path = write(tmp_path / "a.pt", good[:position] + junk + good[position:], {"data/0": bytes(16)})
    with contextlib.suppress(PtError):
        read_pt(path)
