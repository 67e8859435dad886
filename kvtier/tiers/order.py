"""In which order the blocks of a tier would be evicted.

An order is a policy that is told what becomes of blocks. It is told from the index when it is first needed, so that
opening is quick. Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from kvtier.index.schema import BlockEntry
from kvtier.policy.base import NO_PARENT, EvictionPolicy, Hint
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.guarded import Guarded


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

    def hint(self, namespace: bytes, block_id: int, hint: Hint) -> None:
        """Take advice on a block."""

    def reset(self) -> None:
        """Forget everything; ``is_loaded`` no more."""


class TierOrder:
    """The blocks of one tier. A policy that fails is given up for good: the default is loaded in its place, and
    ``on_failure`` is told the policy and the reason."""

    def __init__(
        self, tier_no: int, make: Callable[[], EvictionPolicy], on_failure: Callable[[str, str], None]
    ) -> None:
        self._tier_no = tier_no
        self._make = make
        self._on_failure = on_failure
        self._has_failed = False
        self._kept: list[int] = []
        self.reset()

    def reset(self) -> None:
        self.is_loaded = False
        self.policy: EvictionPolicy = LeafLru()
        if not self._has_failed:
            try:
                self.policy = Guarded(self._make(), self.fail)
            except Exception as e:
                self.fail(f"{type(e).__name__}: {e}")
        for block_id in self._kept:
            self.policy.hold(block_id)

    def fail(self, reason: str) -> None:
        """The policy cannot be trusted."""
        if not self._has_failed:
            self._has_failed = True
            self.reset()
            self._on_failure(getattr(self._make, "__name__", str(self._make)), reason)

    def arrive(self, block_id: int, entry: BlockEntry) -> None:
        if entry.tier_no == self._tier_no:
            self.policy.add(block_id, entry.parent_id, entry.clock, entry.record_len)
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

    def hint(self, namespace: bytes, block_id: int, hint: Hint) -> None:
        self.policy.hint(block_id, hint)

    @contextmanager
    def holding(self, block_ids: Iterable[int]) -> Iterator[None]:
        """Inside, these blocks are not evicted, whatever becomes of the policy."""
        held = [b for b in block_ids if b != NO_PARENT]
        for block_id in held:
            self._kept.append(block_id)
            self.policy.hold(block_id)
        try:
            yield
        finally:
            for block_id in held:
                self._kept.remove(block_id)
                self.policy.release(block_id)
