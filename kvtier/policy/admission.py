"""Admission policies: is a block worth a write to a tier that wears out?"""

from __future__ import annotations

from kvtier.policy.base import Candidate
from kvtier.policy.recent import RecentIds

#: How far back the chain of a candidate is counted.
DEPTH_MAX = 256


class AlwaysAdmit:
    """Every block."""

    def admit(self, block: Candidate) -> bool:
        return True

    def used(self, block: int) -> bool:
        return True


class SecondTouch:
    """A block that was put before, or asked for: what is needed once and never again is not written.

    Touches are remembered in 1 MiB, see :class:`RecentIds`; a block whose touch was forgotten begins anew.
    """

    def __init__(self) -> None:
        self._touched = RecentIds()

    def admit(self, block: Candidate) -> bool:
        return self._touched.add(block.block) or block.is_hit

    def used(self, block: int) -> bool:
        self._touched.add(block)
        return True


class MinChain:
    """A block whose chain, from its start to itself, has at least ``blocks_min`` blocks: what is quickly computed again
    is not written. The store writes what such a block extends too."""

    def __init__(self, blocks_min: int = 2) -> None:
        self._blocks_min = blocks_min

    def admit(self, block: Candidate) -> bool:
        return block.depth >= self._blocks_min or block.is_hit

    def used(self, block: int) -> bool:
        return False
