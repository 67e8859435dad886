"""The ladder of disk tiers: writing at the top, demotion down, promotion up, eviction at the bottom.

Every change follows one order: append to a segment, make it durable, commit the index, and only then mark
what died. So the index never names bytes that are not durable, and bytes are given up only when it no
longer names them.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

from kvtier.events import BlockQuarantined, Signals
from kvtier.index.lmdb_index import IndexFull, LmdbIndex
from kvtier.index.schema import Reason
from kvtier.segment.format import RecordKind
from kvtier.segment.writer import Draft, Written
from kvtier.tiers.admission import Admission, InRam
from kvtier.tiers.chains import by_chain, orphans
from kvtier.tiers.compactor import Compactor
from kvtier.tiers.copier import Copier
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.drafts import Group, NewBlock
from kvtier.tiers.giving_way import over_cap
from kvtier.tiers.holdings import Holdings
from kvtier.tiers.ledger import Ledger
from kvtier.tiers.limits import BLOCK_OVERHEAD_BYTES
from kvtier.tiers.planner import Encoded, Planner
from kvtier.tiers.quotas import Quotas
from kvtier.tiers.room import NoRoom
from kvtier.tiers.sparse import BlockNamer
from kvtier.vault import KeyMissing, KeyUnavailable

Place = tuple[int, int]  # segment number, offset

_VICTIMS_MAX = 64  # what more of them would add to the index, in one commit, the slack does not cover
_DEMOTED_BYTES, _DEMOTED_MAX = 64 << 20, 256
_INDEX_SLACK_BYTES = 256 << 10
_INDEX_SLACK_BYTES_A_BLOCK = 512


class Suspended(OSError):
    """A tier refuses writes for a while, after an error that was reported when it happened."""


class Ladder(Holdings):
    """The disk tiers in the order of the configuration, over one index."""

    def __init__(
        self,
        index: LmdbIndex,
        tiers: Sequence[DiskTier],
        ledger: Ledger,
        quotas: Quotas,
        signals: Signals,
        block_id: BlockNamer,
    ) -> None:
        super().__init__(index, tiers)
        self._by_no = {t.tier_no: t for t in tiers}
        self._signals = signals
        self._copier = Copier(index, signals)
        self._planner = Planner(index, self._by_no, signals)
        self._admission = Admission(index)
        self.ledger = ledger
        self.quotas = quotas
        self.compactor = Compactor(index, ledger, self._copier, self, block_id, signals)

    # -- writing ------------------------------------------------------------------------------------

    def write(self, puts: Sequence[NewBlock], deletes: Sequence[int], in_ram: InRam = lambda block_id: None) -> Group:
        """Make blocks durable in the first tier, and deletions durable, in one index commit; what became of them.

        ``in_ram`` gives blocks that were refused before, if they can still be had: what a block needs that is taken in.
        :class:`OSError` or :class:`NoRoom`: none of it happened.
        """
        self._index.ensure_alive()
        top = self.tiers[0]
        self._renounce_doubted(puts)
        encoded: Encoded = {}
        group = Group(puts, deletes)
        self._admit(top, group, in_ram)
        over = self.quotas.admit(group.puts, group.deletes, partial(self._check_health, top))
        self._refuse(group, over, Reason.OVER_QUOTA)
        drafts, unchanged = self._planner.plan(top, group.puts, encoded)
        while drafts and not self._fits(top, drafts):
            self._check_health(top)
            if idle := orphans(self._index, {b: d.head.parent_id for b, d in drafts}):  # they displace nothing
                self._refuse(group, idle, Reason.NOT_ADMITTED)
            else:
                self._make_room(top, drafts)
            drafts, unchanged = self._planner.plan(top, group.puts, encoded)
        for block_id, reason in group.refused.items():  # only now: making room commits
            self._signals.count(reason.name.lower())
            self.ledger.note([block_id], reason, top)
        self.ledger.touch(unchanged)
        renewed = self._planner.renewed(group.puts, unchanged)
        written = self._append(top, [d for _, d in drafts])
        self.ledger.renew(renewed)  # last: it is for the next commit, whatever that is
        if written or group.deletes or renewed or top.has_left:
            self._commit(top, drafts, written, group.deletes)
            self._signals.count("blocks_written", sum(w.head.kind is RecordKind.BLOCK for w in written))
        return group

    def _admit(self, top: DiskTier, group: Group, in_ram: InRam) -> None:
        """Leave out what the tier's policy refuses, and add what the others need."""
        puts, refused, group.pulled = self._admission.at_put(top.gate, group.puts, in_ram, BLOCK_OVERHEAD_BYTES)
        self._refuse(group, refused, Reason.NOT_ADMITTED)
        group.puts, group.put_off = puts, refused

    def _refuse(self, group: Group, block_ids: set[int], reason: Reason) -> None:
        if block_ids:
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
        keep: Iterable[tuple[int, int]] = (),
    ) -> set[int]:
        """Let the index name what was appended, and no longer what is deleted; returns the blocks that arrived.

        Of the segments (tier, number) to ``keep`` none is removed.

        If it fails, none of it happened: a later recovery finds no trace of what was appended.
        """
        shared = {r.head.content_id for r in written if r.head.kind is RecordKind.REFERENCE}
        with self._writing(tier), self.ledger.change() as change, change.holding(tier.tier_no, shared):
            change.keep.update(keep)
            for block_id in deletes:
                self.ledger.unlink(change, block_id, Reason.DELETED)
            pairs = zip(drafts, written, strict=True)
            linked = {b: record.head for (b, _), record in pairs if self.ledger.link(change, tier, b, record)}
        if written:
            tier.recovered()
        saved = [head.raw_len for head in linked.values() if head.kind is RecordKind.REFERENCE]
        self._signals.count("dedup_blocks", len(saved))
        self._signals.count("dedup_bytes", sum(saved))
        return set(linked)

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
        used, need = self.used_bytes(tier), self._need(tier, drafts) + self.compactor.reserve_bytes(tier)
        return used + need <= tier.room.look(used, need)

    def _need(self, tier: DiskTier, drafts: Sequence[tuple[int, Draft]]) -> int:
        """What appending and committing ``drafts`` may add to what the tier uses."""
        return tier.space_for([d for _, d in drafts]) + self._index_slack(tier, len(drafts))

    def _index_slack(self, tier: DiskTier, blocks: int) -> int:
        return _INDEX_SLACK_BYTES + _INDEX_SLACK_BYTES_A_BLOCK * blocks if tier is self.tiers[0] else 0

    def spare_bytes(self, tier: DiskTier, blocks: int) -> int:
        """How much may be appended to a tier below its cap, as records of so many blocks."""
        used, slack = self.used_bytes(tier), self._index_slack(tier, blocks)
        return tier.room.look(used, slack) - used - slack

    def _make_room(self, tier: DiskTier, drafts: Sequence[tuple[int, Draft]]) -> None:
        """Evict until ``drafts`` fit under the cap. :class:`NoRoom` if they cannot.

        The last tier, where to evict is to lose, keeps what they extend.
        """
        parents = {d.head.parent_id for _, d in drafts} if tier is self.tiers[-1] else set()
        with tier.order.holding(parents):
            self.evict_for(tier, self._need(tier, drafts) + self.compactor.reserve_bytes(tier))

    def keep_caps(self) -> None:
        """Evict where a namespace is above its quota or a tier above its cap, as far as can be; nothing is lost because
        the tier below fails now."""
        caps = [partial(self.evict_for, tier, 0, may_lose=False) for tier in self.tiers]
        keepers: list[Callable[[], None]] = [self.quotas.keep, *caps]
        for keep in keepers:
            try:
                self._index.ensure_alive()
                keep()
            except (OSError, NoRoom, IndexFull):
                self._signals.count("caps_not_kept")

    def evict_for(self, tier: DiskTier, need: int, *, may_lose: bool = True) -> None:
        """Evict until ``need`` bytes fit. :class:`NoRoom` if they cannot; nothing is, if they never could."""
        evict = self._evict if may_lose else partial(self._evict, may_lose=False)
        if over_cap(self, tier, need, may_lose=may_lose) > tier.disk_bytes:  # the index never shrinks
            raise tier.room.refusal(f"tier {tier.name}: {need} bytes do not fit even when it is empty")
        while (over := over_cap(self, tier, need, may_lose=may_lose)) > 0:
            if self.compactor.make_room(tier):
                continue
            if not may_lose:
                self._check_below(tier)
            self.ledger.load([t.order for t in self.tiers])  # anew, if a commit has failed meanwhile
            before = tier.disk_bytes
            try:
                victims = self._victims(tier, max(over, self._demoted_at_once(tier)))
                evict(tier, victims)
                freed = tier.disk_bytes < before or self.compactor.make_room(tier)
                freed = freed or self._empty_a_segment(tier, evict)
            except BaseException:
                tier.order.reset()  # it has given away what stays
                raise
            if tier.order.is_loaded and not (
                freed or victims or self._drop_dead_tail(tier) or self.ledger.guards.let_go()
            ):
                raise tier.room.refusal(f"tier {tier.name}: {over} bytes over its cap and nothing to evict")

    def _check_below(self, tier: DiskTier) -> None:
        for below in self.tiers[self.tiers.index(tier) + 1 :][:1]:
            self._check_health(below)

    def _demoted_at_once(self, tier: DiskTier) -> int:
        """At least so many bytes, or 256 blocks, go down to a hard disk together, so that most chains arrive in one
        piece."""
        below = self.tiers[self.tiers.index(tier) + 1 :]
        return min(_DEMOTED_BYTES, tier.setup.bytes_max // 8) if below and below[0].habits.one_at_a_time else 0

    def _victims(self, tier: DiskTier, size: int) -> list[int]:
        victims: list[int] = []
        count_max = _DEMOTED_MAX if self._demoted_at_once(tier) else _VICTIMS_MAX
        with self._index.read() as view:
            while size > 0 and len(victims) < count_max:
                block_id = tier.order.policy.pop()
                if block_id is None:
                    break
                entry = view.block(block_id)
                if entry is None or entry.tier_no != tier.tier_no or block_id in victims:
                    tier.order.fail(f"it gave block {block_id:#x}, which is not in the tier")
                else:
                    victims.append(block_id)
                    size -= entry.record_len
        return victims

    def _evict(self, tier: DiskTier, victims: Sequence[int], *, may_lose: bool = True) -> None:
        """Demote to the next tier down; what cannot go there, or was in the last one, is dropped: unless it is only
        that the tier below fails, and not ``may_lose``. :class:`Suspended`: then it stays."""
        below = self.tiers.index(tier) + 1
        left = list(reversed(victims))  # ancestors first: a chain stands in reading order below
        if below < len(self.tiers):
            left = by_chain(self._index, left) if self.tiers[below].setup.kind == "hdd" else left
            wanted = self._admission.at_move(self.tiers[below].gate, left, is_hit=False)
            if len(wanted) < len(left):
                self._signals.count("not_admitted", len(left) - len(wanted))
            moved = self._move(wanted, tier, self.tiers[below], may_lose=may_lose)
            self._signals.count("demotions", len(moved))
            left = [b for b in left if b not in moved]
            if left and not may_lose:
                self._check_below(tier)
        if left:
            with self.ledger.change() as change:
                for block_id in left:
                    self.ledger.unlink(change, block_id, Reason.EVICTED)
            self._signals.count("evictions", len(left))

    def _empty_a_segment(self, tier: DiskTier, evict: Callable[[DiskTier, Sequence[int]], None]) -> bool:
        """Where holes cannot be punched: evict all that is left in the segment that the policy picks."""
        residents = [] if tier.can_punch else self.compactor.residents(tier)
        for block_id in residents:
            tier.order.policy.remove(block_id)
        if residents:
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
            wanted = self._admission.at_move(target.gate, by_tier.get(source.tier_no, []), is_hit=True)
            moved = self._move(wanted, source, target)
            self._signals.count("promotions", len(moved))

    def _move(self, block_ids: Sequence[int], source: DiskTier, target: DiskTier, *, may_lose: bool = True) -> set[int]:
        """Move blocks between tiers, in order, in bounded batches; returns those that arrived. :class:`Suspended` if
        others are not to be lost only because their keys cannot be had now."""
        moved: set[int] = set()
        left = list(block_ids)
        try:
            while left:
                self._check_health(target)
                drafts, count = self._copier.copies(left, source, target, may_lose=may_lose)
                left = left[count:]
                if drafts and not self._fits(target, drafts):
                    self._make_room(target, drafts)
                    drafts = [d for d in drafts if self._copier.is_valid(d, source, target)]
                written = self._append(target, [d for _, d in drafts])
                moved |= self._commit(target, drafts, written)
        except (OSError, NoRoom) as e:
            self._signals.count("move_errors")
            source.health.last_error = str(e)
        except KeyMissing as e:
            self._signals.count("key_missing")
            if isinstance(e, KeyUnavailable) and not may_lose:
                raise Suspended(str(e)) from e
        return moved

    def write_copies(self, tier: DiskTier, drafts: Sequence[tuple[int, Draft]]) -> None:
        """Append copies of blocks of the tier, and let the index name them; none of its segments is removed. Raises as
        any write does."""
        written = self._append(tier, [d for _, d in drafts])
        self._commit(tier, drafts, written, keep=[(tier.tier_no, n) for n in tier.segments])

    def rewrite(self, blocks: Sequence[NewBlock], tier: DiskTier) -> None:
        """Write blocks of a tier anew, in that tier. :class:`OSError` or :class:`NoRoom`: none was."""
        drafts = self._planner.plan_known(tier, blocks)
        if drafts and not self._fits(tier, drafts):
            self._make_room(tier, drafts)
            drafts = self._planner.plan_known(tier, blocks)
        self._commit(tier, drafts, self._append(tier, [d for _, d in drafts]))

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
        """Make recency durable, and that what was given up is, when no other commit will."""
        try:
            while self.ledger.touches_waiting or self.tiers[0].has_left:
                with self.ledger.change():
                    pass
        except (OSError, IndexFull):
            self._signals.count("index_errors")
