"""Walking through a segment's records, for recovery and verification.

A *torn tail* (the file ends in something that is not a record) ends a scan cleanly. A bad record with good
ones behind it is *damage*: the scan goes on at the next offset where a record proves itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from kvtier.fs import FileSystem
from kvtier.segment.format import (
    RECORD_ALIGN,
    RECORD_MAGIC,
    SEGMENT_HEADER_BYTES,
    UNPADDED_HEAD_BYTES_MAX,
    FormatError,
    Place,
    RecordHead,
    RecordKind,
    RecordState,
    align_up,
    check_payload,
    check_segment_header,
    head_bytes,
    unpack_head,
)

_RESYNC_BYTES = 1 << 20


def read_head(read: Callable[[int, int], bytearray], place: Place) -> RecordHead:
    """The head of the record there, checked: ``read`` gives as many bytes from an offset on, fewer where the file ends.

    Few heads are longer than what is read first. Raises :class:`FormatError`, and what ``read`` does.
    """
    raw = read(place.offset, UNPADDED_HEAD_BYTES_MAX)
    if head_bytes(raw) > len(raw):
        raw = read(place.offset, head_bytes(raw))
    return unpack_head(raw, place)


@dataclass(frozen=True, slots=True)
class Found:
    """A record whose head (and payload, if asked) passed every check."""

    offset: int
    head: RecordHead


@dataclass(frozen=True, slots=True)
class Damaged:
    """Bytes ``offset`` to ``end`` hold no record, though sound records follow, or a payload is bad."""

    offset: int
    end: int
    reason: str


@dataclass(frozen=True, slots=True)
class TornTail:
    """From ``offset`` to the end of the file there is no record."""

    offset: int
    reason: str


def scan(
    fs: FileSystem,
    fd: int,
    store_id: bytes,
    tier_no: int,
    segment_no: int,
    *,
    start: int = 0,
    payloads: bool = False,
) -> Iterator[Found | Damaged | TornTail]:
    """Yield the records from ``start`` (0: also check the segment's header) to the end of the file.

    ``payloads`` reads and checks payloads too; else only heads are read. :class:`FormatError` if the file
    is not this segment at all; :class:`OSError` if it cannot be read.
    """
    size = fs.size(fd)
    if start < SEGMENT_HEADER_BYTES:
        check_segment_header(_read(fs, fd, 0, SEGMENT_HEADER_BYTES), store_id, tier_no, segment_no)
        start = SEGMENT_HEADER_BYTES
    at = start
    while at < size:
        place = Place(store_id, tier_no, segment_no, at)
        try:
            head = read_head(partial(_read, fs, fd), place)
            if at + head.record_len > size:
                raise FormatError("the file ends inside the record")
        except FormatError as e:
            following = _next_record(fs, fd, at + RECORD_ALIGN, size, store_id, tier_no, segment_no)
            if following is None:
                yield TornTail(at, str(e))
                return
            yield Damaged(at, following, str(e))
            at = following
            continue
        problem = _payload_problem(fs, fd, at, head) if payloads else None
        yield Damaged(at, at + head.record_len, problem) if problem else Found(at, head)
        at += head.record_len


def _payload_problem(fs: FileSystem, fd: int, offset: int, head: RecordHead) -> str | None:
    if head.kind is not RecordKind.BLOCK or head.state is RecordState.DEAD:
        return None  # a dead record's payload may have been punched out
    try:
        check_payload(head, [_read(fs, fd, offset + head.head_len, head.stored_len)])
    except FormatError as e:
        return str(e)
    return None


def _next_record(
    fs: FileSystem, fd: int, at: int, size: int, store_id: bytes, tier_no: int, segment_no: int
) -> int | None:
    """The next offset at or after ``at`` where a record's head passes its checks."""
    at = align_up(at)
    while at < size:
        chunk = _read(fs, fd, at, _RESYNC_BYTES)
        found = chunk.find(RECORD_MAGIC)
        while found >= 0:
            offset = at + found
            if offset % RECORD_ALIGN == 0:
                try:
                    read_head(partial(_read, fs, fd), Place(store_id, tier_no, segment_no, offset))
                    return offset
                except FormatError:
                    pass
            found = chunk.find(RECORD_MAGIC, found + 1)
        at += _RESYNC_BYTES
    return None


def _read(fs: FileSystem, fd: int, offset: int, length: int) -> bytearray:
    buffer = bytearray(length)
    got = fs.read_at(fd, [memoryview(buffer)], offset)
    return buffer if got == length else buffer[:got]
