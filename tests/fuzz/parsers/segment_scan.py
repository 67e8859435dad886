"""A whole segment file: ``segment.scanner.scan``, payloads included."""

from __future__ import annotations

from kvtier.segment.format import (
    RECORD_ALIGN,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    FormatError,
    Place,
    RecordKind,
    RecordState,
    check_payload,
    pack_segment_header,
    unpack_head,
)
from kvtier.segment.scanner import Found, TornTail, scan
from tests.fuzz.parsers.one_file import OneFile
from tests.fuzz.parsers.record_heads import sealed
from tests.fuzz.parsers.target import Target, expect, expect_same

STORE_ID, TIER_NO, SEGMENT_NO = bytes(range(16)), 3, 7


def place(offset: int) -> Place:
    return Place(STORE_ID, TIER_NO, SEGMENT_NO, offset)


def parse(data: bytes) -> None:
    at = SEGMENT_HEADER_BYTES
    is_torn = False
    for found in scan(OneFile(data), 0, STORE_ID, TIER_NO, SEGMENT_NO, payloads=True):
        expect(found.offset == at and not is_torn, f"{found} does not follow {at}")
        if isinstance(found, TornTail):
            is_torn = True
            continue
        if isinstance(found, Found):
            check_found(data, found)
            at += found.head.record_len
        else:
            at = found.end
        expect(found.offset < at <= len(data), f"{found} ends at {at} of {len(data)}")
    expect(is_torn or at == len(data), f"the scan ended at {at} of {len(data)}")


def check_found(data: bytes, found: Found) -> None:
    head = found.head
    expect_same(lambda: unpack_head(data[found.offset :], place(found.offset)), head)
    if head.kind is RecordKind.BLOCK and head.state is not RecordState.DEAD:
        start = found.offset + head.head_len
        try:
            check_payload(head, [data[start : start + head.stored_len]])
        except FormatError:
            expect(False, f"the payload at {start} is not the one that was written")


def reseal(data: bytes) -> bytes:
    """With this segment's header, and the checksum of each head at an offset where one may be."""
    data = pack_segment_header(STORE_ID, TIER_NO, SEGMENT_NO) + data[SEGMENT_HEADER_BYTES:]
    for at in range(SEGMENT_HEADER_BYTES, len(data), RECORD_ALIGN):
        if data.startswith(RECORD_MAGIC, at):
            data = data[:at] + sealed(data[at:], place(at))
    return data


TARGET = Target(parse, (FormatError,), reseal, spare=1 << 18)  # it looks for the next record a MiB at a time
