"""Values in the index: ``index.schema.decode_*`` and ``index.format1.decode_*``, which has no written form. The first
byte of the input says of which table."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import xxhash

from kvtier.index import format1, schema
from kvtier.index.schema import IndexDamaged
from tests.fuzz.parsers.target import Target, expect, expect_same


class Table(NamedTuple):
    key: bytes
    decode: Callable[[bytes, bytes], Any]
    encode: Callable[[bytes, Any], bytes] | None
    seed: int = 0


_CONTENT_ID = bytes(range(16))
TABLES: list[Table] = [
    Table(schema.block_key(1 << 40), schema.decode_block, schema.encode_block, schema.FORM.seed),
    Table(schema.content_key(2, _CONTENT_ID), schema.decode_content, schema.encode_content, schema.FORM.seed),
    Table(schema.segment_key(2, 9), schema.decode_segment, schema.encode_segment),
    Table(schema.row_key(5), schema.decode_row, schema.encode_row),
    Table(schema.block_key(1 << 41), schema.decode_expiry, schema.encode_expiry),
    Table(schema.block_key(1 << 40), format1.decode_block, None),
    Table(format1.content_key(2, _CONTENT_ID), format1.decode_content, None),
]


def table_of(data: bytes) -> Table:
    return TABLES[data[0] % len(TABLES)] if data else TABLES[0]


def parse(data: bytes) -> None:
    key, decode, encode, _ = table_of(data)
    entry = decode(key, data[1:])
    if encode is None:
        return
    packed = encode(key, entry)
    expect(len(packed) <= len(data) - 1, f"{len(data) - 1} bytes were read as an entry of {len(packed)}")
    expect_same(lambda: decode(key, packed), entry)
    if decode is schema.decode_row:
        list(schema.departures_of(int.from_bytes(entry[:8], "little"), entry))


def reseal(data: bytes) -> bytes:
    table = table_of(data)
    found = xxhash.xxh32_intdigest(table.key + data[1:-4], table.seed)
    return data[:-4] + struct.pack("<I", found) if len(data) >= 5 else data


TARGET = Target(parse, (IndexDamaged,), reseal)
