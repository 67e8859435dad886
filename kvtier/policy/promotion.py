"""Promotion policies: does a hit in a lower tier bring the block up?"""

from __future__ import annotations


class AlwaysPromote:
    """Every hit: the upper tier mirrors what is in use now."""

    def promote(self, block: int) -> bool:
        return True


class NeverPromote:
    """Blocks only ever go down; for tiers that are nearly as fast, or to spare the upper one's wear."""

    def promote(self, block: int) -> bool:
        return False
