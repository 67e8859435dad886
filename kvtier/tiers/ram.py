"""The RAM tier: blocks as the very bytes that callers get, evicted by policy at a byte cap.

Not thread-safe: the store's lock guards it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier.policy.base import NO_PARENT, EvictionPolicy, Hint
from kvtier.policy.guarded import Guarded
from kvtier.tiers.advice import Advice
from kvtier.tiers.brought import Brought
from kvtier.tiers.pressure import Pressure

#: What a block costs beside its payload (objects, dict and policy entries), so that the cap means memory.
OVERHEAD_BYTES = 1024

_KEEP_TO_BLOCKS = 256  # so that who waits for the lock gets it soon


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One block in memory. ``buffers`` are read-only views of bytes that nobody writes any more."""

    namespace: bytes
    key: bytes
    parent_id: int
    meta: bytes
    buffers: tuple[memoryview, ...]
    expires_at: int = 0  # in seconds since 1970, by the store's time; 0: never

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in self.buffers)

    def names(self, namespace: bytes, key: bytes) -> bool:
        return self.key == key and self.namespace == namespace


class RamTier:
    """Blocks by block id, within ``bytes_max``. ``on_failure`` is told why ``policy`` was given up, if it fails."""

    def __init__(
        self, bytes_max: int, policy: EvictionPolicy, on_failure: Callable[[str], None] = lambda reason: None
    ) -> None:
        self.bytes_max = bytes_max
        self.cap = bytes_max  # less while memory is short
        self.pressure: Pressure | None = None  # which says how much less
        self.bytes_used = 0
        self.evictions = 0
        self.policy = Guarded(policy, self._fall_back)
        self._on_failure = on_failure
        self.waiting: dict[int, int] = {}  # blocks that no disk tier has taken in, and the number of their put
        self.unwritten: dict[int, None] = {}  # blocks that are written when they leave, oldest first
        self.write: Callable[[int, RamBlock], None] = lambda block_id, block: None  # told of these when they do
        self._advice = Advice()
        self.brought = Brought()  # by a prefetch
        self.bytes_taken = 0  # since it was made
        self._blocks: dict[int, RamBlock] = {}
        self._clock = 0

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def hinted(self) -> int:
        """Blocks on which there is advice."""
        return len(self._advice)

    def get(self, block_id: int) -> RamBlock | None:
        """The block, which becomes the most recently used one."""
        block = self._blocks.get(block_id)
        if block is not None:
            self._clock += 1
            self.policy.touch(block_id, self._clock)
            self.brought.used(block_id)
        return block

    def peek(self, block_id: int) -> RamBlock | None:
        """The block, without counting as a use."""
        return self._blocks.get(block_id)

    def put(self, block_id: int, block: RamBlock, *, needs_parent: bool = False, write_back: bool = False) -> None:
        """Insert or replace, then evict down to the cap; a block that alone is over the cap is not kept.

        ``needs_parent``: nor is one that would displace others while its parent is not here. ``write_back``: the block
        is to be written when it leaves, or now if it is not kept.
        """
        self.discard(block_id)
        size = block.nbytes + OVERHEAD_BYTES
        is_orphan = needs_parent and block.parent_id != NO_PARENT and block.parent_id not in self._blocks
        if size > (self.cap - self.bytes_used if is_orphan else self.cap):
            if write_back:
                self._have_written(block_id, block)
            return
        limit = max(self.cap, self.bytes_used)  # what is above the cap since it went down is not this block's to evict
        self._clock += 1
        self._blocks[block_id] = block
        if write_back:
            self.unwritten[block_id] = None
        self.bytes_used += size
        self.bytes_taken += size
        self.policy.add(block_id, block.parent_id, self._clock, block.nbytes)
        if (hint := self._advice.of(block.namespace, block_id)) is not None:
            self.policy.hint(block_id, hint)
        while self.bytes_used > limit and self._evict():
            pass
        if self.bytes_used > limit:  # all else is held
            self.remove(block_id)

    def hint(self, namespace: bytes, block_ids: Sequence[int], hint: Hint) -> None:
        """Advise the policy on blocks, now if they are here, and whenever they come."""
        self._advice.take(namespace, block_ids, hint)
        for block_id in block_ids:
            self.policy.hint(block_id, hint)

    def forget_hint(self, namespace: bytes, block_id: int) -> None:
        """What comes under this name from now on is another block."""
        self._advice.forget(namespace, [block_id])

    def keep_to(self, cap: int) -> int:
        """Use ``cap`` bytes at most from now on, but as many as the blocks that are held; evicts some of what is above
        it, and returns how many blocks: 0 if it is all that can be."""
        self.cap = min(cap, self.bytes_max)
        for evicted in range(_KEEP_TO_BLOCKS):
            if self.bytes_used <= self.cap:
                return evicted
            if not self._evict():
                self.cap = self.bytes_used
                return evicted
        return _KEEP_TO_BLOCKS

    def remove(self, block_id: int) -> None:
        """Give a block up; one that is not written yet is now."""
        self._forget(block_id)
        self.policy.remove(block_id)

    def discard(self, block_id: int) -> None:
        """Give a block up that something newer replaces: it need not be written."""
        self.unwritten.pop(block_id, None)
        self.remove(block_id)

    def write_all(self) -> None:
        """Have everything written that is not; it stays."""
        while self.unwritten:
            block_id = next(iter(self.unwritten))
            del self.unwritten[block_id]
            self._have_written(block_id, self._blocks[block_id])

    def clear(self) -> None:
        """Remove all blocks."""
        for block_id in tuple(self._blocks):
            self.remove(block_id)

    def _evict(self) -> bool:
        """Whether the policy gave a block away."""
        while (victim := self.policy.pop()) is not None:
            if victim in self._blocks:
                self._forget(victim)
                self.evictions += 1
                return True
            self.policy.fail(f"it gave block {victim:#x}, which is not in the tier")
        return False

    def _fall_back(self, reason: str) -> None:
        """The policy failed: tell the default what there is."""
        for clock, (block_id, block) in enumerate(self._blocks.items(), 1):
            self.policy.add(block_id, block.parent_id, clock, block.nbytes)
        self._on_failure(reason)

    def _forget(self, block_id: int) -> None:
        self.waiting.pop(block_id, None)
        block = self._blocks.pop(block_id, None)
        if block is not None:
            self.bytes_used -= block.nbytes + OVERHEAD_BYTES
            self.brought.gone(block_id)
            if block_id in self.unwritten:
                del self.unwritten[block_id]
                self._have_written(block_id, block)

    def _have_written(self, block_id: int, block: RamBlock) -> None:
        """After what it extends: without that a block is of no use, and a full tier refuses it."""
        chain = [(block_id, block)]
        while (parent_id := chain[-1][1].parent_id) in self.unwritten:
            del self.unwritten[parent_id]
            chain.append((parent_id, self._blocks[parent_id]))
        for each in reversed(chain):
            self.write(*each)
