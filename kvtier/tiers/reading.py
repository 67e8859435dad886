"""Finding blocks through the index and reading them from disk, whatever moves meanwhile.

A reader takes no lock against the background worker. If what it read fails a check, it looks the block up
again: moved or gone meanwhile is a retry or a miss; still in the same place is damage, which is reported
once and never served. What did not pass in a caller's memory is first read into memory of our own.

Threads: all of it may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from kvtier import codec
from kvtier.blocks import MissReason
from kvtier.buffers import copy_across, split
from kvtier.clock import StoreTime
from kvtier.errors import bare
from kvtier.events import Signals
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.index.schema import BlockEntry, ContentEntry
from kvtier.segment.format import FormatError, RecordHead, align_up
from kvtier.segment.reader import Extent, Fetched
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.drafts import plain_codec
from kvtier.tiers.ram import RamBlock
from kvtier.vault import DecryptError, KeyMissing

_TRIES = 4
_NOTHING = memoryview(b"")
_DOUBTS = (FormatError, OSError, codec.CodecError, DecryptError)


class Wanted(NamedTuple):
    """A block by its id, and by the name that must be confirmed: on disk it is called ``name``."""

    block_id: int
    namespace: bytes
    key: bytes
    name: bytes


class Located(NamedTuple):
    """A block and where the index says its bytes are."""

    wanted: Wanted
    entry: BlockEntry
    content: ContentEntry
    tier: DiskTier

    @property
    def extent(self) -> Extent:
        c = self.content
        return Extent(c.segment_no, c.offset, c.head_len, c.stored_len, self.entry.content_id)

    @property
    def place(self) -> tuple[int, int, int]:
        return self.tier.tier_no, self.content.segment_no, self.content.offset

    @property
    def is_encoded(self) -> bool:
        """Whether the stored bytes are only decoded from; others become the block's own."""
        return plain_codec(self.content.codec) != codec.NONE


#: Where the caller wants a block: flat views, of its size together.
Targets = Sequence[memoryview]

#: A block that is where the caller wants it, as it was found, and its metadata.
ReadInto = tuple[Located, bytes]

#: Gives so many bytes of memory.
Memory = Callable[[int], memoryview]


class Raw(NamedTuple):
    """Blocks as they were read, unchecked; or why they were not. ``memory`` is for what they decode to."""

    batch: Sequence[Located]
    stored: list[memoryview]
    fetched: Fetched | OSError | FormatError
    memory: Memory | None = None


#: Told of damage: the block, and the reason. Must not block.
DamageListener = Callable[[Located, str], None]


