"""What a tier has above the floor of its disk is evicted in the background, a little at a time, so that writes go on.

Threads: the store's background worker only.
"""

from __future__ import annotations

from kvtier.events import Signals
from kvtier.index.lmdb_index import IndexFull, LmdbIndex
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.giving_way import give_up
from kvtier.tiers.ladder import Ladder
from kvtier.tiers.room import NoRoom

_STEP_BYTES = 8 << 20


class Shrinker:
    """See the module."""

    def __init__(self, index: LmdbIndex, ladder: Ladder, signals: Signals) -> None:
        self._index = index
        self._ladder = ladder
        self._signals = signals

    def step(self) -> bool:
        """Look at the disks, and evict a little where it is needed; whether there may be more to do."""
        for tier in reversed(self._ladder.tiers):  # the coldest first: others on its disk then have less to give
            used = self._ladder.used_bytes(tier)
            over = used - tier.room.look(used, 0)
            if over > 0 and tier.room.is_short and self._evict(tier, over):
                return True
        return False

    def _evict(self, tier: DiskTier, over: int) -> bool:
        """Whether a part of what is too much is gone."""
        before = tier.disk_bytes
        try:
            self._index.ensure_alive()
            give_up(self._ladder, tier, min(over, _STEP_BYTES), may_lose=False)
        except (OSError, NoRoom, IndexFull):
            self._signals.count("floors_not_kept")
        freed = max(0, before - tier.disk_bytes)
        self._signals.count("floor_bytes_evicted", freed)
        return freed > 0
