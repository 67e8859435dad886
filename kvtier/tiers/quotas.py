"""Quotas: a namespace that has reached its own makes room among its own blocks, on whichever tiers they are.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby

from kvtier.events import Signals
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.index.schema import IndexDamaged, NamespaceEntry, Reason
from kvtier.tiers.census import is_exact, read_census, take_census
from kvtier.tiers.chains import orphans
from kvtier.tiers.drafts import NewBlock
from kvtier.tiers.gate import Offer
from kvtier.tiers.ledger import Ledger
from kvtier.tiers.limits import BLOCK_OVERHEAD_BYTES, Limits, NamespaceOrders, refused

_VICTIMS_MAX = 64
_NAMESPACES_MAX = 1 << 32


def counted_bytes(entry: NamespaceEntry) -> int:
    """What a namespace has, as its quota counts it."""
    return entry.nbytes + BLOCK_OVERHEAD_BYTES * entry.blocks


class Quotas:
    """Sees to it that no write takes a namespace above its quota."""

    def __init__(
        self, index: LmdbIndex, ledger: Ledger, orders: NamespaceOrders, limits: Limits, signals: Signals
    ) -> None:
        self._index = index
        self._ledger = ledger
        self._orders = orders
        self.limits = limits
        self._signals = signals

    def admit(
        self, puts: Sequence[NewBlock], deletes: Sequence[int], before_evicting: Callable[[], None] = lambda: None
    ) -> set[int]:
        """Make room for ``puts`` in their namespaces, once ``deletes`` are gone; returns the blocks for which there is
        none, which must not be written. ``before_evicting`` may raise, if nothing can be written now anyway.
        :class:`OSError` as changing the index does."""
        left_out: set[int] = set()
        if self.limits:
            by_namespace = sorted(puts, key=lambda p: p.namespace)
            for namespace, group in groupby(by_namespace, key=lambda p: p.namespace):
                if (limit := self.limits.of(namespace)) is not None:
                    left_out |= self._admit_in(namespace, limit, list(group), deletes, before_evicting)
        return left_out

    def _admit_in(
        self,
        namespace: bytes,
        limit: int,
        puts: Sequence[NewBlock],
        deletes: Sequence[int],
        before_evicting: Callable[[], None],
    ) -> set[int]:
        over = self._used(namespace) + self._growth(namespace, puts, deletes) - limit
        new = self._not_stored(puts) if over > 0 else []
        if not new:
            return set()
        before_evicting()
        self._ledger.load([self._orders])
        offers = [Offer(p.block_id, p.parent_id, sum(p.lengths), _cost(p)) for p in new]
        idle = orphans(self._index, {p.block_id: p.parent_id for p in new})
        stay = {*deletes, *(p.block_id for p in puts)}  # older values are counted out
        policy = self._orders.of(namespace)
        return refused(limit, over, offers, idle, stay, policy, partial(self._evict, namespace))

    def keep(self) -> None:
        """Evict what namespaces have above their quotas, which may be lower now. :class:`OSError` as changing the index
        does."""
        if not self.limits:
            return
        for namespace, entry in self._census().items():
            limit = self.limits.of(namespace)
            if limit is not None and (over := counted_bytes(entry) - limit) > 0:
                self._ledger.load([self._orders])
                self._evict(namespace, over)

    def _used(self, namespace: bytes) -> int:
        with suppress(IndexDamaged), self._index.read() as view:
            if is_exact(view):
                return counted_bytes(view.namespace(namespace))
        return counted_bytes(self._census().get(namespace, NamespaceEntry(0, 0)))

    def _census(self) -> dict[bytes, NamespaceEntry]:
        census = read_census(self._index, _NAMESPACES_MAX)
        if census is None:
            take_census(self._index, anew=True)
            census = read_census(self._index, _NAMESPACES_MAX)
        return census or {}

    def _not_stored(self, puts: Sequence[NewBlock]) -> list[NewBlock]:
        """Those of which the index does not say exactly this already: the others need no room."""
        with self._index.read() as view:
            return [p for p in puts if (entry := view.block(p.block_id)) is None or not p.is_at(entry)]

    def _growth(self, namespace: bytes, puts: Sequence[NewBlock], deletes: Sequence[int]) -> int:
        with self._index.read() as view:
            gone = sum(_counted(view, namespace, {*deletes, *(p.block_id for p in puts)}))
        return sum(map(_cost, puts)) - gone

    def _evict(self, namespace: bytes, size: int) -> int:
        """Drop blocks of a namespace until ``size`` bytes are free, as far as can be; returns how many are."""
        freed = 0
        while freed < size:
            try:
                victims = self._victims(namespace, size - freed)
            except BaseException:
                self._orders.reset()  # it has given away what stays
                raise
            if not victims:
                if self._ledger.guards.let_go():
                    continue
                break
            with self._ledger.change() as change:
                for block_id in victims:
                    self._ledger.unlink(change, block_id, Reason.OVER_QUOTA)
            self._signals.count("quota_evictions", len(victims))
            freed += sum(victims.values())
        return freed

    def _victims(self, namespace: bytes, size: int) -> dict[int, int]:
        """The next blocks to go, and what each counts: as many as free ``size`` bytes, but not too many at once."""
        victims: dict[int, int] = {}
        policy = self._orders.of(namespace)
        with self._index.read() as view:
            while sum(victims.values()) < size and len(victims) < _VICTIMS_MAX:
                block_id = policy.pop()
                if block_id is None:
                    break
                victims |= dict.fromkeys([block_id], next(_counted(view, namespace, [block_id]), 0))
        return victims


def _counted(view: View, namespace: bytes, block_ids: Sequence[int] | set[int]) -> Iterator[int]:
    """What each of these blocks counts that are in the namespace."""
    for block_id in block_ids:
        entry = view.block(block_id)
        if entry is not None and entry.namespace == namespace:
            yield entry.nbytes + BLOCK_OVERHEAD_BYTES


def _cost(put: NewBlock) -> int:
    return sum(put.lengths) + BLOCK_OVERHEAD_BYTES
