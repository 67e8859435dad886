"""Quotas of namespaces: their limits, the order in which each one would evict, and who is refused for want of room.

Nothing here knows where blocks are kept. Threads: one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from kvtier.policy.base import NO_PARENT, EvictionPolicy, Hint
from kvtier.tiers.forest import with_descendants
from kvtier.tiers.gate import Offer

#: What a block counts beside the length of its value: its record's head, and its entry in the index.
BLOCK_OVERHEAD_BYTES = 1024


class Placed(Protocol):
    """A block on some tier."""

    @property
    def namespace(self) -> bytes: ...

    @property
    def parent_id(self) -> int: ...

    @property
    def clock(self) -> int: ...

    @property
    def record_len(self) -> int: ...


class Limits:
    """What namespaces may have at most, in bytes, by their names. None: each that has no quota of its own."""

    def __init__(self, quotas: Mapping[str | None, int]) -> None:
        self._by_namespace = {name.encode(): limit for name, limit in quotas.items() if name is not None}
        self._others = quotas.get(None)

    def __bool__(self) -> bool:
        return bool(self._by_namespace) or self._others is not None

    def of(self, namespace: bytes) -> int | None:
        """The quota of a namespace; None: it has none."""
        return self._by_namespace.get(namespace, self._others)

    def has(self, namespace: bytes) -> bool:
        return self.of(namespace) is not None


class NamespaceOrders:
    """The blocks of each namespace for which ``has_quota``, on all tiers."""

    def __init__(self, has_quota: Callable[[bytes], bool], make: Callable[[], EvictionPolicy]) -> None:
        self._has_quota = has_quota
        self._make = make
        self.reset()

    def reset(self) -> None:
        self._policies: dict[bytes, EvictionPolicy] = {}
        self.is_loaded = False

    def of(self, namespace: bytes) -> EvictionPolicy:
        """The order of one namespace."""
        if namespace not in self._policies:
            self._policies[namespace] = self._make()
        return self._policies[namespace]

    def arrive(self, block_id: int, entry: Placed) -> None:
        if self._has_quota(entry.namespace):
            self.of(entry.namespace).add(block_id, entry.parent_id, entry.clock, entry.record_len)

    def leave(self, block_id: int, entry: Placed | None) -> None:
        if entry is not None and entry.namespace not in self._policies:
            return
        for policy in self._policies.values() if entry is None else [self._policies[entry.namespace]]:
            policy.remove(block_id)

    def touch(self, block_id: int, entry: Placed) -> None:
        if entry.namespace in self._policies:
            self._policies[entry.namespace].touch(block_id, entry.clock)

    def hold(self, namespace: bytes, block_id: int) -> None:
        if self._has_quota(namespace):
            self.of(namespace).hold(block_id)

    def release(self, namespace: bytes, block_id: int) -> None:
        if self._has_quota(namespace):
            self.of(namespace).release(block_id)

    def hint(self, namespace: bytes, block_id: int, hint: Hint) -> None:
        if namespace in self._policies:
            self._policies[namespace].hint(block_id, hint)


def refused(
    limit: int,
    over: int,
    new: Sequence[Offer],
    orphans: Iterable[int],
    stay: Iterable[int],
    policy: EvictionPolicy,
    evict: Callable[[int], int],
) -> set[int]:
    """Make room for the ``new`` blocks of a namespace, parents first, which take it ``over`` its ``limit`` by so many
    bytes; returns those for which there is none. Orphans displace nothing.

    ``evict`` frees so many bytes as ``policy`` says, as far as it can, and returns how many. What is to ``stay`` is not
    given away, nor what the new blocks extend.
    """
    parents = {b.block_id: b.parent_id for b in new}
    too_large = {b.block_id for b in new if b.cost > limit}
    found = with_descendants({*too_large, *orphans}, parents)
    wanted = [b for b in new if b.block_id not in found]
    over -= sum(b.cost for b in new if b.block_id in found)
    with holding(policy, {*stay, *(b.parent_id for b in wanted)}):
        over -= evict(over)
    while over > 0 and wanted:  # a chain that is longer than the quota keeps its beginning
        last = wanted.pop()
        found.add(last.block_id)
        over -= last.cost
    return with_descendants(found, parents)


@contextmanager
def holding(policy: EvictionPolicy, block_ids: Iterable[int]) -> Iterator[None]:
    """Inside, these blocks are not evicted: a chain longer than its room keeps its beginning, not its end."""
    held = [b for b in block_ids if b != NO_PARENT]
    for block_id in held:
        policy.hold(block_id)
    try:
        yield
    finally:
        for block_id in held:
            policy.release(block_id)
