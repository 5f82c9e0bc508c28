import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosjax.data.rlds.tfrecord import RecordError, crc32c, masked_crc32c, read_records, record_checksums

RECORDS = [b"first", b"", b"\x00\xff" * 40_000, b"last one"]


def crc_bit_by_bit(data: bytes) -> int:
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.tfrecord"
    with open(path, "wb") as out:
        for record in RECORDS:
            header = struct.pack("<Q", len(record))
            out.write(header + struct.pack("<I", masked_crc32c(header)) + record + struct.pack("<I", masked_crc32c(record)))
    return path


def test_published_value_of_the_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # "check" of CRC-32C (iSCSI), RFC 3720
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


@given(st.binary(max_size=40))
def test_checksum_of_few_bytes(data):
    assert crc32c(data) == crc_bit_by_bit(data)


@pytest.mark.parametrize("size", [32_767, 32_768, 32_769, 40_001, 65_536])
def test_checksum_by_lanes(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == crc_bit_by_bit(data)


def test_agrees_with_tensorflow(tmp_path):
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "some.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in RECORDS:
            writer.write(record)
    assert list(read_records(path)) == RECORDS


@pytest.mark.parametrize("first", range(5))
def test_from_any_record_on(file, first):
    assert list(read_records(file, first)) == RECORDS[first:]


def test_wherever_a_file_is_cut_the_record_is_named(file):
    data = file.read_bytes()
    ends = np.cumsum([len(record) + 16 for record in RECORDS]).tolist()
    for cut in (3, 11, 12, 14, ends[0] + 12, ends[1] + 20, ends[2] - 1, ends[3] - 1):
        file.write_bytes(data[:cut])
        record = int(np.searchsorted(ends, cut, side="right"))
        with pytest.raises(RecordError, match=f"ends within record {record}"):
            list(read_records(file))
    file.write_bytes(data[: ends[1]])
    assert list(read_records(file)) == RECORDS[:2]


@pytest.mark.parametrize(("at", "message"), [(2, "the length of record 0"), (13, "the contents of record 0"), (18, "the contents of rec")])
def test_a_changed_byte_is_noticed(file, at, message):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(RecordError, match=message):
        list(read_records(file))


@pytest.mark.parametrize("length", [1000, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("first", [0, 5])
def test_a_record_longer_than_the_file_is_not_asked_for(file, length, first):
    header = struct.pack("<Q", length)
    file.write_bytes(file.read_bytes() + header + struct.pack("<I", masked_crc32c(header)) + bytes(100))
    with pytest.raises(RecordError, match="ends within record 4"):
        list(read_records(file, first))


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_a_fault(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.tfrecord"
    path.write_bytes(data)
    assert len(record_checksums(path)) <= 16 * (len(data) // 12 + 1)
    with contextlib.suppress(RecordError):
        assert sum(16 + len(record) for record in read_records(path)) == len(data)


def test_checksums_are_16_bytes_a_record(file):
    data, expected, at = file.read_bytes(), b"", 0
    for record in RECORDS:
        expected += data[at : at + 12] + data[at + 12 + len(record) :][:4]
        at += len(record) + 16
    assert record_checksums(file) == expected
    file.write_bytes(data[:-6])
    assert record_checksums(file)[:-12] == expected[:-16]
