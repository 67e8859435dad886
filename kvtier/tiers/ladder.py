"""The ladder of disk tiers: writing at the top, demotion down, promotion up, eviction at the bottom.

Every change follows one order: append to a segment, make it durable, commit the index, and only then mark
what died. So the index never names bytes that are not durable, and bytes are given up only when it no
longer names them.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise

from kvtier import codec
from kvtier.blocks import Buffer
from kvtier.events import BlockQuarantined, Signals
from kvtier.index.lmdb_index import IndexFull, LmdbIndex, View
from kvtier.index.schema import BlockEntry, NamespaceEntry, Reason
from kvtier.segment.format import RecordKind
from kvtier.segment.writer import Draft, Written
from kvtier.tiers.census import read_census
from kvtier.tiers.chains import known, orphans
from kvtier.tiers.copier import Copier
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.drafts import Group, NewBlock, head_of, payload_draft
from kvtier.tiers.ledger import Ledger
from kvtier.tiers.order import holding
from kvtier.tiers.quotas import Quotas
from kvtier.vault import KeyMissing

Encoded = dict[bytes, tuple[int, list[Buffer]]]  # content id: codec and stored payload
Place = tuple[int, int]  # segment number, offset

_VICTIMS_MAX = 64
_INDEX_SLACK_BYTES = 256 << 10
_INDEX_SLACK_BYTES_A_BLOCK = 512


class Suspended(OSError):
    """A tier refuses writes for a while, after an error that was reported when it happened."""


class NoRoom(Exception):
    """A tier cannot make room: everything in it is held, or the write is larger than its cap."""


class Ladder:
    """The disk tiers in the order of the configuration, over one index."""

    def __init__(
        self, index: LmdbIndex, tiers: Sequence[DiskTier], ledger: Ledger, quotas: Quotas, signals: Signals
    ) -> None:
        self._index = index
        self.tiers = list(tiers)
        self._by_no = {t.tier_no: t for t in tiers}
        self._signals = signals
        self._copier = Copier(index, signals)
        self.ledger = ledger
        self.quotas = quotas

    # -- facts --------------------------------------------------------------------------------------

    def used_bytes(self, tier: DiskTier) -> int:
        """What counts against the tier's cap: its segments, and for the first tier the index too."""
        return tier.disk_bytes + (self.index_bytes if tier is self.tiers[0] else 0)

    @property
    def index_bytes(self) -> int:
        """What the index occupies on disk; 0 while it cannot be read."""
        with suppress(OSError):
            return self._index.disk_bytes()
        return 0

    def known(self, block_ids: Collection[int]) -> list[int]:
        """Those of the blocks that are on some tier."""
        self._index.ensure_alive()
        return known(self._index, block_ids)

    def count_blocks(self) -> int:
        """Blocks on all disk tiers; 0 while the index cannot be read."""
        with suppress(OSError), self._index.read() as view:
            return view.count_blocks()
        return 0

    def namespaces(self, count_max: int) -> dict[bytes, NamespaceEntry] | None:
        """What the first namespaces have on all disk tiers; None if it is not known."""
        try:
            return read_census(self._index, count_max)
        except OSError:
            return None

    # -- writing ------------------------------------------------------------------------------------

    def write(self, puts: Sequence[NewBlock], deletes: Sequence[int]) -> None:
        """Make blocks durable in the first tier, and deletions durable, in one index commit.

        :class:`OSError` or :class:`NoRoom`: none of it happened.
        """
        self._index.ensure_alive()
        top = self.tiers[0]
        self._renounce_doubted(puts)
        encoded: Encoded = {}
        group = Group(puts, deletes)
        self._refuse(group, self.quotas.admit(puts, deletes, partial(self._check_health, top)), Reason.OVER_QUOTA)
        drafts, unchanged = self._plan(top, group.puts, encoded)
        while drafts and not self._fits(top, drafts):
            self._check_health(top)
            if idle := orphans(self._index, {b: d.head.parent_id for b, d in drafts}):  # they displace nothing
                self._refuse(group, idle, Reason.NOT_ADMITTED)
            else:
                self._make_room(top, drafts)
            drafts, unchanged = self._plan(top, group.puts, encoded)
        for block_id, reason in group.refused.items():  # only now: making room commits
            self._signals.count(reason.name.lower())
            self.ledger.note([block_id], reason, top)
        self.ledger.touch(unchanged)
        written = self._append(top, [d for _, d in drafts])
        if not (written or group.deletes):
            return
        self._commit(top, drafts, written, group.deletes)
        self._signals.count("blocks_written", sum(w.head.kind is RecordKind.BLOCK for w in written))

    def _refuse(self, group: Group, block_ids: set[int], reason: Reason) -> None:
        group.refuse(block_ids, self.known(block_ids), reason)

    def _renounce_doubted(self, puts: Sequence[NewBlock]) -> None:
        """What could not be read is written again, not taken for there: it leaves the index first."""
        if not any(t.doubted for t in self.tiers):
            return
        for put in puts:
            for tier in self.tiers:
                with self._index.read() as view:
                    content = view.content(tier.tier_no, put.content_id)
                if content is not None and (place := (content.segment_no, content.offset)) in tier.doubted:
                    self.quarantine(put.block_id, tier, put.content_id, place, "it could not be read")

    def _plan(
        self, tier: DiskTier, puts: Sequence[NewBlock], encoded: Encoded
    ) -> tuple[list[tuple[int, Draft]], list[int]]:
        """What has to be appended for ``puts``: payloads, references to contents that are there, or nothing."""
        drafts: list[tuple[int, Draft]] = []
        unchanged: list[int] = []
        new: set[bytes] = set()
        with self._index.read() as view:
            for put in puts:
                entry = view.block(put.block_id)
                if entry is not None and (entry.namespace, entry.key) != (put.namespace, put.key):
                    self._signals.count("id_collisions")
                elif entry is not None and put.is_at(entry) and self._is_readable(view, entry):
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

    def _is_readable(self, view: View, entry: BlockEntry) -> bool:
        return entry.tier_no in self._by_no and view.content(entry.tier_no, entry.content_id) is not None

    def _append(self, tier: DiskTier, drafts: Sequence[Draft]) -> list[Written]:
        if not drafts:
            return []
        self._check_health(tier)
        with self._writing(tier):
            return tier.append(drafts)

    @contextmanager
    def _writing(self, tier: DiskTier) -> Iterator[None]:
        """Inside, something is appended to the tier or committed. If that fails none of it happened, and an
        :class:`OSError` suspends the tier; one that was suspended and fails again is no news: :class:`Suspended`."""
        try:
            yield
        except Exception as e:
            is_news = tier.suspend(e) if isinstance(e, OSError) else True
            self._abandon(tier)
            if is_news:
                raise
            raise Suspended(f"tier {tier.name} still fails: {e}") from e

    def _check_health(self, tier: DiskTier) -> None:
        if tier.is_suspended():
            raise Suspended(f"tier {tier.name} is suspended after: {tier.health.last_error}")

    def _commit(
        self,
        tier: DiskTier,
        drafts: Sequence[tuple[int, Draft]],
        written: Sequence[Written],
        deletes: Sequence[int] = (),
    ) -> set[int]:
        """Let the index name what was appended, and no longer what is deleted; returns the blocks that arrived.

        If it fails, none of it happened: a later recovery finds no trace of what was appended.
        """
        shared = {r.head.content_id for r in written if r.head.kind is RecordKind.REFERENCE}
        with self._writing(tier), self.ledger.change() as change, change.holding(tier.tier_no, shared):
            for block_id in deletes:
                self.ledger.unlink(change, block_id, Reason.DELETED)
            pairs = zip(drafts, written, strict=True)
            arrived = {b for (b, _), record in pairs if self.ledger.link(change, tier, b, record)}
        if written:
            tier.recovered()
        return arrived

    def _abandon(self, tier: DiskTier) -> None:
        """Give up what was appended since the last commit: no index names it. Such segments are never appended to
        again (after a failed sync they may have lost what they claim to hold), and new ones go away."""
        for segment_no in tier.leave():
            if committed_len := tier.segments[segment_no].committed_len:
                tier.cut(segment_no, committed_len)
            else:
                tier.drop(segment_no)

    # -- room ---------------------------------------------------------------------------------------

    def _fits(self, tier: DiskTier, drafts: Sequence[tuple[int, Draft]]) -> bool:
        return self.used_bytes(tier) + self._need(tier, drafts) <= tier.setup.bytes_max

    def _need(self, tier: DiskTier, drafts: Sequence[tuple[int, Draft]]) -> int:
        """What appending and committing ``drafts`` may add to what the tier uses."""
        index = _INDEX_SLACK_BYTES + _INDEX_SLACK_BYTES_A_BLOCK * len(drafts) if tier is self.tiers[0] else 0
        return tier.space_for([d for _, d in drafts]) + index

    def _make_room(self, tier: DiskTier, drafts: Sequence[tuple[int, Draft]]) -> None:
        """Evict until ``drafts`` fit under the cap. :class:`NoRoom` if they cannot.

        The last tier, where to evict is to lose, keeps what they extend.
        """
        parents = {d.head.parent_id for _, d in drafts} if tier is self.tiers[-1] else set()
        with holding(tier.order.policy, parents):
            self._evict_for(tier, self._need(tier, drafts))

    def keep_caps(self) -> None:
        """Evict where a namespace is above its quota or a tier above its cap, as far as can be; nothing is lost because
        the tier below fails now."""
        caps = [partial(self._evict_for, tier, 0, may_lose=False) for tier in self.tiers]
        keepers: list[Callable[[], None]] = [self.quotas.keep, *caps]
        for keep in keepers:
            try:
                self._index.ensure_alive()
                keep()
            except (OSError, NoRoom, IndexFull):
                self._signals.count("caps_not_kept")

    def _evict_for(self, tier: DiskTier, need: int, *, may_lose: bool = True) -> None:
        """Evict until ``need`` bytes fit. :class:`NoRoom` if they cannot; nothing is, if they never could."""
        evict = self._evict if may_lose else partial(self._evict, may_lose=False)
        index = self.used_bytes(tier) - tier.disk_bytes  # its file never shrinks
        if index + need > tier.setup.bytes_max:
            raise NoRoom(f"tier {tier.name}: {need} bytes do not fit even when it is empty")
        while (over := self.used_bytes(tier) + need - tier.setup.bytes_max) > 0:
            self.ledger.load([t.order for t in self.tiers])  # anew, if a commit has failed meanwhile
            before = tier.disk_bytes
            try:
                victims = self._victims(tier, over)
                evict(tier, victims)
                freed = tier.disk_bytes < before or self._empty_a_segment(tier, evict)
            except BaseException:
                tier.order.reset()  # it has given away what stays
                raise
            if not (freed or victims or self._drop_dead_tail(tier)):
                raise NoRoom(f"tier {tier.name}: {over} bytes over its cap and nothing to evict")

    def _victims(self, tier: DiskTier, size: int) -> list[int]:
        victims: list[int] = []
        with self._index.read() as view:
            while size > 0 and len(victims) < _VICTIMS_MAX:
                block_id = tier.order.policy.pop()
                if block_id is None:
                    break
                entry = view.block(block_id)
                if entry is not None and entry.tier_no == tier.tier_no:
                    victims.append(block_id)
                    size -= entry.record_len
        return victims

    def _evict(self, tier: DiskTier, victims: Sequence[int], *, may_lose: bool = True) -> None:
        """Demote to the next tier down; what cannot go there, or was in the last one, is dropped: unless it is only
        that the tier below fails, and not ``may_lose``. :class:`Suspended`: then it stays."""
        below = self.tiers.index(tier) + 1
        left = list(reversed(victims))  # ancestors first: a chain stands in reading order below
        if below < len(self.tiers):
            moved = self._move(left, tier, self.tiers[below])
            self._signals.count("demotions", len(moved))
            left = [b for b in left if b not in moved]
            if left and not may_lose:
                self._check_health(self.tiers[below])
        if left:
            with self.ledger.change() as change:
                for block_id in left:
                    self.ledger.unlink(change, block_id, Reason.EVICTED)
            self._signals.count("evictions", len(left))

    def _empty_a_segment(self, tier: DiskTier, evict: Callable[[DiskTier, Sequence[int]], None]) -> bool:
        """Where holes cannot be punched: evict all that is left in the segment that the policy picks."""
        if tier.can_punch:
            return False
        with self._index.read() as view:
            pinned = self.ledger.pinned_segments(view, tier.tier_no)
            picked = tier.setup.compaction.pick([f for f in tier.sealed_facts() if f.segment_no not in pinned])
            if picked is None:
                return False
            residents = [b for b, e in view.blocks() if self._stands_in(view, e, tier.tier_no, picked)]
        for block_id in residents:
            tier.order.policy.remove(block_id)
        evict(tier, residents)
        return bool(residents)

    def _drop_dead_tail(self, tier: DiskTier) -> bool:
        """Give up the segment being appended to, if nothing in it is alive."""
        number = tier.active_no
        if number is None or tier.segments[number].live_bytes:
            return False
        tier.seal()
        with self.ledger.change() as change:
            change.live[tier.tier_no, number] += 0
        return True

    def _stands_in(self, view: View, entry: BlockEntry, tier_no: int, segment_no: int) -> bool:
        if entry.tier_no != tier_no:
            return False
        content = view.content(tier_no, entry.content_id)
        return entry.segment_no == segment_no or (content is not None and content.segment_no == segment_no)

    # -- moving -------------------------------------------------------------------------------------

    def promote(self, block_ids: Sequence[int]) -> None:
        """Move blocks one tier up, those that are below the first, as far as there can be room."""
        self._index.ensure_alive()
        by_tier: dict[int, list[int]] = {}
        with self._index.read() as view:
            for block_id in dict.fromkeys(block_ids):
                if (entry := view.block(block_id)) is not None:
                    by_tier.setdefault(entry.tier_no, []).append(block_id)
        for source, target in pairwise(reversed(self.tiers)):
            moved = self._move(by_tier.get(source.tier_no, []), source, target)
            self._signals.count("promotions", len(moved))

    def _move(self, block_ids: Sequence[int], source: DiskTier, target: DiskTier) -> set[int]:
        """Move blocks between tiers, in order, in bounded batches; returns those that arrived."""
        moved: set[int] = set()
        left = list(block_ids)
        try:
            while left:
                self._check_health(target)
                drafts, count = self._copier.copies(left, source, target)
                left = left[count:]
                if drafts and not self._fits(target, drafts):
                    self._make_room(target, drafts)
                    drafts = [d for d in drafts if self._copier.is_valid(d, source, target)]
                written = self._append(target, [d for _, d in drafts])
                moved |= self._commit(target, drafts, written)
        except (OSError, NoRoom) as e:
            self._signals.count("move_errors")
            source.health.last_error = str(e)
        except KeyMissing:  # it went away since the copy was made
            self._signals.count("key_missing")
        return moved

    def rewrite(self, blocks: Sequence[NewBlock], tier: DiskTier) -> None:
        """Write blocks of a tier anew, in that tier. :class:`OSError` or :class:`NoRoom`: none was."""
        drafts = self._plan_known(tier, blocks)
        if drafts and not self._fits(tier, drafts):
            self._make_room(tier, drafts)
            drafts = self._plan_known(tier, blocks)
        self._commit(tier, drafts, self._append(tier, [d for _, d in drafts]))

    def _plan_known(self, tier: DiskTier, blocks: Sequence[NewBlock]) -> list[tuple[int, Draft]]:
        """What has to be appended for those that are still there: what was evicted must not come back."""
        known = set(self.known([b.block_id for b in blocks]))
        return self._plan(tier, [b for b in blocks if b.block_id in known], {})[0]

    # -- forgetting ---------------------------------------------------------------------------------

    def quarantine(self, block_id: int, tier: DiskTier, content_id: bytes, place: Place, reason: str) -> None:
        """Forget the content that stands at ``place`` and cannot be trusted, and every block that needs it."""
        self._index.ensure_alive()
        with self._index.read() as view:
            content = view.content(tier.tier_no, content_id)
        if content is None or (content.segment_no, content.offset) != place:
            return  # it has been replaced meanwhile
        with self.ledger.change() as change:
            for gone in change.quarantine(block_id, tier.tier_no, content_id).items():
                self.ledger.forget(*gone)
        self._signals.count("quarantined")
        self._signals.emit(BlockQuarantined(tier.name, *place, reason))

    def save_touches(self) -> None:
        """Make recency durable, when no other commit will."""
        while self.ledger.touches_waiting:
            with self.ledger.change():
                pass
