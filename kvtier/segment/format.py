"""Segment bytes: the file header and the record, exactly as ``docs/format.md`` lays them down.

Pure functions over bytes; no I/O. A record's header checksum covers its *place* (store, tier, segment,
offset) as well as its contents, so a record that was copied, swapped or misdirected is not believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import xxhash

FORMAT_VERSION = 1  # of segments and TIER files

SEGMENT_MAGIC = b"KVTSEG\r\n"
SEGMENT_HEADER = struct.Struct("<8sII16sQII8sQ")
SEGMENT_HEADER_BYTES = SEGMENT_HEADER.size

RECORD_MAGIC = b"KVR1"
RECORD_HEADER = struct.Struct("<4sBBBBQQQQQHBBHBB16s16sQ")
RECORD_HEADER_BYTES = RECORD_HEADER.size
RECORD_ALIGN = 64
STATE_OFFSET = 4
_HEAD_SUM_OFFSET = RECORD_HEADER_BYTES - 8
META_STORED_BYTES_MAX = 1024 + 56  # as it was put, or encrypted
PAGE = 4096
ALIGNED_BYTES_MIN = 512 << 10  # payloads from here on start where a page does: at most 0.8 % more
UNPADDED_HEAD_BYTES_MAX = RECORD_HEADER_BYTES + 64 + 255 + META_STORED_BYTES_MAX + 64 * 8
HEAD_BYTES_MAX = UNPADDED_HEAD_BYTES_MAX + PAGE - 1
RECORD_BYTES_MAX = 1 << 40
NO_SUM = bytes(16)
DAY_S = 86_400
_DAY_MAX = (1 << 16) - 1
_ZEROS = memoryview(bytes(PAGE))


class RecordState(IntEnum):
    """The one byte of a record that changes in place, when its contents die."""

    LIVE = ord("L")
    PAYLOAD_ONLY = ord("P")
    DEAD = ord("D")


class RecordKind(IntEnum):
    BLOCK = 1
    REFERENCE = 2


class FormatError(ValueError):
    """Bytes that are not what the format says. Never reaches a caller of the store: it becomes a miss."""


class Place(NamedTuple):
    """Where a record stands; part of its header checksum."""

    store_id: bytes
    tier_no: int
    segment_no: int
    offset: int

    def seed(self) -> bytes:
        return _PLACE.pack(*self)


_PLACE = struct.Struct("<16sIQQ")


@dataclass(frozen=True, slots=True)
class RecordHead:
    """Everything in a record but its payload. Lengths are in bytes. ``padding``: zeros between the rest of the head and
    the payload."""

    kind: RecordKind
    codec: int
    seq: int
    parent_id: int
    namespace: bytes
    key: bytes
    meta: bytes
    lengths: tuple[int, ...]
    content_id: bytes
    stored_len: int
    payload_sum: bytes
    state: RecordState = RecordState.LIVE
    expires_at: int = 0  # in seconds since 1970; read from a record, the end of that day; 0: never
    padding: int = 0

    @property
    def raw_len(self) -> int:
        return sum(self.lengths)

    @property
    def head_len(self) -> int:
        return RECORD_HEADER_BYTES + self.variable_len

    @property
    def variable_len(self) -> int:
        return len(self.namespace) + len(self.key) + len(self.meta) + 8 * len(self.lengths) + self.padding

    @property
    def record_len(self) -> int:
        return align_up(self.head_len + self.stored_len)

    @property
    def record_len_max(self) -> int:
        """Of the record wherever it stands."""
        return self.record_len + (PAGE if self.stored_len >= ALIGNED_BYTES_MIN else 0)

    def at(self, offset: int) -> RecordHead:
        """As it stands at this offset in a segment: a long payload starts where a page does, so that it can be moved
        between memory and disk without a copy."""
        padding = 0
        if self.stored_len >= ALIGNED_BYTES_MIN:
            padding = -(offset + self.head_len - self.padding) % PAGE
        return self if padding == self.padding else replace(self, padding=padding)


def expiry_day(expires_at: int) -> int:
    """Days since 1970 after which a block has expired, which does so at ``expires_at``; 0: never."""
    return min(-(-expires_at // DAY_S), _DAY_MAX)


def align_up(n: int, align: int = RECORD_ALIGN) -> int:
    return -(-n // align) * align


def payload_sum(buffers: Iterable[memoryview | bytes | bytearray]) -> bytes:
    """XXH3-128 of the stored payload (16 bytes, big-endian): an error check, never an identity."""
    h = xxhash.xxh3_128()
    for b in buffers:
        h.update(b)
    return h.digest()


def pack_segment_header(store_id: bytes, tier_no: int, segment_no: int) -> bytes:
    raw = SEGMENT_HEADER.pack(SEGMENT_MAGIC, FORMAT_VERSION, 0, store_id, segment_no, tier_no, 0, bytes(8), 0)
    return raw[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(raw[:-8]))


def check_segment_header(raw: bytes | bytearray, store_id: bytes, tier_no: int, segment_no: int) -> None:
    """Raise :class:`FormatError` unless ``raw`` is the header of exactly this segment."""
    if bytes(raw) != pack_segment_header(store_id, tier_no, segment_no):
        raise FormatError("segment header does not match its store, tier or number")


def identity_of(head: RecordHead, place: Place) -> bytes:
    """All that a record says of itself but its state, its checksums and when it expires, and where it stands: what
    encryption binds a payload to."""
    fixed, variable = _parts(replace(head, payload_sum=NO_SUM, expires_at=0))
    return place.seed() + fixed + variable


def pack_head(head: RecordHead, place: Place) -> bytes:
    """The record's head (fixed header and variable part) for this place."""
    fixed, variable = _parts(head)
    total = xxhash.xxh3_64_intdigest(place.seed() + fixed[:_HEAD_SUM_OFFSET] + variable)
    return b"".join(
        (
            fixed[:STATE_OFFSET],
            bytes((head.state,)),
            fixed[STATE_OFFSET + 1 : _HEAD_SUM_OFFSET],
            struct.pack("<Q", total),
            variable,
        )
    )


