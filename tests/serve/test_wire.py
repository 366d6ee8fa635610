"""Messages: equal to msgpack and openpi's arrays, and nothing a stranger sends does harm."""

import pickle
import struct

import numpy as np
import pytest
from garbage import internal
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mem0_jax.serve.client import MAX_DEPTH, WireError, pack, unpack

msgpack = pytest.importorskip("msgpack")

MARKS = ("nd", "__ndarray__", "__npgeneric__", "complex", "kind", "type", "dtype", "shape", "data")  # of arrays
NAMES = st.text().filter(lambda name: name not in MARKS)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.booleans() | st.none()
VALUES = st.recursive(
    NUMBERS | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(NAMES, inner, max_size=20),
    max_leaves=30,
)
ARRAYS = st.sampled_from(["?", "u1", "<i4", ">i2", "<f4", ">f8", "f2"]).flatmap(
    lambda dtype: (
        hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4), elements={"allow_nan": False})
        if "f" in dtype
        else hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    )
)


@given(VALUES)
def test_values_are_msgpacks(value):
    assert msgpack.unpackb(pack(value), strict_map_key=False) == value
    assert unpack(msgpack.packb(value)) == value


@given(ARRAYS)
def test_arrays_come_back_in_this_machines_byte_order(array):
    found = unpack(pack({"a": [array]}))["a"][0]
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)


def test_openpis_packer_and_ours_understand_each_other():
    openpi = pytest.importorskip("openpi_client.msgpack_numpy")
    value = {"image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "x": np.float32(0.5), "n": np.int64(3)}
    for found in (unpack(openpi.packb(value)), openpi.unpackb(pack(value))):
        np.testing.assert_array_equal(found["image"], value["image"])
        assert (found["x"], found["n"]) == (0.5, 3)


def foreign(array: np.ndarray, text_keys: bool = False) -> dict:
    """An array as the package msgpack-numpy has it."""
    parts = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    return {key.decode(): value for key, value in parts.items()} if text_keys else parts


@given(ARRAYS, st.booleans())
def test_arrays_of_msgpack_numpy_are_read(array, text_keys):
    found = unpack(msgpack.packb({"a": [foreign(array, text_keys)]}))["a"][0]
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(-3), np.bool_(True), np.dtype(">f8").type(2)])
def test_numbers_of_msgpack_numpy_are_read(value):
    found = unpack(msgpack.packb({b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}))
    assert (found, type(found)) == (value, type(value.item()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"type": "|O", b"kind": b"O", b"data": b"cos\nsystem\n(S'false'\ntR."}, "of Python objects or of records"),
        ({b"type": [["x", "<f4"]], b"kind": b"V"}, "of Python objects or of records"),
        ({b"type": "|O", b"kind": b""}, "dtype must be of bool, int, uint or float, at most 8 bytes each, got '|O'"),
        ({b"type": "<c8"}, "dtype must be of bool"), ({b"type": [["x", "<f4"]]}, "got a list"),
        ({b"data": "text"}, "data must be bytes, MessagePack's bin, got text"), ({b"shape": 2}, "got a whole number"),
        ({b"shape": [3]}, r" of float32 \[3\] has 12 bytes, got 8"), ({b"shape": [1] * 9}, "got 9 of them"),
    ],
)  # fmt: skip
def test_what_msgpack_numpy_packs_and_nobody_should_open_is_refused(change, message):
    with pytest.raises(WireError, match=f"^state: packed by msgpack-numpy, an array.*{message.replace('|', '.')}"):
        unpack(msgpack.packb({"state": foreign(np.zeros(2, np.float32)) | change}))
    with pytest.raises(WireError, match=r"^seed: packed by msgpack-numpy, a complex number is not taken"):
        unpack(msgpack.packb({"seed": {b"complex": True, b"data": "1j"}}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x81\xa1a\xa1\xff", "a: a text before byte 5 is not UTF-8"), (b"\x81\xa1a", "a: the message is damaged"),
        (b"\x82\xa1a\x01\xa1a\x01", "a map holds 'a' twice"), (b"\x81\x01\x01", "keys must be text, got a whole n"),
        (b"\x81\xa1a\xd6\xff\0\0\0\0", "a: MessagePack's extension types are not taken"), (b"\x01\x02\x03", "2 bytes"),
        (b"\x81\xa1a" + b"\x91" * 99, "nested 17 deep or deeper, more than 16"), (b"\xdd\0\2" + bytes(9**6), "100000"),
    ],
)  # fmt: skip
def test_errors_name_the_entry_and_the_bound(data, message):
    with pytest.raises(WireError, match=message):
        unpack(data)


