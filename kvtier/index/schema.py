"""Index entries as bytes, as ``docs/format.md`` lays them down.

Every value ends with an XXH32 over its key and itself, so that a damaged page is a miss, not an answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import xxhash

_BLOCK = struct.Struct("<QQQQQQBB16sBBHB")
_CONTENT = struct.Struct("<QQHQQB16sI")
_SEGMENT = struct.Struct("<QQB")
_NAMESPACE = struct.Struct("<QQ")
_DEPARTURE = struct.Struct("<QIBB")
_EXPIRY = struct.Struct("<QQ")
_SUM = struct.Struct("<I")

DEPARTURES_MAX = 1 << 16
DEPARTURES_A_ROW = 64
DEPARTURE_ROWS_MAX = DEPARTURES_MAX // DEPARTURES_A_ROW
#: The tier of a departure from none.
NO_TIER = 255


class IndexDamaged(ValueError):
    """An index entry does not pass its checksum."""


class BlockEntry(NamedTuple):
    """``blocks``: what a key means.

    ``clock`` is its recency; ``segment_no``, ``offset``, ``record_len`` and ``kind`` its own record, which
    holds the payload (kind 1) or names the content that another record holds (kind 2).
    """

    clock: int
    seq: int
    parent_id: int
    segment_no: int
    offset: int
    record_len: int
    tier_no: int
    kind: int
    content_id: bytes
    namespace: bytes
    key: bytes
    meta: bytes
    lengths: tuple[int, ...]
    expires_at: int = 0  # from ``expiries``; 0: never

    @property
    def nbytes(self) -> int:
        return sum(self.lengths)


class ExpiryEntry(NamedTuple):
    """``expiries``: until when, in seconds since 1970 by the store's time, the put of this number counts."""

    when: int
    seq: int


class ContentEntry(NamedTuple):
    """``contents``: where the bytes of a content id are, in one tier, and how many blocks share them."""

    segment_no: int
    offset: int
    head_len: int
    stored_len: int
    record_len: int
    codec: int
    payload_sum: bytes
    refs: int


class SegmentEntry(NamedTuple):
    """``segments``: bytes covered by index commits, bytes that live blocks need, and whether it is sealed."""

    committed_len: int
    live_bytes: int
    sealed: bool


class NamespaceEntry(NamedTuple):
    """``namespaces``: the blocks of a namespace on all tiers, and the sum of the lengths of their values."""

    blocks: int
    nbytes: int


class Reason(IntEnum):
    """Why a block left, or did not come."""

    EVICTED = 1
    DELETED = 2
    DAMAGED = 3
    LOST = 4
    NOT_ADMITTED = 5
    WRITE_FAILED = 6
    OVER_QUOTA = 7
    EXPIRED = 8


class Departure(NamedTuple):
    """``departures``: when (in seconds since 1970) and why a block left, and from which tier."""

    block_id: int
    when: int
    reason: int
    tier_no: int


def block_key(block_id: int) -> bytes:
    return block_id.to_bytes(8, "big")


def content_key(tier_no: int, content_id: bytes) -> bytes:
    return bytes((tier_no,)) + content_id


def segment_key(tier_no: int, segment_no: int) -> bytes:
    return bytes((tier_no,)) + segment_no.to_bytes(8, "big")


def split_segment_key(key: bytes) -> tuple[int, int]:
    return key[0], int.from_bytes(key[1:], "big")


def namespace_key(namespace: bytes) -> bytes:
    return bytes((len(namespace),)) + namespace


def split_namespace_key(key: bytes) -> bytes:
    return key[1:]


def row_key(row_no: int) -> bytes:
    return row_no.to_bytes(2, "big")


def split_row_key(key: bytes) -> int:
    return int.from_bytes(key, "big")


def encode_block(key: bytes, e: BlockEntry) -> bytes:
    fixed = _BLOCK.pack(*e[:9], len(e.namespace), len(e.key), len(e.meta), len(e.lengths))
    body = b"".join((fixed, e.namespace, e.key, e.meta, struct.pack(f"<{len(e.lengths)}Q", *e.lengths)))
    return _sealed(key, body)


