"""Compaction policies: when to give back dead space, out of which segment, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvtier.policy.base import SegmentFacts, TierFacts

_NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Reclaim:
    """Nothing is ever copied: where holes cannot be punched, a segment of which ``dead_ratio`` is dead is evicted
    whole, and that only at the cap."""

    dead_ratio: float
    copies: ClassVar[bool] = False

    def is_due(self, tier: TierFacts) -> bool:
        return False

    def pick(self, segments: Sequence[SegmentFacts]) -> int | None:
        return cheapest(segments, self.dead_ratio)


@dataclass(frozen=True)
class Copy:
    """What lives in a segment of which ``dead_ratio`` is dead is copied. This waits until the tier is nearly full or
    as dead as that as a whole: the longer it waits, the less is left to copy."""

    dead_ratio: float
    copies: ClassVar[bool] = True

    def is_due(self, tier: TierFacts) -> bool:
        disk = sum(s.disk_bytes for s in tier.segments)
        dead = disk - sum(s.live_bytes for s in tier.segments)
        return dead >= self.dead_ratio * disk > 0 or tier.bytes_used >= _NEARLY_FULL * tier.bytes_max

    def pick(self, segments: Sequence[SegmentFacts]) -> int | None:
        return cheapest(segments, self.dead_ratio)


def cheapest(segments: Sequence[SegmentFacts], dead_ratio: float) -> int | None:
    """The segment that frees most bytes per byte copied, among those that are dead by this share."""
    worth = [s for s in segments if s.disk_bytes - s.live_bytes >= max(1, dead_ratio * s.disk_bytes)]
    if not worth:
        return None
    return min(worth, key=lambda s: s.live_bytes / (s.disk_bytes - s.live_bytes)).segment_no
