"""What the index must say when blocks come, go and move: reference counts and live bytes, in one transaction.

Contents are shared inside one tier and namespace: ``contents[tier, content id]`` counts the blocks of that
tier that need the record. Nothing here touches a segment; what died is listed in :attr:`Change.freed` and
is marked on disk only after the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from kvtier.index.lmdb_index import WriteTxn
from kvtier.index.schema import NO_TIER, BlockEntry, ContentEntry, Departure, IndexDamaged, Reason, SegmentEntry
from kvtier.segment.format import RECORD_HEADER_BYTES, RecordHead, RecordKind, RecordState
from kvtier.segment.writer import Written
from kvtier.tiers.census import Census
from kvtier.tiers.disk import Freed

SegmentId = tuple[int, int]  # tier number, segment number


class Change:
    """One index transaction's worth of linking and unlinking. ``when``: what its departures are dated."""

    def __init__(self, txn: WriteTxn, when: int) -> None:
        self.txn = txn
        self.when = when
        self.departures: dict[int, Departure] = {}
        self.freed: list[Freed] = []
        self.live: Counter[SegmentId] = Counter()
        self.result: dict[SegmentId, SegmentEntry] = {}
        self.dropped: list[SegmentId] = []
        self.census = Census(txn)
        self.keep: set[SegmentId] = set()  # not to be sealed or dropped by this change

    def link(self, block_id: int, tier_no: int, clock: int, written: Written) -> BlockEntry | None:
        """Let ``block_id`` mean the record that was appended, which is returned as its entry; whatever it meant before
        is unlinked; but if the record is a copy of the block's in this tier, the content is now there, for all who
        share it.

        A reference needs its content in the same tier: None, and nothing is linked, if it is not there.
        """
        head = written.head
        content = self.txn.content(tier_no, head.content_id)
        if content is None:
            if head.kind is RecordKind.REFERENCE:
                self.reject(tier_no, written)
                return None
            self.unlink(block_id)  # first: if it counted on an entry that was damaged, it must not count on this one
            content = self.add_content(tier_no, written)
        owns = _is_at(content, written)
        if not owns and (was := self.txn.block(block_id)) is not None and _is_copy(tier_no, was, head):
            return self._relocate(block_id, was._replace(clock=clock), content, written)
        self.hold(tier_no, head.content_id)
        self.unlink(block_id)
        entry = _block_of(tier_no, clock, written, owns)
        self.txn.put_block(block_id, entry)
        self.census.add(head.namespace, 1, head.raw_len)
        if not owns:
            self.live[tier_no, written.segment_no] += head.record_len
        return entry

    def _relocate(self, block_id: int, was: BlockEntry, content: ContentEntry, written: Written) -> BlockEntry:
        self.live[was.tier_no, content.segment_no] -= content.record_len
        self.live[was.tier_no, written.segment_no] += written.head.record_len
        self.txn.put_content(was.tier_no, was.content_id, _content_of(written)._replace(refs=content.refs))
        self._free(was.tier_no, content)
        if was.kind != RecordKind.BLOCK:
            self._free_own(was, RecordState.DEAD)
        entry = _block_of(was.tier_no, was.clock, written, True)
        self.txn.put_block(block_id, entry)
        return entry

    def add_content(self, tier_no: int, written: Written) -> ContentEntry:
        """Let a payload record hold its content, which no block shares yet."""
        content = _content_of(written)
        self.txn.put_content(tier_no, written.head.content_id, content)
        self.live[tier_no, written.segment_no] += content.record_len
        return content

    @contextmanager
    def holding(self, tier_no: int, content_ids: Iterable[bytes]) -> Iterator[None]:
        """Inside, these contents stay, if they are there, even while no block needs them."""
        held = [c for c in content_ids if self.hold(tier_no, c)]
        yield
        for content_id in held:
            self.release(tier_no, content_id)

    def hold(self, tier_no: int, content_id: bytes) -> bool:
        """Count one more reference to a content; False if it is not there."""
        content = self.txn.content(tier_no, content_id)
        if content is not None:
            self.txn.put_content(tier_no, content_id, content._replace(refs=content.refs + 1))
        return content is not None

    def release(self, tier_no: int, content_id: bytes) -> None:
        """Count one reference less, and free the content with the last."""
        content = self.txn.content(tier_no, content_id)
        if content is None:
            return
        if content.refs > 1:
            self.txn.put_content(tier_no, content_id, content._replace(refs=content.refs - 1))
        else:
            self._free_content(tier_no, content_id, content)

    def reject(self, tier_no: int, written: Written) -> None:
        """A record that no block means; its payload stays if it is the one that others share."""
        content = self.txn.content(tier_no, written.head.content_id)
        is_shared = content is not None and _is_at(content, written)
        state = RecordState.PAYLOAD_ONLY if is_shared else RecordState.DEAD
        h = written.head
        self.freed.append(Freed(tier_no, written.segment_no, written.offset, h.head_len, h.record_len, state))

    def unlink(self, block_id: int) -> BlockEntry | None:
        """Let ``block_id`` mean nothing; what no other block needs is freed."""
        entry = self.txn.block(block_id)
        if entry is None:
            if self.txn.del_block(block_id):  # a damaged entry: whose it was is not known
                self.census.is_exact = False
            return None
        self.txn.del_block(block_id)
        self.census.add(entry.namespace, -1, -entry.nbytes)
        content = self.txn.content(entry.tier_no, entry.content_id)
        own_is_content = entry.kind == RecordKind.BLOCK
        self.release(entry.tier_no, entry.content_id)
        if own_is_content and content is not None and content.refs > 1:
            self._free_own(entry, RecordState.PAYLOAD_ONLY)
        if not own_is_content:
            self._free_own(entry, RecordState.DEAD)
        return entry

    def depart(self, block_id: int, reason: Reason) -> BlockEntry | None:
        """Let ``block_id`` mean nothing, and remember why. What it meant, if that is known."""
        entry = self.unlink(block_id)
        tier_no = NO_TIER if entry is None else entry.tier_no
        self.departures[block_id] = Departure(block_id, self.when, reason, tier_no)
        return entry

    def quarantine(self, block_id: int, tier_no: int, content_id: bytes) -> dict[int, BlockEntry | None]:
        """Forget a content that failed its checks and every block that needs it; returns those blocks, and what they
        meant.

        ``block_id`` is the one on which it was noticed; the others cost a walk over all blocks.
        """
        wanted = (tier_no, content_id)
        gone: dict[int, BlockEntry | None] = {}
        entry = self.txn.block(block_id)
        if entry is not None and (entry.tier_no, entry.content_id) == wanted:
            gone[block_id] = self.depart(block_id, Reason.DAMAGED)
        if self.txn.content(*wanted) is not None:
            others = [b for b, e in self.txn.blocks() if (e.tier_no, e.content_id) == wanted]
            gone |= {other: self.depart(other, Reason.DAMAGED) for other in others}
        if (left := self.txn.content(*wanted)) is not None:
            self._free_content(*wanted, left)
        return gone

    def forget_segment(self, tier_no: int, segment_no: int) -> None:
        """A segment is gone from its folder: no entry, and no live bytes to account for."""
        self.live.pop((tier_no, segment_no), None)
        self.freed = [f for f in self.freed if (f.tier_no, f.segment_no) != (tier_no, segment_no)]
        self.txn.del_segment(tier_no, segment_no)

    def finish(self, committed: Mapping[SegmentId, int], active: set[SegmentId]) -> None:
        """Write the segment entries: lengths that are durable now, live bytes; drop sealed ones that are dead. And what
        each namespace has."""
        self.census.save()
        for segment_id in {*self.live, *committed}:
            try:
                old = self.txn.segment(*segment_id) or SegmentEntry(0, 0, False)
            except IndexDamaged:
                continue  # what lives in it is not known: the next opening makes the index anew
            new = SegmentEntry(
                committed.get(segment_id, old.committed_len),
                max(0, old.live_bytes + self.live[segment_id]),
                old.sealed or (segment_id not in active and segment_id not in self.keep),
            )
            if new.sealed and not new.live_bytes and segment_id not in self.keep:
                self.txn.del_segment(*segment_id)
                self.dropped.append(segment_id)
            else:
                self.txn.put_segment(*segment_id, new)
                self.result[segment_id] = new

    def _free_content(self, tier_no: int, content_id: bytes, content: ContentEntry) -> None:
        self.txn.del_content(tier_no, content_id)
        self.live[tier_no, content.segment_no] -= content.record_len
        self._free(tier_no, content)

    def _free(self, tier_no: int, c: ContentEntry) -> None:
        self.freed.append(Freed(tier_no, c.segment_no, c.offset, c.head_len, c.record_len, RecordState.DEAD))

    def _free_own(self, entry: BlockEntry, state: RecordState) -> None:
        if state is RecordState.DEAD:
            self.live[entry.tier_no, entry.segment_no] -= entry.record_len
        self.freed.append(
            Freed(entry.tier_no, entry.segment_no, entry.offset, RECORD_HEADER_BYTES, entry.record_len, state)
        )


