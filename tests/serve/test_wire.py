"""Messages: equal to msgpack and openpi's arrays, and nothing a stranger sends does harm."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mem0_jax.serve.client import MAX_DEPTH, WireError, pack, unpack

msgpack = pytest.importorskip("msgpack")

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.booleans() | st.none()
VALUES = st.recursive(
    NUMBERS | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
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
    ],
)  # fmt: skip
def test_arrays_that_are_none_are_refused(change):
    with pytest.raises(WireError):
        unpack(array_of(**change))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xd9\xff", b"\xa1\xff", b"\xc7\x01\x01a", b"\xd6\xff\0\0\0\0",
        b"\x81\x01\x02", b"\x81\xc0\x02", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        b"\x91" * (MAX_DEPTH + 1) + b"\x01", b"\x91" * 100_000,
        b"\xdd" + struct.pack(">I", 200_000) + b"\xc0" * 200_000,
        b"\x81\x91\x01\x01", msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
    ],
)  # fmt: skip
def test_damaged_and_outsized_messages_are_refused(data):
    with pytest.raises(WireError):
        unpack(data)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data):
    with suppress(WireError):
        unpack(data)


@settings(max_examples=200)
@given(st.integers(0, 250), st.integers(0, 255))
def test_a_changed_byte_is_a_value_or_refused(at, byte):
    data = bytearray(pack({"image": np.zeros((4, 4, 3), np.uint8), "state": np.ones(14), "prompt": "pick"}))
    data[at % len(data)] = byte
    with suppress(WireError):
        unpack(bytes(data))


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), np.zeros(2, "c8"), 2**64, 1j])
def test_what_no_message_can_hold_is_named(value):
    with pytest.raises(WireError, match="cannot hold"):
        pack({"a": value})
