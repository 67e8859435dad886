"""Tiers that share a disk: at its floor the lowest one gives way, since to move blocks down there would gain no room.

Threads: the store's background worker only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from kvtier.tiers.disk import DiskTier
from kvtier.tiers.room import NoRoom


class Evicting(Protocol):
    """The ladder, as far as it is needed here."""

    @property
    def tiers(self) -> Sequence[DiskTier]: ...

    def used_bytes(self, tier: DiskTier) -> int: ...

    def evict_for(self, tier: DiskTier, need: int, *, may_lose: bool = True) -> None: ...


def over_cap(ladder: Evicting, tier: DiskTier, need: int, *, may_lose: bool) -> int:
    """How many bytes a tier is above what it may use if it took ``need`` more, after those below it on its disk have
    given way."""
    while (missing := tier.room.missing(need)) > 0 and _give_way(ladder, tier, missing, may_lose):
        pass
    used = ladder.used_bytes(tier)
    return used + need - tier.room.cap(used)


def give_up(ladder: Evicting, tier: DiskTier, size: int, *, may_lose: bool) -> int:
    """Evict about ``size`` bytes, whatever the tier may use; how many less it then has. :class:`NoRoom` if it cannot,
    :class:`OSError` as changing the index does."""
    used, before = ladder.used_bytes(tier), tier.disk_bytes
    ladder.evict_for(tier, tier.room.cap(used) - used + min(size, before), may_lose=may_lose)
    return before - tier.disk_bytes


def _give_way(ladder: Evicting, tier: DiskTier, size: int, may_lose: bool) -> bool:
    """Whether a tier below on the same disk, the lowest that could, gave something up."""
    below = ladder.tiers[ladder.tiers.index(tier) + 1 :]
    for lower in reversed([t for t in below if t.room.shares_disk(tier.room)]):
        with suppress(NoRoom):
            if give_up(ladder, lower, size, may_lose=may_lose) > 0:
                return True
    return False
