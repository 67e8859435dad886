"""What a disk tier is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtier.policy.base import AdmissionPolicy, CompactionPolicy, EvictionPolicy, PromotionPolicy


@dataclass(frozen=True, slots=True)
class TierSetup:
    """What a tier is made of; sizes in bytes."""

    name: str
    kind: str
    folder: str
    tier_no: int
    bytes_max: int
    segment_bytes: int
    codec: str
    eviction: Callable[[], EvictionPolicy]
    promotion: PromotionPolicy
    compaction: CompactionPolicy
    compaction_dead_ratio: float
    compaction_bytes_per_s: int
    admission: AdmissionPolicy
    write_bytes_per_day: int | None = None
    page_cache: bool = False
