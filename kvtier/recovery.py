"""Making index and segments agree when a store is opened.

The segments are the truth and the index is derived. After an unclean end the tail of a segment may hold
records that no commit covered yet: those that prove themselves are taken in, and what follows is cut off.
A segment below the tier's counter that the index does not name was being dropped: the drop is finished.

An index that is missing, damaged, unfinished, older than the segments or of another format is made anew from all of
them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import TypeVar

from kvtier.events import RebuildProgress, Recovered, SegmentLost, Signals
from kvtier.fs import FileSystem
from kvtier.index.errors import IndexCorrupt
from kvtier.index.lmdb_index import IndexFull, LmdbIndex
from kvtier.index.schema import IndexDamaged, Reason, SegmentEntry
from kvtier.segment.format import (
    SEGMENT_HEADER_BYTES,
    FormatError,
    RecordKind,
    RecordState,
)
from kvtier.segment.scanner import Damaged, Found, TornTail, scan
from kvtier.segment.writer import Written
from kvtier.tiers.catalog import Change, SegmentId
from kvtier.tiers.census import take_census
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.ledger import Ledger

_BATCH = 10_000
_TAIL_BYTES_MAX = 64 << 20  # more than is appended between two commits
_T = TypeVar("_T")

BlockNamer = Callable[[bytes, bytes], int]


class _IndexIsBehind(Exception):
    """The index does not know of a record that a later commit has already retired."""


@dataclass
class Report:
    """What opening found."""

    records: int = 0
    torn_bytes: int = 0
    damaged: int = 0
    rebuilt: bool = False


class Recovery:
    """One opening's worth of recovery. ``block_id`` names a block by (namespace, key)."""

    def __init__(
        self,
        fs: FileSystem,
        index: LmdbIndex,
        tiers: Sequence[DiskTier],
        ledger: Ledger,
        signals: Signals,
        block_id: BlockNamer,
        store_id: bytes,
    ) -> None:
        self._fs = fs
        self._index = index
        self._tiers = tiers
        self._ledger = ledger
        self._signals = signals
        self._block_id = block_id
        self._store_id = store_id
        self.report = Report()
        self._unread: set[SegmentId] = set()
        self._tails: dict[SegmentId, int] = {}  # segments with records behind what was committed, and how far that is

    def run(self) -> Report:
        """Bring index and segments to agree. :class:`OSError` if a tier's folder or the index cannot be used."""
        while not self._agree():
            if not self._index.grow():
                raise OSError(errno.ENOSPC, "the index is at its largest")
        for tier in self._tiers:
            self._resume(tier)
        self._drop_dead_segments()
        r = self.report
        if r.rebuilt or r.records or r.torn_bytes:
            self._signals.emit(Recovered(r.records, r.torn_bytes, r.rebuilt))
        return r

    def _agree(self) -> bool:
        """Reconcile, or rebuild; False if the index is too small for it (either can be done again)."""
        self._tails = {}
        for tier in self._tiers:
            tier.uncommitted.clear()
        try:
            with self._index.read() as view:
                is_complete = view.is_complete()
            try:
                if not is_complete:
                    raise _IndexIsBehind
                missing = [(tier, self._take_stock(tier)) for tier in self._tiers]  # no commit before all is known
                self._note_tails()
                for tier, numbers in missing:
                    self._forget_segments(tier, numbers)
                self._replay_tails()
            except (_IndexIsBehind, IndexDamaged):
                self._rebuild()
            take_census(self._index)
        except IndexFull:
            return False
        return True

    # -- the usual way ------------------------------------------------------------------------------

    def _take_stock(self, tier: DiskTier) -> set[int]:
        """Take account of the segments that are there; returns the numbers of those that should be."""
        with self._index.read() as view:
            known = view.segments(tier.tier_no)
            counter = view.counter(f"next_segment:{tier.tier_no}")
        there = set(tier.list_segments())
        tier.next_segment_no = max(counter, 1)
        for number in sorted(there):
            entry = known.get(number)
            if entry is None and number < counter:
                tier.drop(number)
            else:
                self._take_account(tier, number, entry or SegmentEntry(0, 0, False))
        return set(known) - there

    def _take_account(self, tier: DiskTier, number: int, entry: SegmentEntry) -> None:
        try:
            segment = tier.know(number, entry.live_bytes)
        except OSError as e:
            self._signals.count("segments_unreadable")
            tier.health.last_error = str(e)
            return
        if segment.length < entry.committed_len:
            self.report.damaged += 1
            self._signals.count("segments_short")
        elif segment.length > entry.committed_len and not entry.sealed:
            self._tails[tier.tier_no, number] = entry.committed_len

    def _note_tails(self) -> None:
        """Tell the index of segments with records behind its last commit, so that nothing drops one before its turn
        has come: neither a commit that takes the last block that is known of it, nor the next opening, if this one
        does not end."""
        if self._tails:
            with self._ledger.change() as change:
                change.keep.update(self._tails)
                change.live.update(dict.fromkeys(self._tails, 0))

    def _replay_tails(self) -> None:
        """Take in what stands behind the last commit, in all tiers."""
        tiers = {t.tier_no: t for t in self._tiers}
        for (tier_no, number), committed_len in list(self._tails.items()):
            try:
                self._replay(tiers[tier_no], number, committed_len)
            except IndexCorrupt:
                raise
            except (FormatError, OSError):  # nothing behind the last commit was acknowledged
                self._signals.count("segments_unreadable")
                tiers[tier_no].cut(number, committed_len)
            del self._tails[tier_no, number]

    def _replay(self, tier: DiskTier, number: int, start: int) -> None:
        """Take in the records beyond the last commit, cut off the rest, make both durable, then commit."""
        fd = self._fs.open(tier.path_of(number), write=True)
        try:
            tail = list(self._scan(fd, tier, number, start, payloads=True))
            if any(isinstance(item, Found) and item.head.state is not RecordState.LIVE for item in tail):
                raise _IndexIsBehind
            found = [i for i in takewhile(lambda i: isinstance(i, Found), tail) if isinstance(i, Found)]
            end = found[-1].offset + found[-1].head.record_len if found else max(start, SEGMENT_HEADER_BYTES)
            torn = self._fs.size(fd) - end
            if torn:
                self._fs.truncate(fd, end)
            self._fs.sync_data(fd)
            self._fs.sync_dir(tier.setup.folder)
        finally:
            self._fs.close(fd)
        tier.know(number, tier.segments[number].live_bytes)
        tier.uncommitted.add(number)
        self.report.torn_bytes += torn
        # What these are copies of goes with a later commit: a loss of power takes one at most.
        self._adopt(tier, [Written(number, item.offset, item.head) for item in found], list(tier.segments))

    def _forget_segments(self, tier: DiskTier, missing: set[int]) -> None:
        """Segments that the index names and the folder lacks: their blocks are gone."""
        if not missing:
            return
        with self._index.read() as view:
            for number in sorted(missing):
                if (entry := view.segment(tier.tier_no, number)) is not None and entry.live_bytes:
                    self._signals.emit(SegmentLost(tier.name, number))  # else it was about to be removed
            lost = [
                block_id
                for block_id, entry in view.blocks()
                if entry.tier_no == tier.tier_no
                and (
                    entry.segment_no in missing
                    or (c := view.content(tier.tier_no, entry.content_id)) is None
                    or c.segment_no in missing
                )
            ]
        with self._ledger.change() as change:
            change.keep.update(self._tails)
            for block_id in lost:
                self._ledger.unlink(change, block_id, Reason.LOST)
            for number in missing:
                change.forget_segment(tier.tier_no, number)
        self._signals.count("blocks_lost", len(lost))

    def _resume(self, tier: DiskTier) -> None:
        """Go on with the newest segment if it was not sealed, so that short sessions do not each leave one. Not with
        one that has just been cut, or has no header: who makes the index anew would not believe what comes behind."""
        newest = max(tier.segments, default=None)
        if newest is None or newest in tier.uncommitted:
            return
        with self._index.read() as view:
            entry = view.segment(tier.tier_no, newest)
        length = tier.segments[newest].length
        if entry is not None and not entry.sealed and SEGMENT_HEADER_BYTES <= length == entry.committed_len:
            tier.resume(newest)

    def _drop_dead_segments(self) -> None:
        """What recovery took in may turn out to hold nothing that is alive."""
        dead = [
            (tier.tier_no, number)
            for tier in self._tiers
            for number, segment in tier.segments.items()
            if not segment.live_bytes and number != tier.active_no
        ]
        if dead:
            with self._ledger.change() as change:
                change.live.update(dict.fromkeys(dead, 0))

    # -- from nothing -------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Make the index anew. If it does not come to its end, the next opening starts from nothing again."""
        self._tails, self._unread = {}, set()
        with self._index.write() as txn:
            txn.clear()
            self._ledger.save_counters(txn)  # what time it is, and write budgets, are in no record
        for tier in self._tiers:
            self._rebuild_tier(tier)
        with self._ledger.change() as change:
            change.txn.set_complete()

    def _rebuild_tier(self, tier: DiskTier) -> None:
        """First all payloads, held, so that none is given up before its references are known; then the blocks;
        then what nobody needs is let go. Every segment ends up sealed."""
        numbers = tier.list_segments()
        self.report.rebuilt |= bool(numbers)
        tier.next_segment_no = max(numbers, default=0) + 1
        numbers = [n for n in numbers if self._is_readable(tier, n)]
        self._make_durable(tier, numbers)
        with closing(self._records(tier, numbers, 0)) as records:
            for batch in _batches(records):
                self._hold_contents(tier, batch, numbers)
        with closing(self._records(tier, numbers, len(numbers))) as records:
            for batch in _batches(records):
                self._adopt(tier, batch, numbers)
        with self._index.read() as view:
            held = [content_id for content_id, _ in view.contents(tier.tier_no)]
        tier.uncommitted.update(numbers)
        self._keep_unread(tier)
        for content_ids in _batches(iter(held)):
            with self._ledger.change() as change:
                for content_id in content_ids:
                    change.release(tier.tier_no, content_id)

    def _keep_unread(self, tier: DiskTier) -> None:
        """Segments that could not be read, or are not what they should be, are counted as wholly alive, so that
        nothing drops them: another rebuild may read them."""
        with self._ledger.change() as change:
            for tier_no, number in self._unread:
                if tier_no == tier.tier_no:
                    segment = tier.segments.get(number)
                    change.live[tier_no, number] += segment.length if segment else 1

    def _hold_contents(self, tier: DiskTier, records: Sequence[Written], segments: Sequence[int]) -> None:
        with self._ledger.change() as change:
            change.keep.update((tier.tier_no, n) for n in segments)
            for content_id in _add_contents(change, tier, records):
                change.hold(tier.tier_no, content_id)

    def _is_readable(self, tier: DiskTier, number: int) -> bool:
        try:
            tier.know(number, 0)
        except OSError as e:
            self._signals.count("segments_unreadable")
            tier.health.last_error = str(e)
            self._unread.add((tier.tier_no, number))
            return False
        return True

    def _make_durable(self, tier: DiskTier, numbers: Sequence[int]) -> None:
        """What is in a segment may have been written just before a kill, and what is older will be marked as dead. If
        it cannot be made durable, the index is not made. What a file system held that is read-only now, is on it."""
        for number in numbers:
            try:
                fd = self._fs.open(tier.path_of(number), write=True)
            except OSError as e:
                if e.errno == errno.EROFS:
                    continue
                raise
            try:
                self._fs.sync_data(fd)
            finally:
                self._fs.close(fd)
        self._fs.sync_dir(tier.setup.folder)

    def _records(self, tier: DiskTier, numbers: Sequence[int], walked: int) -> Generator[Written, None, None]:
        """The records that are not dead, oldest segment first; payloads are checked where the tail may be torn.

        ``walked``: segments walked before, for those who want to know how far it is.
        """
        unsure = numbers[-2 - _TAIL_BYTES_MAX // tier.setup.segment_bytes :]
        for done, number in enumerate(numbers, walked + 1):
            try:
                fd = self._fs.open(tier.path_of(number))
                try:
                    for item in self._scan(fd, tier, number, 0, payloads=number in unsure):
                        if isinstance(item, Found):
                            if item.head.state is not RecordState.DEAD:
                                yield Written(number, item.offset, item.head)
                        elif isinstance(item, Damaged) and not walked:  # else it has been counted
                            self.report.damaged += 1
                finally:
                    self._fs.close(fd)
            except (FormatError, OSError):
                self._unread.add((tier.tier_no, number))
                if not walked:
                    self.report.damaged += 1
                    self._signals.count("segments_unreadable")
            self._signals.emit(RebuildProgress(tier.name, done, 2 * len(numbers)))

    # -- both ---------------------------------------------------------------------------------------

    def _scan(
        self, fd: int, tier: DiskTier, number: int, start: int, *, payloads: bool
    ) -> Iterator[Found | Damaged | TornTail]:
        return scan(self._fs, fd, self._store_id, tier.tier_no, number, start=start, payloads=payloads)

    def _adopt(self, tier: DiskTier, records: Sequence[Written], segments: Sequence[int]) -> None:
        """Take durable records in, in one commit, each unless its block is known with a newer one. A tie goes to the
        record: it is a copy that was on its way to another tier, whose original may be marked dead already."""
        with self._ledger.change() as change:
            change.keep.update((tier.tier_no, n) for n in segments)
            change.keep.update(self._tails)
            _add_contents(change, tier, records)
            with change.holding(tier.tier_no, {r.head.content_id for r in records}):
                for record in records:
                    if record.head.state is RecordState.LIVE:
                        self._link(change, tier, record)

    def _link(self, change: Change, tier: DiskTier, record: Written) -> None:
        block_id = self._block_id(record.head.namespace, record.head.key)
        entry = change.txn.block(block_id)
        if entry is not None and entry.seq == record.head.seq:  # a record knows the day only
            record = record._replace(head=replace(record.head, expires_at=entry.expires_at))
        if entry is not None and entry.seq > record.head.seq:
            change.reject(tier.tier_no, record)
        elif self._ledger.link(change, tier, block_id, record):
            self.report.records += 1


def _add_contents(change: Change, tier: DiskTier, records: Sequence[Written]) -> list[bytes]:
    """Let the index know the payloads in these records; returns the ids of those that are new to it."""
    new = []
    for record in records:
        content_id = record.head.content_id
        if record.head.kind is RecordKind.BLOCK and change.txn.content(tier.tier_no, content_id) is None:
            change.add_content(tier.tier_no, record)
            new.append(content_id)
    return new


def _batches(items: Iterator[_T]) -> Iterator[list[_T]]:
    while batch := list(islice(items, _BATCH)):
        yield batch
