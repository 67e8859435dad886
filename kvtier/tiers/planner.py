"""What has to be appended for blocks on their way in: payloads, references to contents that are there, or nothing.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvtier import codec
from kvtier.blocks import Buffer
from kvtier.events import Signals
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.index.schema import BlockEntry
from kvtier.segment.format import RecordKind, expiry_day
from kvtier.segment.writer import Draft
from kvtier.tiers.chains import known
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.drafts import NewBlock, head_of, payload_draft

Drafts = list[tuple[int, Draft]]  # each with its block
Encoded = dict[bytes, tuple[int, list[Buffer]]]  # content id: codec and stored payload


class Planner:
    """``tier_nos``: of the tiers that there are."""

    def __init__(self, index: LmdbIndex, tier_nos: Collection[int], signals: Signals) -> None:
        self._index = index
        self._tier_nos = frozenset(tier_nos)
        self._signals = signals

    def plan(self, tier: DiskTier, puts: Sequence[NewBlock], encoded: Encoded) -> tuple[Drafts, list[int]]:
        """The records that ``tier`` lacks, and the blocks that need none. ``encoded`` remembers payloads."""
        drafts: Drafts = []
        unchanged: list[int] = []
        new: set[bytes] = set()
        with self._index.read() as view:
            for put in puts:
                entry = view.block(put.block_id)
                if entry is not None and (entry.namespace, entry.key) != (put.namespace, put.key):
                    self._signals.count("id_collisions")
                elif entry is not None and put.is_at(entry) and self._may_stay(view, entry, put):
                    unchanged.append(put.block_id)
                elif put.content_id in new or view.content(tier.tier_no, put.content_id):
                    drafts.append((put.block_id, Draft(head_of(put, RecordKind.REFERENCE, 0, 0), ())))
                else:
                    new.add(put.content_id)
                    if put.content_id not in encoded:
                        encoded[put.content_id] = codec.encode(tier.setup.codec, put.buffers)
                    codec_id, stored = encoded[put.content_id]
                    drafts.append((put.block_id, payload_draft(put, codec_id, stored, tier.vault)))
        return drafts, unchanged

    def plan_known(self, tier: DiskTier, blocks: Sequence[NewBlock]) -> Drafts:
        """As :meth:`plan`, for those that are still there: what was evicted must not come back."""
        still = set(known(self._index, [b.block_id for b in blocks]))
        return self.plan(tier, [b for b in blocks if b.block_id in still], {})[0]

    def renewed(self, puts: Sequence[NewBlock], unchanged: Sequence[int]) -> dict[int, int]:
        """Which of the blocks that need no record expire at another time from now on, and when."""
        if not unchanged:
            return {}
        with self._index.read() as view:
            entries = {b: view.block(b) for b in unchanged}
        new = {p.block_id: p.expires_at for p in puts if p.block_id in entries}
        return {b: when for b, when in new.items() if (e := entries[b]) is not None and e.expires_at != when}

    def _may_stay(self, view: View, entry: BlockEntry, put: NewBlock) -> bool:
        """Whether its record can be read, and names the day on which the block is to expire."""
        if expiry_day(entry.expires_at) != expiry_day(put.expires_at):
            return False
        return entry.tier_no in self._tier_nos and view.content(entry.tier_no, entry.content_id) is not None
