"""What namespaces may have on the tiers of a replay, by the store's own orders and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.tiers.forest import with_descendants
from kvtier.tiers.gate import Offer
from kvtier.tiers.limits import BLOCK_OVERHEAD_BYTES, Limits, NamespaceOrders, refused


class Entry(NamedTuple):
    """What an order is told of a block."""

    namespace: bytes
    parent_id: int
    clock: int
    record_len: int


class Rooms:
    """Sees to it that no request takes a namespace above its quota."""

    def __init__(self, quotas: Mapping[str | None, int]) -> None:
        self.limits = Limits(quotas)
        self.orders = NamespaceOrders(self.limits.has, LeafLru)
        self._used: Counter[bytes] = Counter()
        self._entries: dict[int, Entry] = {}

    def arrive(self, block_id: int, entry: Entry) -> None:
        """A block is on a tier that was on none."""
        if self.limits.has(entry.namespace):
            self._entries[block_id] = entry
            self._used[entry.namespace] += cost(entry.record_len)
            self.orders.arrive(block_id, entry)

    def touch(self, block_id: int, clock: int) -> None:
        if (entry := self._entries.get(block_id)) is not None:
            self.orders.touch(block_id, entry._replace(clock=clock))

    def leave(self, block_id: int) -> None:
        """A block is on no tier any more."""
        if (entry := self._entries.pop(block_id, None)) is not None:
            self._used[entry.namespace] -= cost(entry.record_len)
            self.orders.leave(block_id, entry)

    def refused(
        self,
        namespace: bytes,
        new: Sequence[Offer],
        idle: Collection[int],
        stay: Collection[int],
        drop: Callable[[int], int],
    ) -> set[int]:
        """Those of the ``new`` blocks for which there is no room in their namespace. ``drop`` takes others from their
        tiers, and returns what that frees. ``idle``: those that extend what is not there."""
        limit = self.limits.of(namespace)
        over = 0 if limit is None else self._used[namespace] + sum(b.cost for b in new) - limit
        if limit is None or over <= 0:
            return set()
        policy = self.orders.of(namespace)

        def evict(size: int) -> int:
            freed = 0
            while freed < size and (block_id := policy.pop()) is not None:
                freed += drop(block_id)
            return freed

        return refused(limit, over, new, idle, stay, policy, evict)


def cost(block_bytes: int) -> int:
    """What a block counts against a quota."""
    return block_bytes + BLOCK_OVERHEAD_BYTES


def orphans(offers: Sequence[Offer], is_there: Callable[[int], bool]) -> set[int]:
    """Those blocks whose parent is neither there nor among them, and what extends them."""
    parents = {b.block_id: b.parent_id for b in offers}
    absent = {p for p in parents.values() if p and p not in parents and not is_there(p)}
    return with_descendants(absent, parents) - absent
