"""Reading records: every byte is checked before anyone sees it.

Threads: all of it may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from kvtier.errors import bare
from kvtier.fs import FileSystem
from kvtier.segment.format import (
    PAGE,
    FormatError,
    Place,
    RecordHead,
    RecordKind,
    RecordState,
    check_payload,
    unpack_head,
)

_OPEN_FILES_MAX = 128


class Extent(NamedTuple):
    """Where a payload record is, and what it must turn out to hold."""

    segment_no: int
    offset: int
    head_len: int
    stored_len: int
    content_id: bytes

    @property
    def end(self) -> int:
        return self.offset + self.head_len + self.stored_len

    def place(self, store_id: bytes, tier_no: int) -> Place:
        return Place(store_id, tier_no, self.segment_no, self.offset)


class Fetched(NamedTuple):
    """Records as they were read, up to ``end`` in the file: nothing of them is checked yet."""

    wanted: Sequence[tuple[Extent, Sequence[memoryview]]]
    heads: list[bytearray]
    end: int


class SegmentFiles:
    """Descriptors of a tier's segments for reading: at most 128 kept open, never closed while in use."""

    def __init__(
        self, fs: FileSystem, path_of: Callable[[int], str], hint: Callable[[int], None] = lambda fd: None
    ) -> None:
        """``hint`` is told of each descriptor that is opened."""
        self._fs = fs
        self._hint = hint
        self._path_of = path_of
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()
        self._users: dict[int, int] = {}
        self._gone: set[int] = set()
        self._closed = False

    @contextmanager
    def lease(self, segment_no: int) -> Iterator[int]:
        """A descriptor that stays valid inside the ``with``. :class:`OSError` if it cannot be opened."""
        with self._lock:
            fd = self._open.pop(segment_no, None)
            if fd is None:
                fd = self._fs.open(self._path_of(segment_no))
                self._hint(fd)
            self._open[segment_no] = fd
            self._users[segment_no] = self._users.get(segment_no, 0) + 1
            self._trim()
        try:
            yield fd
        finally:
            with self._lock:
                self._users[segment_no] -= 1
                if not self._users[segment_no]:
                    del self._users[segment_no]
                    self._close_gone(segment_no)
                if self._closed:
                    self._trim()

    def forget(self, segment_no: int) -> None:
        """Close the descriptor of a segment that is gone, as soon as nobody reads it any more."""
        with self._lock:
            self._gone.add(segment_no)
            self._close_gone(segment_no)

    def _close_gone(self, segment_no: int) -> None:
        if segment_no in self._gone and segment_no not in self._users:
            self._gone.discard(segment_no)
            if segment_no in self._open:
                self._fs.close(self._open.pop(segment_no))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._trim()

    def _trim(self) -> None:
        excess = len(self._open) - (0 if self._closed else _OPEN_FILES_MAX)
        for number in [n for n in self._open if n not in self._users][: max(0, excess)]:
            self._fs.close(self._open.pop(number))


def fetch_records(fs: FileSystem, fd: int, wanted: Sequence[tuple[Extent, Sequence[memoryview]]]) -> Fetched:
    """Read records of one segment, in offset order, with one positioned vector read; gaps are skipped over.

    Each payload lands in its own views (whose sizes sum to ``stored_len``), which must not be used before
    :func:`check_records` says so. :class:`OSError` if the read fails.
    """
    buffers: list[memoryview] = []
    heads: list[bytearray] = []
    start = at = wanted[0][0].offset
    for extent, views in wanted:
        if extent.offset > at:
            buffers.append(memoryview(bytearray(extent.offset - at)))
        head = bytearray(extent.head_len)
        heads.append(head)
        buffers += [memoryview(head), *views]
        at = extent.end
    return Fetched(wanted, heads, start + fs.read_at(fd, buffers, start))


def fetch_span(
    fs: FileSystem, fd: int, extents: Sequence[Extent], memory: Callable[[int], memoryview]
) -> tuple[Fetched, list[memoryview]]:
    """As :func:`fetch_records`, but as records lie, whole pages, in one piece of ``memory``; and the payloads in it.

    Where that memory is aligned to pages, the disk may write straight to it.
    """
    start = extents[0].offset // PAGE * PAGE
    span = memory(-(-extents[-1].end // PAGE) * PAGE - start)
    read = fs.read_at(fd, [span], start)
    heads, payloads = [], []
    for extent in extents:
        at = extent.offset - start
        heads.append(bytearray(span[at : at + extent.head_len]))
        payloads.append(span[at + extent.head_len : extent.end - start])
    wanted = [(extent, [payload]) for extent, payload in zip(extents, payloads, strict=True)]
    return Fetched(wanted, heads, start + read), payloads


def check_records(fetched: Fetched, store_id: bytes, tier_no: int) -> list[RecordHead | FormatError]:
    """For each record: its checked head, or the :class:`FormatError` that says why its views must not be used."""
    results: list[RecordHead | FormatError] = []
    for (extent, views), raw in zip(fetched.wanted, fetched.heads, strict=True):
        try:
            if extent.end > fetched.end:
                raise FormatError("the segment ends inside the record")
            results.append(_checked(extent, unpack_head(raw, extent.place(store_id, tier_no)), views))
        except FormatError as e:
            results.append(bare(e))
    return results


def _checked(extent: Extent, head: RecordHead, views: Sequence[memoryview]) -> RecordHead:
    if head.kind is not RecordKind.BLOCK or head.content_id != extent.content_id:
        raise FormatError("another content stands there")
    if head.state is RecordState.DEAD:
        raise FormatError("the record is dead")
    if (head.head_len, head.stored_len) != (extent.head_len, extent.stored_len):
        raise FormatError("the record has another length")
    check_payload(head, views)
    return head
