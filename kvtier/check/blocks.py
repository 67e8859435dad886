"""Each block that the index names, against the record that it points to.

A writer may be at work meanwhile: whatever does not fit is looked up again, and only what the index still says then
is damage.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import NamedTuple

from kvtier.check.report import Finding, Kind, Report
from kvtier.check.segments import Walked
from kvtier.check.subject import Subject
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.index.schema import BlockEntry, ContentEntry
from kvtier.segment.format import (
    FormatError,
    Place,
    RecordHead,
    RecordKind,
    RecordState,
    check_payload,
)
from kvtier.segment.reader import SegmentFiles
from kvtier.segment.scanner import read_head

_AT_ONCE = 4096
_TRIES = 4
_OF_THE_FILE = {errno.EIO, errno.ENOENT}  # any other error says nothing of what the disk holds


class Named(NamedTuple):
    """A block as the index has it; ``content`` is None if what it says of the payload is missing or damaged."""

    block_id: int
    entry: BlockEntry
    content: ContentEntry | None

    @property
    def places(self) -> tuple[int, ...]:
        """What says where it is, without what changes when it is used."""
        of_content = (self.content.segment_no, self.content.offset) if self.content else ()
        return (self.entry.seq, self.entry.tier_no, self.entry.segment_no, self.entry.offset, *of_content)


class BadContent(NamedTuple):
    """A payload that cannot be served, as the store's quarantine wants to be told of it."""

    block_id: int
    tier_no: int
    content_id: bytes
    place: tuple[int, int]  # segment, offset
    reason: str


class _Problem(Exception):
    """A record is not what the index says."""

    def __init__(self, kind: Kind, what: str) -> None:
        super().__init__(what)
        self.kind, self.what = kind, what


