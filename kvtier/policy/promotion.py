"""Promotion policies: does a hit in a lower tier bring the block up?"""

from __future__ import annotations

from kvtier.policy.recent import RecentIds


class AlwaysPromote:
    """Every hit: the upper tier mirrors what is in use now."""

    def promote(self, block: int) -> bool:
        return True


class NeverPromote:
    """Blocks only ever go down; for tiers that are nearly as fast, or to spare the upper one's wear."""

    def promote(self, block: int) -> bool:
        return False


class SecondHit:
    """The second hit, and every second one after it: what is read once and never again moves nothing.

    Hits are remembered in 1 MiB, see :class:`RecentIds`; one that was forgotten counts as none.
    """

    def __init__(self) -> None:
        self._hit_once = RecentIds()

    def promote(self, block: int) -> bool:
        if self._hit_once.discard(block):
            return True
        self._hit_once.add(block)
        return False
