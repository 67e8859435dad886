"""Appending to one segment.

One thread appends. Nothing that was appended may be named by the index before :meth:`sync` returned; after
any error the segment must not be appended to again (a failed sync may have lost what it claims to hold).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from kvtier.blocks import Buffer
from kvtier.fs import FileSystem
from kvtier.segment.format import (
    SEGMENT_HEADER_BYTES,
    Place,
    RecordHead,
    RecordKind,
    pack_head,
    pack_segment_header,
    payload_sum,
)

#: Gives the stored payload of a record: for its head (payload checksum not yet set), its place, and the codec's
#: output. The length of what it gives is in the head already.
Encrypt = Callable[[RecordHead, Place, "Sequence[memoryview]"], "Sequence[memoryview]"]


def as_it_is(head: RecordHead, place: Place, payload: Sequence[memoryview]) -> Sequence[memoryview]:
    """The payload, not encrypted."""
    return payload


class Draft(NamedTuple):
    """A record to append: its head (payload checksum not yet set) and what its codec gave, in order."""

    head: RecordHead
    payload: Sequence[Buffer]


class Written(NamedTuple):
    """A record that was appended: where, and its final head."""

    segment_no: int
    offset: int
    head: RecordHead


class SegmentWriter:
    """The open tail of one segment file. Lengths in bytes. No two writers share what ``encrypt`` is."""

    def __init__(
        self,
        fs: FileSystem,
        fd: int,
        store_id: bytes,
        tier_no: int,
        segment_no: int,
        length: int,
        encrypt: Encrypt = as_it_is,
    ) -> None:
        self._fs = fs
        self.fd = fd
        self._store_id = store_id
        self._tier_no = tier_no
        self.segment_no = segment_no
        self.length = length
        self._encrypt = encrypt

    @classmethod
    def create(
        cls, fs: FileSystem, path: str, store_id: bytes, tier_no: int, segment_no: int, encrypt: Encrypt = as_it_is
    ) -> SegmentWriter:
        """A new segment with its header written (not synced, and its name not durable yet)."""
        fd = fs.open(path, create=True)
        try:
            fs.write_at(fd, [pack_segment_header(store_id, tier_no, segment_no)], 0)
        except BaseException:
            fs.close(fd)
            raise
        return cls(fs, fd, store_id, tier_no, segment_no, SEGMENT_HEADER_BYTES, encrypt)

    def append(self, drafts: Sequence[Draft]) -> list[Written]:
        """Append the records with one positioned vector write; space is reserved first, so that a full disk is
        noticed before a byte is written. :class:`OSError` leaves the segment unusable."""
        written: list[Written] = []
        buffers: list[memoryview | bytes] = []
        at = self.length
        for draft in drafts:
            views: Sequence[memoryview] = [memoryview(b) for b in draft.payload]
            head = draft.head.at(at)
            place = Place(self._store_id, self._tier_no, self.segment_no, at)
            if head.kind is RecordKind.BLOCK:
                views = self._encrypt(head, place, views)
                head = replace(head, payload_sum=payload_sum(views))
            padding = bytes(head.record_len - head.head_len - head.stored_len)
            buffers += [pack_head(head, place), *views, padding]
            written.append(Written(self.segment_no, at, head))
            at += head.record_len
        self._fs.reserve(self.fd, self.length, at - self.length)
        self._fs.write_at(self.fd, buffers, self.length)
        self.length = at
        return written

    def sync(self) -> None:
        """Make everything appended so far durable. Never retry it after an error."""
        self._fs.sync_data(self.fd)

    def close(self) -> None:
        """Once: also after an error the descriptor is gone, and its number may be another file's."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._fs.close(fd)
