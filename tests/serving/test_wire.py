import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from eosjax.serving.wire import DTYPES, Limits, WireError, pack, unpack

arrays = st_numpy.arrays(st.sampled_from(sorted(DTYPES)), st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
plain = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
)
values = st.recursive(
    plain | arrays, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), values, max_size=3))
def test_what_is_packed_is_what_is_unpacked(content):
    def same(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, np.ndarray):
            return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return type(a) is type(b) and a == b

    assert same(content, unpack(pack(content), Limits(entries=10**6)))


def test_scalars_of_numpy_keep_their_type():
    found = unpack(pack({"x": np.float32(1.5), "n": np.int16(-3)}))
    assert (type(found["x"]), found["x"], type(found["n"]), found["n"]) == (np.float32, 1.5, np.int16, -3)


def array(dtype="<f4", shape=(2,), data=bytes(8), mark=b"__ndarray__"):
    return msgpack.packb({"x": {mark: True, b"data": data, b"dtype": dtype, b"shape": shape}})


def nested(depth, innermost=1):
    for _ in range(depth):
        innermost = [innermost]
    return msgpack.packb({"x": innermost})


HOSTILE = {
    "no bytes at all": (b"", "expected msgpack, got 0 bytes"),
    "no msgpack": (b"\xc1", "expected msgpack"),
    "a pickle": (b"cos\nsystem\n(S'true'\ntR.", "expected msgpack"),
    "half a message": (array()[:-3], "expected msgpack"),
    "two messages": (array() * 2, "expected msgpack"),
    "a list": (msgpack.packb([1]), "expected a map, got list"),
    "a number": (b"\x01", "expected a map, got int"),
    "a key that is no text": (msgpack.packb({b"x": 1}), "expected texts as keys, got bytes"),
    "a key that is a number": (b"\x81\x01\x01", "expected msgpack"),
    "a text that is not UTF-8": (b"\x81\xa1x\xa2\xff\xfe", "not UTF-8"),
    "an array of objects": (array("|O"), "got '|O'"),
    "an array of records": (array("<f4,<f4"), "got '<f4,<f4'"),
    "an array of texts": (array("<U1"), "got '<U1'"),
    "an array of complex numbers": (array("<c8"), "got '<c8'"),
    "an array of times": (array("<M8[s]"), "dtype: expected one of"),
    "a dtype that is a list": (array([["a", "<f4"]]), "dtype: expected one of"),
    "a dtype of no end": (array("<f4" * 10_000), "dtype: expected one of"),
    "more shape than data": (array(shape=(2**40, 2**40)), "has not 8 bytes"),
    "less shape than data": (array(shape=(1,)), "has not 8 bytes"),
    "a negative size": (array(shape=(-1, -2)), "shape: expected"),
    "a size of true": (array("|u1", (True,), b"a"), "shape: expected"),
    "64 dimensions": (array("|u1", (1,) * 64, b"a"), "at most 8 sizes"),
    "a huge size beside 0": (array(shape=(2**62, 0, 2**62), data=b""), "has not 0 bytes"),
    "data that is a text": (array(data="abcdefgh"), "data: expected bytes, got str"),
    "no shape": (msgpack.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4"}}), "shape: expected"),
    "a scalar that is a text": (array(data="a", mark=b"__npgeneric__"), "expected a number, got str"),
    "a scalar out of range": (array("|u1", data=300, mark=b"__npgeneric__"), "out of bounds"),
    "65 arrays": (pack({"x": [np.zeros(1)] * 65}), "at most 64 arrays"),
    "9 levels": (nested(9), "at most 8 levels"),
    "1,000 levels": (nested(400), "at most 8 levels"),
    "100,000 levels": (b"\x81\xa1x" + b"\x91" * 100_000 + b"\x01", "at most 8 levels"),
    "a list that announces 4 billion": (b"\x81\xa1x\xdd\xff\xff\xff\xff", "expected msgpack"),
    "a map that announces 4 billion": (b"\xdf\xff\xff\xff\xff", "expected msgpack"),
    "bytes that announce 4 billion": (b"\x81\xa1x\xc6\xff\xff\xff\xff", "expected msgpack"),
    "10,000 empty maps": (b"\x81\xa1x\x94" + (b"\xdc\x0a\x00" + b"\x80" * 2560) * 4, "at most 10,000 entries"),
    "an extension": (msgpack.packb({"x": msgpack.ExtType(5, b"")}), "extension"),
    "a time": (msgpack.packb({"x": msgpack.Timestamp(1)}), "message: expected"),
}


@pytest.mark.parametrize(("message", "text"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_stranger_may_send(message, text):
    with pytest.raises(WireError, match=text.replace("|", r"\|")):
        unpack(message)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60) | st.tuples(values, st.integers(0, 200), st.binary(max_size=2)).map(lambda x: _damaged(*x)))
def test_any_bytes_are_a_message_or_a_clean_error(message):
    assert (told := _told(message)) is None or (told.startswith("message: ") and len(told) < 500)


def _told(message):
    try:
        unpack(message)
    except WireError as error:
        return str(error)
    return None


def _damaged(value, place, put):
    message = bytearray(pack({"x": value}))
    message[place : place + len(put)] = put
    return bytes(message)


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["a"]), object(), 2**70, np.complex64(1)])
def test_what_cannot_be_sent(value):
    with pytest.raises(WireError, match="message: "):
        pack({"x": value})