def decode_block(key: bytes, value: bytes) -> BlockEntry:
    body = checked_body(key, value)
    _check_length(body[: _BLOCK.size], _BLOCK.size)
    clock, seq, parent_id, segment_no, offset, record_len, *rest = _BLOCK.unpack_from(body)
    tier_no, kind, content_id, ns_len, key_len, meta_len, buffers = rest
    ns_at = _BLOCK.size
    key_at, meta_at = ns_at + ns_len, ns_at + ns_len + key_len
    lengths_at = meta_at + meta_len
    _check_length(body, lengths_at + 8 * buffers)
    lengths = struct.unpack_from(f"<{buffers}Q", body, lengths_at)
    names = body[ns_at:key_at], body[key_at:meta_at], body[meta_at:lengths_at]
    place = segment_no, offset, record_len, tier_no
    return BlockEntry(clock, seq, parent_id, *place, kind, content_id, *names, lengths)


def encode_expiry(key: bytes, e: ExpiryEntry) -> bytes:
    return _sealed(key, _EXPIRY.pack(*e))


def decode_expiry(key: bytes, value: bytes) -> ExpiryEntry:
    return ExpiryEntry(*_EXPIRY.unpack(checked_body(key, value, _EXPIRY.size)))


def expiry_order_key(when: int, block_id: int) -> bytes:
    return when.to_bytes(8, "big") + block_id.to_bytes(8, "big")


def split_expiry_order_key(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")


def encode_expiry_order(key: bytes) -> bytes:
    return _sealed(key, b"")


def encode_content(key: bytes, e: ContentEntry) -> bytes:
    return _sealed(key, _CONTENT.pack(*e))


def decode_content(key: bytes, value: bytes) -> ContentEntry:
    return ContentEntry(*_CONTENT.unpack(checked_body(key, value, _CONTENT.size)))


def encode_segment(key: bytes, e: SegmentEntry) -> bytes:
    return _sealed(key, _SEGMENT.pack(*e))


def decode_segment(key: bytes, value: bytes) -> SegmentEntry:
    committed, live, sealed = _SEGMENT.unpack(checked_body(key, value, _SEGMENT.size))
    return SegmentEntry(committed, live, bool(sealed))


def encode_namespace(key: bytes, e: NamespaceEntry) -> bytes:
    return _sealed(key, _NAMESPACE.pack(*e))


def decode_namespace(key: bytes, value: bytes) -> NamespaceEntry:
    return NamespaceEntry(*_NAMESPACE.unpack(checked_body(key, value, _NAMESPACE.size)))


def departure_rows(bytes_max: int) -> int:
    """How many rows of departures may take ``bytes_max``: at least two, and not more than there are."""
    return min(max(2, bytes_max // (_DEPARTURE.size * DEPARTURES_A_ROW + _SUM.size)), DEPARTURE_ROWS_MAX)


def empty_row() -> bytearray:
    """A row of departures, none of which is there."""
    return bytearray(_DEPARTURE.size * DEPARTURES_A_ROW)


def set_departure(row: bytearray, slot: int, departure: Departure) -> None:
    _DEPARTURE.pack_into(row, slot * _DEPARTURE.size, *departure)


def departures_of(block_id: int, row: bytes) -> Iterator[tuple[int, Departure]]:
    """A block's departures in a row, each with its slot."""
    if block_id.to_bytes(8, "little") in row:  # in most rows it is not, and those are not taken apart
        for slot, fields in enumerate(_DEPARTURE.iter_unpack(row)):
            if fields[0] == block_id:
                yield slot, Departure(*fields)


def encode_row(key: bytes, row: bytes | bytearray) -> bytes:
    return _sealed(key, bytes(row))


def decode_row(key: bytes, value: bytes) -> bytes:
    return checked_body(key, value, _DEPARTURE.size * DEPARTURES_A_ROW)


def _sealed(key: bytes, body: bytes) -> bytes:
    return body + _SUM.pack(xxhash.xxh32_intdigest(key + body))


def checked_body(key: bytes, value: bytes, length: int | None = None) -> bytes:
    """An entry's value without its checksum, of ``length`` if that is known. Raises :class:`IndexDamaged`."""
    body = value[:-4]
    if len(value) < 4 or _SUM.unpack(value[-4:])[0] != xxhash.xxh32_intdigest(key + body):
        raise IndexDamaged(f"index entry {key.hex()} does not pass its checksum")
    if length is not None:
        _check_length(body, length)
    return body


def _check_length(body: bytes, length: int) -> None:
    if len(body) != length:
        raise IndexDamaged(f"an index entry of {len(body)} bytes should have {length}")