def _parts(head: RecordHead) -> tuple[bytes, bytes]:
    """The fixed header, with 0 for state and checksum, and the variable part."""
    day = expiry_day(head.expires_at)
    fixed = RECORD_HEADER.pack(
        RECORD_MAGIC,
        0,
        head.kind,
        head.codec,
        day & 255,
        head.seq,
        head.record_len,
        head.stored_len,
        head.raw_len,
        head.parent_id,
        head.variable_len,
        len(head.namespace),
        len(head.key),
        len(head.meta),
        len(head.lengths),
        day >> 8,
        head.content_id,
        head.payload_sum,
        0,
    )
    lengths = struct.pack(f"<{len(head.lengths)}Q", *head.lengths)
    return fixed, b"".join((head.namespace, head.key, head.meta, lengths, bytes(head.padding)))


class _Fixed(NamedTuple):
    magic: bytes
    state: int
    kind: int
    codec: int
    day_low: int
    seq: int
    record_len: int
    stored_len: int
    raw_len: int
    parent_id: int
    variable_len: int
    ns_len: int
    key_len: int
    meta_len: int
    buffers: int
    day_high: int
    content_id: bytes
    payload_sum: bytes
    head_sum: int


def unpack_head(raw: bytes | bytearray | memoryview, place: Place) -> RecordHead:
    """Parse and check a record's head; ``raw`` starts at the record and may run past its head.

    Raises :class:`FormatError` on any disagreement; no length is used before it is checked.
    """
    if len(raw) < RECORD_HEADER_BYTES:
        raise FormatError("too short for a record header")
    f = _Fixed(*RECORD_HEADER.unpack_from(raw))
    if f.magic != RECORD_MAGIC:
        raise FormatError("no record magic")
    end = RECORD_HEADER_BYTES + f.variable_len
    if end > len(raw) or end > HEAD_BYTES_MAX:
        raise FormatError("record head longer than what is there")
    fixed, variable = bytes(raw[:_HEAD_SUM_OFFSET]), memoryview(raw)[RECORD_HEADER_BYTES:end]
    summed = xxhash.xxh3_64(place.seed() + fixed[:STATE_OFFSET] + b"\0" + fixed[STATE_OFFSET + 1 :])
    summed.update(variable)
    if summed.intdigest() != f.head_sum:
        raise FormatError("record head checksum differs")
    return _head_of(f, variable)


def head_bytes(raw: bytes | bytearray) -> int:
    """How many bytes the head takes that starts here, by what it says itself, but not more than one can; 0 if this is
    too short to tell. Nothing is checked."""
    if len(raw) < RECORD_HEADER_BYTES:
        return 0
    return min(RECORD_HEADER_BYTES + _Fixed(*RECORD_HEADER.unpack_from(raw)).variable_len, HEAD_BYTES_MAX)


def _head_of(f: _Fixed, variable: memoryview) -> RecordHead:
    key_at, meta_at = f.ns_len, f.ns_len + f.key_len
    lengths_at = meta_at + f.meta_len
    padding = f.variable_len - lengths_at - 8 * f.buffers
    if not 0 <= padding < PAGE or variable[f.variable_len - padding :] != _ZEROS[:padding]:
        raise FormatError("record head lengths disagree")
    try:
        head = RecordHead(
            kind=RecordKind(f.kind),
            codec=f.codec,
            seq=f.seq,
            parent_id=f.parent_id,
            namespace=bytes(variable[:key_at]),
            key=bytes(variable[key_at:meta_at]),
            meta=bytes(variable[meta_at:lengths_at]),
            lengths=struct.unpack_from(f"<{f.buffers}Q", variable, lengths_at),
            content_id=f.content_id,
            stored_len=f.stored_len,
            payload_sum=f.payload_sum,
            state=RecordState(f.state),
            expires_at=(f.day_high << 8 | f.day_low) * DAY_S,
            padding=padding,
        )
    except ValueError as e:
        raise FormatError(str(e)) from e
    if head.raw_len != f.raw_len or head.record_len != f.record_len or f.record_len > RECORD_BYTES_MAX:
        raise FormatError("record lengths disagree")
    return head


def check_payload(head: RecordHead, stored: Sequence[memoryview | bytes | bytearray]) -> None:
    """Raise :class:`FormatError` unless the stored payload is the one that was written."""
    if payload_sum(stored) != head.payload_sum:
        raise FormatError("payload checksum differs")