def array_of(**change):
    parts = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb(parts | {key.encode(): value for key, value in change.items()})


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O"}, {"dtype": "O"}, {"dtype": "<c8"}, {"dtype": "<U2"}, {"dtype": "|V8"}, {"dtype": "<M8[s]"},
        {"dtype": "f4,f4"}, {"dtype": "f16"}, {"dtype": 4}, {"dtype": "nonsense"}, {"dtype": [["a", "<f4"]]},
        {"shape": [3]}, {"shape": [-1]}, {"shape": [-2, -1]}, {"shape": [2.0]}, {"shape": [True, 2]}, {"shape": 2},
        {"shape": [1] * 8 + [2]}, {"shape": [2**40, 2**40]}, {"shape": None}, {"data": "text"}, {"data": bytes(7)},
        {"data": b"", "shape": [0] + [2**31 - 1] * 7}, {"data": b"", "shape": [0] + [2**31 - 1] * 4, "dtype": "?"},
        {"data": b"", "shape": [2**31 - 1, 0, 2**31 - 1]},
    ],
)  # fmt: skip
def test_arrays_that_are_none_are_refused(change):
    with pytest.raises(WireError):
        unpack(array_of(**change))
    change = {"type" if key == "dtype" else key: value for key, value in change.items()}
    with pytest.raises(WireError):
        unpack(pack({"nd": True, "kind": b"", "type": "<f4", "shape": [2], "data": bytes(8)} | change))


ODD = (
    None,
    True,
    0,
    14.0,
    "",
    "V",
    b"O",
    [],
    [1],
    [np.zeros(2)],
    {},
    {"a": 1},
    np.zeros(2),
    np.zeros((0, 3)),
    np.array(5),
)


@pytest.mark.parametrize("entry", MARKS)
@pytest.mark.parametrize("mark", [{"nd": True}, {"nd": False}, {"__ndarray__": True}, {"__npgeneric__": True}])
def test_no_entry_of_a_map_that_says_it_is_an_array_is_taken_on_trust(mark, entry):
    for odd in ODD:
        parts = {"kind": b"", "type": "<f4", "dtype": "<f4", "shape": [2], "data": bytes(8)}
        read_or_refused(pack({"state": parts | mark | {entry: odd}}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"image": [1]}', "it looks like JSON"), (b"[1, 2]", "it looks like JSON"),
        (pickle.dumps({"a": 1}), "it looks like a pickle"),
        (b"\x01\x02\x03", "2 bytes follow its first value, a whole number$"),
    ],
)  # fmt: skip
def test_other_formats_are_named(data, words):
    with pytest.raises(WireError, match=words):
        unpack(data)


@pytest.mark.parametrize(("size", "words"), [(-1, "-1"), (14.0, "14.0"), (2**64 - 1, f"{2**64 - 1}"), ("x", "'x'")])
def test_a_size_that_is_none_is_named(size, words):
    with pytest.raises(WireError, match=f"got {words} at 1$"):
        unpack(array_of(shape=[1, size]))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xd9\xff", b"\xa1\xff", b"\xc7\x01\x01a", b"\xd6\xff\0\0\0\0",
        b"\x81\x01\x02", b"\x81\xc0\x02", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        b"\x91" * (MAX_DEPTH + 1) + b"\x01", b"\x91" * 100_000, b"\x81" * 100_000,
        b"\xdd" + struct.pack(">I", 200_000) + b"\xc0" * 200_000,
        b"\x81\x91\x01\x01", msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
    ],
)  # fmt: skip
def test_damaged_and_outsized_messages_are_refused(data):
    with pytest.raises(WireError):
        unpack(data)


def read_or_refused(data: bytes) -> None:
    refused = ""
    try:
        unpack(data)
    except WireError as error:
        refused = str(error)
    assert not internal(refused.replace("__ndarray__", ""))  # an entry's name is the stranger's


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data):
    read_or_refused(data)


@settings(max_examples=200)
@given(st.integers(0, 250), st.integers(0, 255))
def test_a_changed_byte_is_a_value_or_refused(at, byte):
    data = bytearray(pack({"image": np.zeros((4, 4, 3), np.uint8), "state": np.ones(14), "prompt": "pick"}))
    data[at % len(data)] = byte
    read_or_refused(bytes(data))


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), np.zeros(2, "c8"), 2**64, 1j])
def test_what_no_message_can_hold_is_named(value):
    with pytest.raises(WireError, match="cannot hold"):
        pack({"a": value})
