"""Values in the index: ``index.schema.decode_*``. The first byte of the input says of which table."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import xxhash

from kvtier.index import schema
from kvtier.index.schema import IndexDamaged
from tests.fuzz.parsers.target import Target, expect, expect_same

Table = tuple[bytes, Callable[[bytes, bytes], Any], Callable[[bytes, Any], bytes]]

TABLES: list[Table] = [
    (schema.block_key(1 << 40), schema.decode_block, schema.encode_block),
    (schema.content_key(2, bytes(range(16))), schema.decode_content, schema.encode_content),
    (schema.segment_key(2, 9), schema.decode_segment, schema.encode_segment),
    (schema.row_key(5), schema.decode_row, schema.encode_row),
    (schema.block_key(1 << 41), schema.decode_expiry, schema.encode_expiry),
]


def table_of(data: bytes) -> Table:
    return TABLES[data[0] % len(TABLES)] if data else TABLES[0]


def parse(data: bytes) -> None:
    key, decode, encode = table_of(data)
    entry = decode(key, data[1:])
    packed = encode(key, entry)
    expect(len(packed) == len(data) - 1, f"{len(data) - 1} bytes were read as an entry of {len(packed)}")
    expect_same(lambda: decode(key, packed), entry)
    if decode is schema.decode_row:
        list(schema.departures_of(int.from_bytes(entry[:8], "little"), entry))


def reseal(data: bytes) -> bytes:
    key, _, _ = table_of(data)
    return data[:-4] + struct.pack("<I", xxhash.xxh32_intdigest(key + data[1:-4])) if len(data) >= 5 else data


TARGET = Target(parse, (IndexDamaged,), reseal)
