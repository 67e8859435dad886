"""In which order blocks would be evicted: those of one tier, or those of each namespace that has a quota.

An order is a policy that is told what becomes of blocks. It is told from the index when it is first needed, so that
opening is quick. Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from kvtier.index.schema import BlockEntry
from kvtier.policy.base import NO_PARENT, EvictionPolicy


class Order(Protocol):
    """What the ledger tells of blocks, once ``is_loaded``."""

    is_loaded: bool

    def arrive(self, block_id: int, entry: BlockEntry) -> None:
        """This is what the block means from now on."""

    def leave(self, block_id: int, entry: BlockEntry | None) -> None:
        """The block is nowhere any more. None: what it meant is not known."""

    def touch(self, block_id: int, entry: BlockEntry) -> None:
        """The block was used, at its clock."""

    def hold(self, namespace: bytes, block_id: int) -> None:
        """Protect a block, whether it is there or not, until as many ``release``."""

    def release(self, namespace: bytes, block_id: int) -> None:
        """Undo one ``hold``."""

    def reset(self) -> None:
        """Forget everything; ``is_loaded`` no more."""


class TierOrder:
    """The blocks of one tier."""

    def __init__(self, tier_no: int, make: Callable[[], EvictionPolicy]) -> None:
        self._tier_no = tier_no
        self._make = make
        self.reset()

    def reset(self) -> None:
        self.policy = self._make()
        self.is_loaded = False

    def arrive(self, block_id: int, entry: BlockEntry) -> None:
        if entry.tier_no == self._tier_no:
            self.policy.add(block_id, entry.parent_id, entry.clock)
        else:
            self.policy.remove(block_id)

    def leave(self, block_id: int, entry: BlockEntry | None) -> None:
        self.policy.remove(block_id)

    def touch(self, block_id: int, entry: BlockEntry) -> None:
        if entry.tier_no == self._tier_no:
            self.policy.touch(block_id, entry.clock)

    def hold(self, namespace: bytes, block_id: int) -> None:
        self.policy.hold(block_id)

    def release(self, namespace: bytes, block_id: int) -> None:
        self.policy.release(block_id)


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

    def arrive(self, block_id: int, entry: BlockEntry) -> None:
        if self._has_quota(entry.namespace):
            self.of(entry.namespace).add(block_id, entry.parent_id, entry.clock)

    def leave(self, block_id: int, entry: BlockEntry | None) -> None:
        if entry is not None and entry.namespace not in self._policies:
            return
        for policy in self._policies.values() if entry is None else [self._policies[entry.namespace]]:
            policy.remove(block_id)

    def touch(self, block_id: int, entry: BlockEntry) -> None:
        if entry.namespace in self._policies:
            self._policies[entry.namespace].touch(block_id, entry.clock)

    def hold(self, namespace: bytes, block_id: int) -> None:
        if self._has_quota(namespace):
            self.of(namespace).hold(block_id)

    def release(self, namespace: bytes, block_id: int) -> None:
        if self._has_quota(namespace):
            self.of(namespace).release(block_id)


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
