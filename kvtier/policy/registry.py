"""Policies by the names that a configuration uses. A new policy is a class and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kvtier.policy.base import CompactionPolicy, EvictionPolicy, PromotionPolicy
from kvtier.policy.compaction import Reclaim
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.promotion import AlwaysPromote, NeverPromote

EVICTION: Mapping[str, Callable[[], EvictionPolicy]] = MappingProxyType({"leaf-lru": LeafLru})
PROMOTION: Mapping[str, Callable[[], PromotionPolicy]] = MappingProxyType(
    {"always": AlwaysPromote, "never": NeverPromote}
)
COMPACTION: Mapping[str, Callable[[], CompactionPolicy]] = MappingProxyType({"reclaim": Reclaim})
