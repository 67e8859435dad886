"""Copies of blocks for another tier: the reading half of demotion and promotion.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtier import codec
from kvtier.blocks import Buffer
from kvtier.events import Signals
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.index.schema import BlockEntry, ContentEntry
from kvtier.segment.format import FormatError, RecordKind
from kvtier.segment.reader import Extent
from kvtier.segment.writer import Draft
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.drafts import head_of, payload_draft, plain_codec
from kvtier.vault import DecryptError, KeyMissing, KeyUnavailable

_BYTES_MAX = 32 << 20


class Copier:
    """Makes records for one tier of blocks that stand in another."""

    def __init__(self, index: LmdbIndex, signals: Signals) -> None:
        self._index = index
        self._signals = signals

    def copies(
        self, block_ids: Sequence[int], source: DiskTier, target: DiskTier, *, may_lose: bool
    ) -> tuple[list[tuple[int, Draft]], int]:
        """Records to append to ``target`` for the first blocks, up to 32 MiB, and how many blocks those were; without
        those that cannot be read. :class:`KeyUnavailable` instead, if they are not to be lost, and only their keys
        cannot be had now."""
        drafts: list[tuple[int, Draft]] = []
        new: set[bytes] = set()
        size = count = 0
        with self._index.read() as view:
            for block_id in block_ids:
                if size >= _BYTES_MAX:
                    break
                count += 1
                entry = view.block(block_id)
                if entry is None or entry.tier_no != source.tier_no:
                    continue
                content = view.content(source.tier_no, entry.content_id)
                if content is None:
                    continue
                if entry.content_id in new or view.content(target.tier_no, entry.content_id):
                    drafts.append((block_id, Draft(head_of(entry, RecordKind.REFERENCE, 0, 0), ())))
                elif (draft := self.copy(entry, content, source, target, may_lose=may_lose)) is not None:
                    new.add(entry.content_id)
                    drafts.append((block_id, draft))
                    size += draft.head.record_len
        return drafts, count

    def copy(
        self,
        entry: BlockEntry,
        content: ContentEntry,
        source: DiskTier,
        target: DiskTier,
        *,
        may_lose: bool = True,
    ) -> Draft | None:
        """A block's record for ``target``, its payload read from ``source``, checked and encoded for there; None, or
        :class:`KeyUnavailable`, as :meth:`copies` says."""
        extent = extent_of(content, entry.content_id)
        try:
            source.check_lengths(extent, entry.nbytes)
            stored = memoryview(bytearray(content.stored_len))
            head = source.check(source.fetch([(extent, [stored])]))[0]
            if isinstance(head, FormatError):
                raise head
            target.vault.check_writable(entry.namespace)
            encoded = source.decrypt(head, extent, stored)
            codec_id, payload = self._for_target(entry, plain_codec(head.codec), encoded, target)
        except KeyMissing as e:
            if isinstance(e, KeyUnavailable) and not may_lose:
                raise
            self._signals.count("key_missing")
            return None
        except (DecryptError, FormatError, codec.CodecError):
            self._signals.count("corrupt_on_move")
            return None
        return payload_draft(entry, codec_id, payload, target.vault)

    def _for_target(
        self, entry: BlockEntry, codec_id: int, encoded: memoryview, target: DiskTier
    ) -> tuple[int, Sequence[Buffer]]:
        """A payload in the target's codec. Raises :class:`CodecError`."""
        if codec.CODEC_IDS[target.setup.codec] == codec_id:
            return codec_id, [encoded]
        raw = memoryview(bytearray(entry.nbytes))
        codec.decode_into(codec_id, encoded, [raw])
        return codec.encode(target.setup.codec, [raw])

    def is_valid(self, draft: tuple[int, Draft], source: DiskTier, target: DiskTier) -> bool:
        """Whether a move still makes sense after room was made for it, which may have evicted the block itself (it
        must not come back: who asked meanwhile was told that it is gone) or the content it was to refer to."""
        block_id, (head, _) = draft
        with self._index.read() as view:
            entry = view.block(block_id)
            if entry is None or entry.tier_no != source.tier_no:
                return False
            return head.kind is RecordKind.BLOCK or view.content(target.tier_no, head.content_id) is not None


def extent_of(content: ContentEntry, content_id: bytes) -> Extent:
    """Where a content entry says that its payload is."""
    return Extent(content.segment_no, content.offset, content.head_len, content.stored_len, content_id)
