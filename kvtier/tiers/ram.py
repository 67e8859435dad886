"""The RAM tier: blocks as the very bytes that callers get, evicted by policy at a byte cap.

Not thread-safe: the store's lock guards it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtier.policy.base import NO_PARENT, EvictionPolicy

#: What a block costs beside its payload (objects, dict and policy entries), so that the cap means memory.
OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One block in memory. ``buffers`` are read-only views of bytes that nobody writes any more."""

    namespace: bytes
    key: bytes
    parent_id: int
    meta: bytes
    buffers: tuple[memoryview, ...]

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in self.buffers)

    def names(self, namespace: bytes, key: bytes) -> bool:
        return self.key == key and self.namespace == namespace


class RamTier:
    """Blocks by block id, within ``bytes_max``."""

    def __init__(self, bytes_max: int, policy: EvictionPolicy) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.evictions = 0
        self.policy = policy
        self._blocks: dict[int, RamBlock] = {}
        self._clock = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, block_id: int) -> RamBlock | None:
        """The block, which becomes the most recently used one."""
        block = self._blocks.get(block_id)
        if block is not None:
            self._clock += 1
            self.policy.touch(block_id, self._clock)
        return block

    def peek(self, block_id: int) -> RamBlock | None:
        """The block, without counting as a use."""
        return self._blocks.get(block_id)

    def put(self, block_id: int, block: RamBlock, *, needs_parent: bool = False) -> None:
        """Insert or replace, then evict down to the cap; a block that alone is over the cap is not kept.

        ``needs_parent``: nor is one that would displace others while its parent is not here.
        """
        self.remove(block_id)
        size = block.nbytes + OVERHEAD_BYTES
        is_orphan = needs_parent and block.parent_id != NO_PARENT and block.parent_id not in self._blocks
        if size > (self.bytes_max - self.bytes_used if is_orphan else self.bytes_max):
            return
        self._clock += 1
        self._blocks[block_id] = block
        self.bytes_used += size
        self.policy.add(block_id, block.parent_id, self._clock)
        while self.bytes_used > self.bytes_max and (victim := self.policy.pop()) is not None:
            self._forget(victim)
            self.evictions += 1
        if self.bytes_used > self.bytes_max:  # all else is held
            self.remove(block_id)

    def remove(self, block_id: int) -> None:
        self.policy.remove(block_id)
        self._forget(block_id)

    def clear(self) -> None:
        """Remove all blocks."""
        for block_id in tuple(self._blocks):
            self.remove(block_id)

    def _forget(self, block_id: int) -> None:
        block = self._blocks.pop(block_id, None)
        if block is not None:
            self.bytes_used -= block.nbytes + OVERHEAD_BYTES
