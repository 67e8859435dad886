"""Compaction policies: which segment is worth copying out of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.policy.base import SegmentFacts


@dataclass(frozen=True)
class Reclaim:
    """The segment that frees most bytes per byte copied, once at least ``dead_ratio`` of it is dead."""

    dead_ratio: float = 0.25

    def pick(self, segments: Sequence[SegmentFacts]) -> int | None:
        worth = [s for s in segments if s.disk_bytes - s.live_bytes >= self.dead_ratio * s.disk_bytes > 0]
        if not worth:
            return None
        return min(worth, key=lambda s: s.live_bytes / (s.disk_bytes - s.live_bytes)).segment_no
