"""The RAM tier on its own."""

from __future__ import annotations

from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.tiers.ram import OVERHEAD_BYTES, RamBlock, RamTier


def block(size: int, parent: int = 0) -> RamBlock:
    return RamBlock(b"n", b"k", parent, b"", (memoryview(bytes(size)),))


def tier(blocks: int) -> RamTier:
    """With room for this many blocks of 1000 bytes."""
    return RamTier(blocks * (1000 + OVERHEAD_BYTES), LeafLru())


def test_bytes_are_counted_as_blocks_come_and_go() -> None:
    ram = tier(10)
    for i in range(3):
        ram.put(i + 1, block(1000))
    ram.put(2, block(500))
    assert (len(ram), ram.bytes_used) == (3, 2500 + 3 * OVERHEAD_BYTES)
    ram.remove(2)
    ram.remove(99)
    assert (len(ram), ram.bytes_used) == (2, 2000 + 2 * OVERHEAD_BYTES)


def test_get_makes_recent_and_peek_does_not() -> None:
    ram = tier(3)
    for i in (1, 2, 3):
        ram.put(i, block(1000))
    assert ram.get(1) is not None
    assert ram.peek(2) is not None
    ram.put(4, block(1000))
    assert [ram.peek(i) is not None for i in (1, 2, 3, 4)] == [True, False, True, True]
    assert ram.evictions == 1
    assert ram.get(2) is None


def test_a_block_that_is_too_big_is_not_kept_and_drops_the_older_one() -> None:
    ram = tier(3)
    ram.put(1, block(1000))
    ram.put(2, block(1000))
    ram.put(1, block(10_000))
    assert [ram.peek(i) is not None for i in (1, 2)] == [False, True]
    assert ram.evictions == 0
    none = RamTier(0, LeafLru())
    none.put(1, block(0))
    assert len(none) == 0


def test_the_newcomer_leaves_if_all_else_is_held() -> None:
    ram = tier(2)
    for i in (1, 2):
        ram.policy.hold(i)
        ram.put(i, block(1000))
    ram.put(3, block(1000))
    assert [ram.peek(i) is not None for i in (1, 2, 3)] == [True, True, False]
    ram.policy.hold(4)
    ram.put(4, block(1000))  # held as well, and still there is no room
    assert ram.peek(4) is None
    assert ram.bytes_used <= ram.bytes_max


def test_a_name_must_be_confirmed() -> None:
    assert block(1).names(b"n", b"k")
    assert not block(1).names(b"", b"k")
    assert not block(1).names(b"n", b"K")