class DiskReader:
    """Reads blocks from the disk tiers."""

    def __init__(
        self,
        index: LmdbIndex,
        tiers: Sequence[DiskTier],
        signals: Signals,
        on_damage: DamageListener,
        passing: StoreTime,
        memory: Memory,
        brief_memory: Memory,
    ) -> None:
        """``passing``: the time by which blocks expire. ``memory``: where blocks go that a reader keeps; stored bytes
        that are only decoded from go to ``brief_memory``."""
        self._memory = memory
        self._brief_memory = brief_memory
        self._time = passing
        self._index = index
        self._tiers = {t.tier_no: t for t in tiers}
        self._signals = signals
        self._on_damage = on_damage
        self._stale: set[int] = set()

    # -- finding ------------------------------------------------------------------------------------

    def locate(self, wanted: Sequence[Wanted]) -> list[Located | MissReason]:
        """Where the blocks are now, from one consistent view of the index."""
        try:
            with self._index.read() as view:
                return [self._locate(view, w) for w in wanted]
        except OSError:
            self._signals.count("index_errors")
            return [MissReason.UNAVAILABLE] * len(wanted)

    def _locate(self, view: View, wanted: Wanted) -> Located | MissReason:
        entry = view.block(wanted.block_id)
        if entry is None:
            return MissReason.CORRUPT if view.is_damaged(wanted.block_id) else MissReason.ABSENT
        if entry.key != wanted.name or entry.namespace != wanted.namespace:
            return MissReason.ABSENT
        if entry.expires_at and self._time.now() >= entry.expires_at:
            return MissReason.ABSENT
        tier = self._tiers.get(entry.tier_no)
        if tier is None or wanted.block_id in self._stale:
            return MissReason.UNAVAILABLE
        content = view.content(entry.tier_no, entry.content_id)
        if content is None:
            return MissReason.CORRUPT
        if (content.segment_no, content.offset) in tier.condemned:
            return MissReason.CORRUPT
        return Located(wanted, entry, content, tier)

    def has_expired(self, wanted: Wanted) -> bool:
        """Whether a block that is absent is there, but its time is up. :class:`OSError` as reading the index does."""
        with self._index.read() as view:
            entry = view.block(wanted.block_id)
        is_it = entry is not None and (entry.key, entry.namespace) == (wanted.name, wanted.namespace)
        return entry is not None and is_it and 0 < entry.expires_at <= self._time.now()

    # -- doubts -------------------------------------------------------------------------------------

    def set_stale(self, block_ids: Sequence[int], stale: bool) -> None:
        """Blocks whose newer value was lost before it was durable: the older one must not come back."""
        if stale:
            self._stale.update(block_ids)
        else:
            self._stale.difference_update(block_ids)

    # -- reading ------------------------------------------------------------------------------------

    def fetch(self, batch: Sequence[Located], memory: Memory | None = None) -> Raw:
        """Read blocks that stand in one segment, in offset order, with one read call; :meth:`blocks` checks them.

        ``memory`` gives the bytes for all of them, which then stay as they lie on disk, and once more for what they
        decode to; without it each block gets its own.
        """
        tier, extents = batch[0].tier, [b.extent for b in batch]
        span_memory = self._brief_memory if memory is None and all(b.is_encoded for b in batch) else memory
        try:
            for block in batch:
                block.tier.check_lengths(block.extent, block.entry.nbytes)
            if span_memory is not None:
                fetched, stored = tier.fetch_span(extents, span_memory)
            else:
                stored = [self._memory_for(block) for block in batch]
                fetched = tier.fetch([(extent, [s]) for extent, s in zip(extents, stored, strict=True)])
        except (OSError, FormatError) as e:
            return Raw(batch, [], bare(e))
        return Raw(batch, stored, fetched, memory and _shared(memory, batch))

    def blocks(self, raw: Raw, some: slice = slice(None)) -> list[RamBlock | MissReason]:
        """What was read, checked and decoded; what does not pass is looked up again. ``some``: of the batch, so that
        several threads can share one."""
        batch, fetched = raw.batch[some], raw.fetched
        if isinstance(fetched, Exception):
            if len(raw.batch) > 1:  # one bad sector must not cost its neighbours
                return [self.read_one(b) for b in batch]
            return [self._block(b, _NOTHING, fetched, _TRIES) for b in batch]
        heads = raw.batch[0].tier.check(Fetched(fetched.wanted[some], fetched.heads[some], fetched.end))
        memory = raw.memory
        return [self._block(b, s, h, _TRIES, memory) for b, s, h in zip(batch, raw.stored[some], heads, strict=True)]

    def read_one(self, located: Located, tries: int = _TRIES) -> RamBlock | MissReason:
        """Read one block."""
        try:
            located.tier.check_lengths(located.extent, located.entry.nbytes)
            stored = self._memory_for(located)
        except (OSError, FormatError) as e:
            return self._block(located, _NOTHING, bare(e), tries)
        return self._block(located, stored, self._try(located, stored), tries)

    def _memory_for(self, located: Located) -> memoryview:
        """For a block as it is stored."""
        memory = self._brief_memory if located.is_encoded else self._memory
        return memory(located.content.stored_len)

    def read_run_into(self, run: Sequence[Located], targets: Sequence[Targets]) -> list[ReadInto | MissReason]:
        """Read blocks that stand in one segment, in offset order, each into the caller's views, whose sizes sum to the
        block's.

        As many as are stored as they are, or as are not, come with one read call: the former straight to where they are
        wanted. What does not pass is read again by itself.
        """
        reads: list[ReadInto | MissReason] = []
        for is_raw, group in groupby(zip(run, targets, strict=True), lambda pair: _is_raw(pair[0])):
            reads += self._read_into(list(group), is_raw=is_raw)
        return reads

    def _read_into(self, run: Sequence[tuple[Located, Targets]], *, is_raw: bool) -> list[ReadInto | MissReason]:
        tier = run[0][0].tier
        stored: Sequence[memoryview | None] = [None] * len(run)
        try:
            for block, _ in run:
                tier.check_lengths(block.extent, block.entry.nbytes)
            if is_raw:
                fetched = tier.fetch([(block.extent, into) for block, into in run])
            else:
                fetched, stored = tier.fetch_span([block.extent for block, _ in run], self._brief_memory)
        except (OSError, FormatError):
            return [self._read_across(block, into) for block, into in run]
        heads = tier.check(fetched)
        return [self._filled(block, h, s, into) for (block, into), h, s in zip(run, heads, stored, strict=True)]

    def _filled(
        self, located: Located, head: RecordHead | FormatError, stored: memoryview | None, targets: Targets
    ) -> ReadInto | MissReason:
        """A block once it is where it is wanted: decoded from what is ``stored``, if it is not there already."""
        if isinstance(head, FormatError):
            return self._read_across(located, targets)
        try:
            _check_codec(located, head)
            if stored is not None:
                encoded = located.tier.decrypt(head, located.extent, stored)
                codec.decode_into(plain_codec(head.codec), encoded, targets)
            meta = located.tier.vault.decrypt_meta(located.entry)
        except KeyMissing:
            return self._no_key()
        except _DOUBTS:
            return self._read_across(located, targets)
        self._count(located)
        return located, meta

    def _read_across(self, located: Located, targets: Targets) -> ReadInto | MissReason:
        """Read a block through memory of our own: what the caller does to the targets meanwhile condemns no block."""
        block = self.read_one(located)
        if isinstance(block, MissReason):
            return block
        if block.nbytes != located.entry.nbytes:
            return MissReason.ABSENT
        copy_across(block.buffers, targets)
        return located, block.meta

    def _try(self, located: Located, stored: memoryview) -> RecordHead | FormatError | OSError:
        try:
            return located.tier.check(located.tier.fetch([(located.extent, [stored])]))[0]
        except OSError as e:
            return bare(e)

    def _block(
        self,
        located: Located,
        stored: memoryview,
        head: RecordHead | FormatError | OSError,
        tries: int,
        memory: Memory | None = None,
    ) -> RamBlock | MissReason:
        problem: Exception | None = None if isinstance(head, RecordHead) else head
        if isinstance(head, RecordHead):
            try:
                block = self._decoded(located, head, stored, memory or self._memory)
            except KeyMissing:
                return self._no_key()
            except _DOUBTS as e:
                problem = bare(e)
            else:
                self._count(located)
                return block
        assert problem is not None
        again = self._again(located, problem)
        if isinstance(again, MissReason):
            return again
        return self.read_one(again, tries - 1) if tries > 1 else MissReason.ABSENT

    def _decoded(self, located: Located, head: RecordHead, stored: memoryview, memory: Memory) -> RamBlock:
        """Raises one of the ``_DOUBTS``, or :class:`KeyMissing`."""
        _check_codec(located, head)
        meta = located.tier.vault.decrypt_meta(located.entry)
        value = located.tier.decrypt(head, located.extent, stored)
        if (codec_id := plain_codec(head.codec)) != codec.NONE:
            encoded, value = value, memory(located.entry.nbytes)
            codec.decode_into(codec_id, encoded, [value])
        if value.nbytes != located.entry.nbytes:
            raise codec.CodecError("the content has another length than the block")
        return RamBlock(
            located.wanted.namespace,
            located.wanted.key,
            located.entry.parent_id,
            meta,
            split(value.toreadonly(), located.entry.lengths),
            located.entry.expires_at,
        )

    def _again(self, located: Located, problem: Exception) -> Located | MissReason:
        """After a failed read: where the block is now, if that is elsewhere; else what kind of miss it is."""
        now = self.locate([located.wanted])[0]
        if isinstance(now, MissReason) or now.place != located.place:
            return now
        lost = isinstance(problem, FileNotFoundError) and located.tier.is_there()
        if isinstance(problem, OSError) and not lost:
            self._signals.count("read_errors")
            located.tier.health.last_error = str(problem)
            located.tier.doubt(located.place[1:], condemn=False)
            return MissReason.UNAVAILABLE
        located.tier.doubt(located.place[1:], condemn=True)
        self._on_damage(located, str(problem))
        return MissReason.CORRUPT

    def _no_key(self) -> MissReason:
        self._signals.count("key_missing")
        return MissReason.UNAVAILABLE

    def _count(self, located: Located) -> None:
        self._signals.count(f"bytes_read:{located.tier.name}", located.content.head_len + located.content.stored_len)


def _check_codec(located: Located, head: RecordHead) -> None:
    if head.codec != located.content.codec:
        raise FormatError("the record has another codec")


def _shared(memory: Memory, batch: Sequence[Located]) -> Memory:
    """Gives each block of a batch that has to be decoded its part of one piece of ``memory``, taken with the first."""
    lock = threading.Lock()
    left = _NOTHING

    def part(nbytes: int) -> memoryview:
        nonlocal left
        with lock:
            if left.nbytes < nbytes:
                left = memory(sum(align_up(b.entry.nbytes) for b in batch if b.is_encoded))
            mine, left = left[:nbytes], left[align_up(nbytes) :]
            return mine

    return part


def _is_raw(located: Located) -> bool:
    """Whether the bytes on disk are those of the block."""
    return located.content.codec == codec.NONE and not located.tier.vault.flag
