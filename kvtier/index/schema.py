"""Index entries as bytes, as ``docs/format.md`` lays them down.

Every value ends with an XXH32 over its key and itself, so that a damaged page is a miss, not an answer. In ``blocks``
and ``contents`` its seed is the number of the format: a value of another one is damaged, never misread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import xxhash

from kvtier.index.shape import codes_of, shape_of

INDEX_FORMAT = 2
#: Where records start, and how long they are, is a multiple of this.
RECORD_ALIGN = 64
#: No record has a shorter head.
HEAD_BYTES_MIN = 96
#: Of a content id, in the key of its entry.
CONTENT_KEY_BYTES = 10
_U64_MAX = (1 << 64) - 1

_BLOCK = struct.Struct("<BHBBBQ16s")
_BLOCK_NUMBERS = 6
_KIND_AT = 2 * _BLOCK_NUMBERS  # in a block's shape
_CONTENT = struct.Struct("<BH")
_CONTENT_NUMBERS = 5
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

    codec: int
    segment_no: int
    offset: int
    head_len: int
    stored_len: int
    refs: int

    @property
    def record_len(self) -> int:
        return -(-(self.head_len + self.stored_len) // RECORD_ALIGN) * RECORD_ALIGN


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
    """Of a content id, or of what a key has of it."""
    return bytes((tier_no,)) + content_id[:CONTENT_KEY_BYTES]


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
    """:class:`ValueError` if its record does not start, or end, where records do."""
    ahead = _signed(e.clock - e.seq)
    numbers = e.seq, ahead, e.segment_no, _aligned(e.offset), _aligned(e.record_len)
    twice = 2 * max(ahead, ~ahead)  # as wide as a number with a sign is
    shape = shape_of((e.seq, twice, *numbers[2:], max(e.lengths, default=0))) | e.kind << _KIND_AT
    counts = len(e.namespace), len(e.key), len(e.lengths)
    fixed = _BLOCK.pack(e.tier_no, shape, *counts, e.parent_id, e.content_id)
    more = _block_layout(shape, *counts).pack(e.namespace, e.key, *numbers, *e.lengths)
    return _sealed(key, b"".join((fixed, more, e.meta)), INDEX_FORMAT)


def decode_block(key: bytes, value: bytes) -> BlockEntry:
    body = checked_body(key, value, seed=INDEX_FORMAT)
    try:
        tier_no, shape, ns_len, key_len, buffers, parent_id, content_id = _BLOCK.unpack_from(body)
        layout = _block_layout(shape, ns_len, key_len, buffers)
        namespace, name, seq, ahead, segment_no, offset, record_len, *lengths = layout.unpack_from(body, _BLOCK.size)
    except struct.error as e:
        raise IndexDamaged(f"index entry {key.hex()}: {e}") from e
    clock = seq + ahead & _U64_MAX
    place = segment_no, offset * RECORD_ALIGN, record_len * RECORD_ALIGN, tier_no
    names = namespace, name, body[_BLOCK.size + layout.size :]
    return BlockEntry(clock, seq, parent_id, *place, shape >> _KIND_AT, content_id, *names, tuple(lengths))


@lru_cache(maxsize=1024)
def _block_layout(shape: int, ns_len: int, key_len: int, buffers: int) -> struct.Struct:
    seq, clock, segment_no, offset, record_len, length = codes_of(shape, _BLOCK_NUMBERS)
    numbers = f"{seq}{clock.lower()}{segment_no}{offset}{record_len}{buffers}{length}"
    return struct.Struct(f"<{ns_len}s{key_len}s{numbers}")


def _aligned(n: int) -> int:
    """How many times :data:`RECORD_ALIGN`."""
    times, rest = divmod(n, RECORD_ALIGN)
    if rest:
        raise ValueError(f"{n} is no multiple of {RECORD_ALIGN}")
    return times


def _signed(n: int) -> int:
    """The number of 64 bits, one of which is its sign, that is the same modulo 2**64."""
    return (n + (1 << 63) & _U64_MAX) - (1 << 63)


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
    """:class:`ValueError` as :func:`encode_block`."""
    numbers = e.segment_no, _aligned(e.offset), e.head_len - HEAD_BYTES_MIN, e.stored_len, e.refs
    shape = shape_of(numbers)
    return _sealed(key, _CONTENT.pack(e.codec, shape) + _content_layout(shape).pack(*numbers), INDEX_FORMAT)


def decode_content(key: bytes, value: bytes) -> ContentEntry:
    body = checked_body(key, value, seed=INDEX_FORMAT)
    try:
        codec, shape = _CONTENT.unpack_from(body)
        segment_no, offset, more_head, stored_len, refs = _content_layout(shape).unpack(body[_CONTENT.size :])
    except struct.error as e:
        raise IndexDamaged(f"index entry {key.hex()}: {e}") from e
    return ContentEntry(codec, segment_no, offset * RECORD_ALIGN, HEAD_BYTES_MIN + more_head, stored_len, refs)


@lru_cache(maxsize=1024)
def _content_layout(shape: int) -> struct.Struct:
    return struct.Struct("<" + "".join(codes_of(shape, _CONTENT_NUMBERS)))


class Form(NamedTuple):
    """How an index of some format holds blocks and contents. ``complete``: the counter that says that all of them are
    there, which no other format has; ``seed``: of the checksums of both."""

    complete: str
    seed: int
    content_key: Callable[[int, bytes], bytes]
    decode_block: Callable[[bytes, bytes], BlockEntry]
    decode_content: Callable[[bytes, bytes], ContentEntry]


#: The form in which an index is written.
FORM = Form(f"complete{INDEX_FORMAT}", INDEX_FORMAT, content_key, decode_block, decode_content)


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


def _sealed(key: bytes, body: bytes, seed: int = 0) -> bytes:
    return body + _SUM.pack(xxhash.xxh32_intdigest(key + body, seed))


def checked_body(key: bytes, value: bytes, length: int | None = None, seed: int = 0) -> bytes:
    """An entry's value without its checksum, of ``length`` if that is known. Raises :class:`IndexDamaged`."""
    body = value[:-4]
    if len(value) < 4 or _SUM.unpack_from(value, len(body))[0] != xxhash.xxh32_intdigest(key + body, seed):
        raise IndexDamaged(f"index entry {key.hex()} does not pass its checksum")
    if length is not None:
        _check_length(body, length)
    return body


def _check_length(body: bytes, length: int) -> None:
    if len(body) != length:
        raise IndexDamaged(f"an index entry of {len(body)} bytes should have {length}")
