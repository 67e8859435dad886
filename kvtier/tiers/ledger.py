"""The ledger: one index commit at a time, and what must follow it on disk and in the policies.

Threads: the store's background worker only, except :meth:`Ledger.touch` and :meth:`Ledger.departure`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kvtier.clock import Clock, StoreTime
from kvtier.events import Signals
from kvtier.index.lmdb_index import LmdbIndex, View, WriteTxn
from kvtier.index.schema import DEPARTURES_MAX, BlockEntry, Departure, Reason, departure_rows
from kvtier.policy.base import Hint
from kvtier.segment.writer import Written
from kvtier.tiers.advice import Advice
from kvtier.tiers.catalog import Change
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.guards import Guards
from kvtier.tiers.limits import NamespaceOrders
from kvtier.tiers.order import Order

_TOUCHES_MAX = 1 << 16
_TOUCHES_A_COMMIT_MAX = 1 << 12  # each rewrites a page of the index
_DEPARTURES_SHARE = 64  # of the first tier's cap, against which the index counts
_SECONDS_MAX = (1 << 32) - 1


class Ledger:
    """Commits changes of the index, keeps the logical clock, and tells tiers and policies what became of them."""

    def __init__(
        self, index: LmdbIndex, tiers: Sequence[DiskTier], namespaces: NamespaceOrders, signals: Signals, clock: Clock
    ) -> None:
        self._index = index
        self._wall = clock
        self._tiers = {t.tier_no: t for t in tiers}
        self._orders: list[Order] = [*(t.order for t in tiers), namespaces]
        self._lower_gates = [(t.tier_no, t.gate) for t in tiers[1:] if not t.gate.is_open]
        self._signals = signals
        self._touched: deque[int] = deque(maxlen=_TOUCHES_MAX)
        self._held: Counter[tuple[bytes, int]] = Counter()
        self.guards = Guards(self._hold, signals)
        self.changes = 0  # commits, and pins that ended: without any, who found nothing to do need not look again
        self.advice = Advice()
        self._noted: dict[int, Departure] = {}
        self._departure_rows = departure_rows(tiers[0].setup.bytes_max // _DEPARTURES_SHARE if tiers else 0)
        self._clock, self._seq, last = _counters(index)
        self.time = StoreTime(clock, last)
        self._renewed: dict[int, int] = {}
        _resume_budgets(index, tiers)

    @property
    def last_seq(self) -> int:
        """The highest sequence number that a commit has covered."""
        return self._seq

    # -- recency and pins ---------------------------------------------------------------------------

    def touch(self, block_ids: Sequence[int]) -> None:
        """Note that a chain was used, its end first, so that its start stays longest. Any thread."""
        self._touched.extend(reversed(block_ids))

    @property
    def touches_waiting(self) -> int:
        return len(self._touched)

    def hold(self, namespace: bytes, block_ids: Sequence[int], by: int) -> None:
        """Protect blocks from eviction (``by`` = 1) or take that back (-1), on every tier."""
        self.changes += by < 0
        self._hold(namespace, block_ids, by)

    def _hold(self, namespace: bytes, block_ids: Sequence[int], by: int) -> None:
        for block_id in block_ids:
            self._held[namespace, block_id] += by
            if not self._held[namespace, block_id]:
                del self._held[namespace, block_id]
            for order in self._loaded():
                (order.hold if by > 0 else order.release)(namespace, block_id)

    def hint(self, namespace: bytes, block_ids: Sequence[int], hint: Hint) -> None:
        """Advise the policies of all tiers on blocks, on whichever they are."""
        self.advice.take(namespace, block_ids, hint)
        for order in self._loaded():
            for block_id in block_ids:
                order.hint(namespace, block_id, hint)

    def _loaded(self) -> list[Order]:
        return [order for order in self._orders if order.is_loaded]

    def pinned_segments(self, view: View, tier_no: int) -> set[int]:
        """Segments of a tier that protected blocks or their ancestors need."""
        found: set[int] = set()
        seen: set[int] = set()
        for _, block_id in self._held:
            while block_id not in seen and (entry := view.block(block_id)) is not None:
                seen.add(block_id)
                content = view.content(entry.tier_no, entry.content_id)
                if entry.tier_no == tier_no:
                    found |= {entry.segment_no, content.segment_no if content else entry.segment_no}
                block_id = entry.parent_id
        return found

    def load(self, orders: Iterable[Order]) -> None:
        """Tell those that are not loaded what the index holds; put off until it is needed, so that opening is quick."""
        while fresh := [order for order in orders if not order.is_loaded]:
            for order in fresh:
                order.reset()
                order.is_loaded = True  # until its policy fails
            try:
                self._tell(fresh)
            except BaseException:
                for order in fresh:
                    order.reset()
                raise

    def _tell(self, orders: Iterable[Order]) -> None:
        with self._index.read() as view:
            for block_id, entry in view.blocks():
                for order in orders:
                    order.arrive(block_id, entry)
        for order in orders:
            for held in self._held.elements():
                if order.is_loaded:
                    order.hold(*held)
            for advised in self.advice:
                order.hint(*advised)

    # -- what became of blocks ----------------------------------------------------------------------

    def note(self, block_ids: Iterable[int], reason: Reason, tier: DiskTier) -> None:
        """Remember blocks that did not come in: in memory, and durably with the next commit, whatever that is for."""
        for block_id in block_ids:
            self._noted[block_id] = Departure(block_id, self._now(), reason, tier.tier_no)
        while len(self._noted) > DEPARTURES_MAX:
            del self._noted[next(iter(self._noted))]

    def departure(self, block_id: int) -> Departure | None:
        """The latest that is remembered of a block that is not there. Any thread; :class:`OSError` as reading does."""
        if noted := self._noted.get(block_id):  # first: it leaves here only after its commit
            return noted
        with self._index.read() as view:
            return view.departure(block_id)

    def _now(self) -> int:
        return min(max(0, int(self._wall.time())), _SECONDS_MAX)

    # -- commits ------------------------------------------------------------------------------------

    @contextmanager
    def change(self) -> Iterator[Change]:
        """One durable index commit. Segments appended to (durably) since the last one become covered by it.

        An exception rolls it back: then nothing changed, except that the policies are read anew when next needed.
        """
        tiers = self._tiers.values()
        active = {(t.tier_no, t.active_no) for t in tiers if t.active_no is not None}
        committed = {(t.tier_no, no): t.segments[no].length for t in tiers for no in t.uncommitted}
        try:
            with self._index.write() as txn:
                change = Change(txn, self._now())
                yield change
                self._apply_touches(change)
                self._renew(change)
                change.finish(committed, active)
                # What was noted of a block says more than that its older value had to go.
                txn.add_departures({**change.departures, **self._noted}.values(), self._departure_rows)
                self.save_counters(txn)
        except BaseException:
            self._renewed.clear()
            for order in self._orders:
                order.reset()
            raise
        self.changes += 1
        for tier in tiers:
            tier.uncommitted.clear()
            tier.has_left = False
        for (tier_no, segment_no), length in committed.items():
            self._tiers[tier_no].segments[segment_no].committed_len = length
        self._noted.clear()
        self._renewed.clear()
        self._follow(change)

    def link(self, change: Change, tier: DiskTier, block_id: int, record: Written) -> bool:
        """Let ``block_id`` mean a record just appended to ``tier``; False if it could not.

        A block that only moves keeps its recency.
        """
        was = change.txn.block(block_id)
        clock = was.clock if was is not None and was.seq == record.head.seq else self._tick()
        entry = change.link(block_id, tier.tier_no, clock, record)
        if entry is None:
            return False
        self._seq = max(self._seq, record.head.seq)
        if was is None or (was.seq, was.tier_no) != (entry.seq, entry.tier_no):  # else it is only elsewhere in its tier
            hint = self.advice.of(entry.namespace, block_id)
            for order in self._loaded():
                order.arrive(block_id, entry)
                if hint is not None:
                    order.hint(entry.namespace, block_id, hint)
        return True

    def unlink(self, change: Change, block_id: int, reason: Reason) -> None:
        """Let ``block_id`` mean nothing, and remember why."""
        self.forget(block_id, change.depart(block_id, reason))

    def forget(self, block_id: int, entry: BlockEntry | None) -> None:
        """A block left: tell the policies what it was, if that is known."""
        if entry is not None:
            self.advice.forget(entry.namespace, [block_id])
        for order in self._loaded():
            order.leave(block_id, entry)

    def _follow(self, change: Change) -> None:
        for (tier_no, segment_no), entry in change.result.items():
            tier = self._tiers.get(tier_no)
            if tier is not None and segment_no in tier.segments:
                tier.segments[segment_no].live_bytes = entry.live_bytes
        for tier_no, segment_no in change.dropped:
            if tier_no in self._tiers:
                self._tiers[tier_no].drop(segment_no)
        for tier_no, tier in self._tiers.items():
            tier.retire([f for f in change.freed if f.tier_no == tier_no])

    def save_counters(self, txn: WriteTxn) -> None:
        """What this transaction keeps of the logical clock, the time and the write budgets."""
        txn.set_counter("clock", self._clock)
        txn.set_counter("seq", self._seq)
        txn.set_counter("time", int(self.time.now()))
        for tier_no, tier in self._tiers.items():
            txn.set_counter(f"next_segment:{tier_no}", tier.next_segment_no)
            if (budget := tier.gate.budget) is not None:
                txn.set_counter(f"write_budget:{tier_no}", max(budget.left, 0))
                txn.set_counter(f"write_budget_at:{tier_no}", self._now())

    def _apply_touches(self, change: Change) -> None:
        for _ in range(min(len(self._touched), _TOUCHES_A_COMMIT_MAX)):
            block_id = self._touched.popleft()
            entry = change.txn.block(block_id)
            if entry is None:
                continue
            for tier_no, gate in self._lower_gates:
                if tier_no != entry.tier_no:
                    gate.used(block_id)
            used = entry._replace(clock=self._tick())
            change.txn.put_block(block_id, used)
            for order in self._loaded():
                order.touch(block_id, used)

    def renew(self, expiries: Mapping[int, int]) -> None:
        """From the next commit on, these blocks expire then; 0 for never."""
        self._renewed |= expiries

    def _renew(self, change: Change) -> None:
        for block_id, expires_at in self._renewed.items():
            if (entry := change.txn.block(block_id)) is not None:
                change.txn.put_block(block_id, entry._replace(expires_at=expires_at))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _counters(index: LmdbIndex) -> tuple[int, int, int]:
    with index.read() as view:
        return view.counter("clock"), view.counter("seq"), view.counter("time")


def _resume_budgets(index: LmdbIndex, tiers: Sequence[DiskTier]) -> None:
    with index.read() as view:
        for tier in tiers:
            when = view.counter(f"write_budget_at:{tier.tier_no}")
            if tier.gate.budget is not None and when:
                tier.gate.budget.resume(view.counter(f"write_budget:{tier.tier_no}"), when)
