"""The RAM tier of a replay: the store's own, with blocks that have a size and no bytes."""

from __future__ import annotations

from dataclasses import dataclass

from kvtier.clock import StoreTime
from kvtier.policy.base import EvictionPolicy
from kvtier.replay.tier import Faults
from kvtier.tiers.ram import OVERHEAD_BYTES, RamBlock, RamTier


@dataclass(frozen=True, slots=True)
class SizedBlock(RamBlock):
    """A block of which only the size matters."""

    size: int = 0

    @property
    def nbytes(self) -> int:
        return self.size


class Memory:
    """RAM with room for so many blocks, by their ids."""

    def __init__(
        self, policy: EvictionPolicy, capacity: int, block_bytes: int, time: StoreTime, faults: Faults
    ) -> None:
        self.policy = policy
        self.capacity = capacity
        self.tier = RamTier(capacity * (block_bytes + OVERHEAD_BYTES), policy, faults.reasons.append)
        self.reads = 0
        self.writes = 0
        self._block_bytes = block_bytes
        self._time = time

    def has(self, block_id: int) -> bool:
        """Whether it has the block; one whose time is up goes."""
        block = self.tier.peek(block_id)
        if block is not None and block.expires_at and self._time.now() >= block.expires_at:
            self.tier.remove(block_id)
            return False
        return block is not None

    def read(self, block_id: int) -> bool:
        """Whether it has the block, which is used then."""
        found = self.tier.get(block_id) is not None
        self.reads += found
        return found

    def put(self, namespace: bytes, block_id: int, parent_id: int, expires_at: int) -> None:
        self.tier.put(block_id, SizedBlock(namespace, b"", parent_id, b"", (), expires_at, self._block_bytes))
        self.writes += 1

    def expiry(self, block_id: int) -> int:
        """When the block expires, if it is here; 0: never."""
        block = self.tier.peek(block_id)
        return 0 if block is None else block.expires_at

    # -- blocks that no tier has taken in -----------------------------------------------------------------------

    def is_waiting(self, block_id: int) -> bool:
        return block_id in self.tier.waiting

    def wait(self, block_id: int) -> None:
        if self.tier.peek(block_id) is not None:
            self.tier.waiting[block_id] = 0

    def taken(self, block_id: int) -> None:
        self.tier.waiting.pop(block_id, None)