def _block_of(tier_no: int, clock: int, written: Written, owns: bool) -> BlockEntry:
    h = written.head
    return BlockEntry(
        clock=clock,
        seq=h.seq,
        parent_id=h.parent_id,
        segment_no=written.segment_no,
        offset=written.offset,
        record_len=h.record_len,
        tier_no=tier_no,
        kind=RecordKind.BLOCK if owns else RecordKind.REFERENCE,
        content_id=h.content_id,
        namespace=h.namespace,
        key=h.key,
        meta=h.meta,
        lengths=h.lengths,
        expires_at=h.expires_at,
    )


def _is_copy(tier_no: int, was: BlockEntry, head: RecordHead) -> bool:
    """Whether a record with a payload, of a block that is in the tier already, is the same put over again."""
    same = (was.tier_no, was.seq, was.content_id) == (tier_no, head.seq, head.content_id)
    return same and head.kind is RecordKind.BLOCK


def _content_of(written: Written) -> ContentEntry:
    """The entry of a payload record that no block shares yet."""
    h = written.head
    return ContentEntry(
        codec=h.codec,
        segment_no=written.segment_no,
        offset=written.offset,
        head_len=h.head_len,
        stored_len=h.stored_len,
        refs=0,
    )


def _is_at(content: ContentEntry, written: Written) -> bool:
    return (content.segment_no, content.offset) == (written.segment_no, written.offset)
