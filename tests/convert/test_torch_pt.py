"""Reading .pt files: equality with torch on files that torch wrote, and refusal of everything else."""

import contextlib
import io
import os
import pickle
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
from pt_files import ASSETS, leaves, storage, tensor_pickle, text, write

from mem0_jax.convert.torch_pt import PtError, read_pt
from mem0_jax.errors import UserError

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


# -------------------------------------------------------------------------------------------------------- hostile files


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


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["checkpoint", "dtypes", "views"]))
def test_flipped_pickles_with_good_checksums(tmp_path, data, name):
    with zipfile.ZipFile(ASSETS / f"{name}.pt") as archive:
        entries = {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}
    read_all(write(tmp_path / "flipped.pt", flip(data, entries.pop("data.pkl")), entries))


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=64), position=st.integers(0, 400))
def test_pickles_with_spliced_instructions(tmp_path, junk, position):
    good = tensor_pickle(4)
    path = write(tmp_path / "a.pt", good[:position] + junk + good[position:], {"data/0": bytes(16)})
    with contextlib.suppress(PtError):
        read_pt(path)
