"""The head of a record: ``segment.format.unpack_head``."""

from __future__ import annotations

import struct

import xxhash

from kvtier.segment.format import (
    RECORD_HEADER_BYTES,
    STATE_OFFSET,
    FormatError,
    Place,
    pack_head,
    unpack_head,
)
from tests.fuzz.parsers.target import Target, expect, expect_same

PLACE = Place(bytes(range(16)), 3, 7, 4096)
_VARIABLE_LEN_OFFSET = struct.calcsize("<4s4B5Q")
_SUM_OFFSET = RECORD_HEADER_BYTES - 8


def parse(data: bytes) -> None:
    head = unpack_head(data, PLACE)
    packed = pack_head(head, PLACE)
    expect(len(packed) == head.head_len <= len(data), "a head longer than what it was read from")
    expect(sealed(data[: head.head_len], PLACE) == packed, "a head that says what it does not pack to")
    expect_same(lambda: unpack_head(packed, PLACE), head)
    expect_same(lambda: unpack_head(data[: head.head_len], PLACE), head)  # whatever stands behind it


def sealed(data: bytes, place: Place) -> bytes:
    """The head at the beginning of ``data`` with its checksum for ``place``, and what follows it."""
    if len(data) < RECORD_HEADER_BYTES:
        return data
    (variable_len,) = struct.unpack_from("<H", data, _VARIABLE_LEN_OFFSET)
    fixed = data[:STATE_OFFSET] + b"\0" + data[STATE_OFFSET + 1 : _SUM_OFFSET]
    variable = data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + variable_len]
    total = struct.pack("<Q", xxhash.xxh3_64_intdigest(place.seed() + fixed + variable))
    return data[:_SUM_OFFSET] + total + data[RECORD_HEADER_BYTES:]


TARGET = Target(parse, (FormatError,), lambda data: sealed(data, PLACE))