class BlockCheck:
    """Checks all blocks. Afterwards ``contents`` says what a repair has to take out, and ``references`` which blocks it
    has to write a record for."""

    def __init__(self, subject: Subject, index: LmdbIndex, report: Report, walked: Walked, *, payloads: bool) -> None:
        self._subject = subject
        self._index = index
        self._report = report
        self._walked = walked
        self._payloads = payloads
        self._tiers = {t.tier_no: t for t in subject.tiers}
        self._files: dict[int, SegmentFiles] = {}
        self.contents: dict[tuple[int, bytes], BadContent] = {}
        self.references: list[int] = []  # ids of blocks that can be read, though their own record is damaged

    def run(self) -> None:
        """:class:`OSError`, or an error of a tier's label, if a disk fails: then nothing is known of what it holds."""
        with ExitStack() as stack:
            for tier in self._subject.tiers:
                self._files[tier.tier_no] = SegmentFiles(self._subject.fs, tier.path_of)
                stack.callback(self._files[tier.tier_no].close)
            for batch in self._batches():
                for named in sorted(batch, key=lambda n: n.places[1:]):
                    self._check(named)

    def _batches(self) -> Iterator[list[Named]]:
        """All blocks, each batch from a view of its own, so that a writer is not kept from using old pages again."""
        after = 0
        while True:
            with self._index.read() as view:
                batch = [_named(view, block_id, entry) for block_id, entry in islice(view.blocks(after), _AT_ONCE)]
            if not batch:
                return
            yield batch
            after = batch[-1].block_id

    def _check(self, named: Named) -> None:
        self._report.blocks += 1
        for _ in range(_TRIES):
            if named.entry.tier_no not in self._tiers:
                self._report.notes["blocks_in_other_tiers"] += 1
                return
            bad_content = _problem_in(self._check_content, named)
            problem = bad_content or _problem_in(self._check_own, named)
            if problem is None:
                return
            now = self._look_up(named.block_id)
            if now is None:
                return
            if now.places == named.places:
                self._take(named, problem, is_readable=bad_content is None)
                return
            named = now

    def _look_up(self, block_id: int) -> Named | None:
        with self._index.read() as view:
            entry = view.block(block_id)
            return None if entry is None else _named(view, block_id, entry)

    def _take(self, named: Named, problem: _Problem, *, is_readable: bool) -> None:
        """The block is damaged, for good; ``is_readable``: only its own record is."""
        entry, content = named.entry, named.content
        at = entry if is_readable or content is None else content
        place = at.segment_no, at.offset
        which = entry.tier_no, entry.content_id
        is_new = True
        if is_readable:
            self.references.append(named.block_id)  # but an index made anew would not know it
        else:
            self._report.blocks_damaged += 1
        if at is content:
            is_new = which not in self.contents
            self.contents.setdefault(which, BadContent(named.block_id, *which, place, problem.what))
        if is_new and (entry.tier_no, at.segment_no) not in self._walked.missing:
            name = self._tiers[entry.tier_no].name
            self._report.add(Finding(problem.kind, problem.what, name, *place))

    # -- one block ----------------------------------------------------------------------------------

    def _check_own(self, named: Named) -> None:
        entry = named.entry
        own = self._head(entry.tier_no, entry.segment_no, entry.offset)
        _expect(_is_record_of(own, entry), Kind.INDEX, "the record of another block stands there")
        _expect(own.state is RecordState.LIVE, Kind.RECORD, "the record is marked as no block's")

    def _check_content(self, named: Named) -> None:
        entry, content = named.entry, named.content
        if content is None:
            raise _Problem(Kind.INDEX, "it names a payload that it does not know")
        head = self._head(entry.tier_no, content.segment_no, content.offset)
        _expect(_is_content(head, entry, content), Kind.INDEX, "the record of another payload stands there")
        _expect(head.state is not RecordState.DEAD, Kind.RECORD, "the record is marked dead")
        place = entry.tier_no, content.segment_no, content.offset
        if place in self._walked.doubtful or (self._payloads and place[:2] in self._walked.unread):
            self._check_payload(entry.tier_no, content, head)

    def _check_payload(self, tier_no: int, content: ContentEntry, head: RecordHead) -> None:
        at = content.offset + content.head_len
        stored = self._read(Kind.PAYLOAD, tier_no, content.segment_no, at, content.stored_len)
        try:
            if len(stored) < content.stored_len:
                raise FormatError("the file ends inside the record")
            check_payload(head, [stored])
        except FormatError as e:
            raise _Problem(Kind.PAYLOAD, str(e)) from e

    def _head(self, tier_no: int, segment_no: int, offset: int) -> RecordHead:
        read = partial(self._read, Kind.RECORD, tier_no, segment_no)
        try:
            return read_head(read, Place(self._subject.store_id, tier_no, segment_no, offset))
        except FormatError as e:
            raise _Problem(Kind.RECORD, str(e)) from e

    def _read(self, kind: Kind, tier_no: int, segment_no: int, offset: int, length: int) -> bytearray:
        """What stands there: damage is only what cannot be read twice, while the tier's disk gives its label."""
        for _ in range(2):
            try:
                return self._read_once(tier_no, segment_no, offset, length)
            except OSError as e:
                if e.errno not in _OF_THE_FILE:
                    raise
                self._subject.check_label(self._tiers[tier_no])
                error = e
            self._files[tier_no].forget(segment_no)  # of a disk that was away, a descriptor stays bad
        raise _Problem(kind, f"it cannot be read: {error.strerror or error}")

    def _read_once(self, tier_no: int, segment_no: int, offset: int, length: int) -> bytearray:
        buffer = bytearray(length)
        with self._files[tier_no].lease(segment_no) as fd:
            del buffer[self._subject.fs.read_at(fd, [memoryview(buffer)], offset) :]
        return buffer


def _problem_in(check: Callable[[Named], None], named: Named) -> _Problem | None:
    try:
        check(named)
    except _Problem as problem:
        return problem
    return None


def _named(view: View, block_id: int, entry: BlockEntry) -> Named:
    return Named(block_id, entry, view.content(entry.tier_no, entry.content_id))


def _expect(is_right: bool, kind: Kind, what: str) -> None:
    if not is_right:
        raise _Problem(kind, what)


def _is_record_of(head: RecordHead, entry: BlockEntry) -> bool:
    said = (entry.seq, entry.parent_id, entry.record_len, entry.content_id)
    names = (entry.namespace, entry.key, entry.meta, entry.lengths)
    is_there = (head.seq, head.parent_id, head.record_len, head.content_id) == said
    return is_there and (head.namespace, head.key, head.meta, head.lengths) == names


def _is_content(head: RecordHead, entry: BlockEntry, content: ContentEntry) -> bool:
    said = (entry.content_id, content.head_len, content.stored_len, content.codec)
    is_there = (head.content_id, head.head_len, head.stored_len, head.codec) == said
    return is_there and head.kind is RecordKind.BLOCK
