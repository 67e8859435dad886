"""What lives in sparse segments of a tier: found in bounded steps, from the heads of their records.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.index.schema import BlockEntry, ContentEntry
from kvtier.segment.format import RecordState
from kvtier.segment.scanner import Found
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.forest import in_chains

BlockNamer = Callable[[bytes, bytes], int]

_HEADS_AT_ONCE = 128
_BLOCKS_AT_ONCE = 4096


class Sparse:
    """Segments of one tier that are being emptied. ``block_id`` names a block by (namespace, key).

    First :meth:`search` until it says that it is done; then ``left`` are the blocks that need something of them, in the
    order in which they are to be copied: as they stand, or chain by chain on a disk that turns.
    """

    def __init__(self, tier: DiskTier, segments: Sequence[int], index: LmdbIndex, block_id: BlockNamer) -> None:
        self.tier = tier
        self.segments = tuple(segments)
        self.left: deque[int] = deque()
        self.disk_bytes = sum(tier.segments[n].disk_bytes for n in segments)
        self.bytes_copied = 0
        self._index = index
        self._block_id = block_id
        self._found: dict[int, int] = {}  # block: what it extends
        self._heirless: set[bytes] = set()  # contents of which the block that owned the record is gone
        self._heirs: dict[bytes, int] = {}
        self._steps = self._searching()

    def search(self) -> bool:
        """Search a bit; whether there is more to search. :class:`OSError`, :class:`FormatError` if a segment cannot
        be read."""
        return next(self._steps, None) is not None

    def needs(self, view: View, block_id: int) -> tuple[BlockEntry, ContentEntry | None] | None:
        """What has to be copied for a block: its own record, which is a reference (None), or the content that it holds.
        None: nothing any more."""
        entry = view.block(block_id)
        if entry is None or entry.tier_no != self.tier.tier_no:
            return None
        content = view.content(entry.tier_no, entry.content_id)
        if content is None:
            return None
        is_here = content.segment_no in self.segments
        if is_here and (_owns(entry, content) or self._heirs.get(entry.content_id) == block_id):
            return entry, content
        return (entry, None) if entry.segment_no in self.segments and not _owns(entry, content) else None

    def _searching(self) -> Iterator[bool]:
        for segment_no in self.segments:
            yield from self._look_into(segment_no)
        if self._heirless:
            yield from self._look_for_heirs()
        blocks = dict.fromkeys([*self._found, *self._heirs.values()])
        if self.tier.setup.kind == "hdd":
            self.left.extend(in_chains({b: self._found.get(b, 0) for b in blocks}))
        else:
            self.left.extend(blocks)

    def _look_into(self, segment_no: int) -> Iterator[bool]:
        start = 0
        while segment_no in self.tier.segments:
            heads = self.tier.records(segment_no, start, _HEADS_AT_ONCE)
            if not heads:
                return
            with self._index.read() as view:
                for record in heads:
                    if record.head.state is not RecordState.DEAD:
                        self._look_up(view, segment_no, record)
            start = heads[-1].offset + heads[-1].head.record_len
            yield True

    def _look_up(self, view: View, segment_no: int, record: Found) -> None:
        head, place = record.head, (segment_no, record.offset)
        block_id = self._block_id(head.namespace, head.key)
        entry = view.block(block_id)
        content = view.content(self.tier.tier_no, head.content_id)
        is_own = entry is not None and entry.tier_no == self.tier.tier_no and (entry.segment_no, entry.offset) == place
        if entry is not None and is_own:
            self._found[block_id] = entry.parent_id
        elif content is not None and (content.segment_no, content.offset) == place:
            self._heirless.add(head.content_id)

    def _look_for_heirs(self) -> Iterator[bool]:
        after = 0
        while self._heirless:
            with self._index.read() as view:
                some = list(islice(view.blocks(after), _BLOCKS_AT_ONCE))
            for block_id, entry in some:
                if entry.tier_no == self.tier.tier_no and entry.content_id in self._heirless:
                    self._heirless.remove(entry.content_id)
                    self._heirs[entry.content_id] = block_id
            if not some:
                return
            after = some[-1][0]
            yield True


def _owns(entry: BlockEntry, content: ContentEntry) -> bool:
    return (entry.segment_no, entry.offset) == (content.segment_no, content.offset)
