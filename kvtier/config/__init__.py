"""The configuration: frozen sections, from TOML or from Python, validated at once.

Every way in (:meth:`Config.from_toml`, :meth:`Config.from_dict`, ``Config(...)``) makes the same checks, and
:class:`kvtier.ConfigError` carries *all* problems, each with its path and what would be right. Sizes are
``int`` bytes or text (``"50GiB"``, ``"512 MB"``); a tier's cap may also be a share of its disk (``"10%"``),
which stays symbolic until :meth:`TierConfig.bytes_max_resolved`.
"""

from kvtier.config.sections import (
    CodecName,
    PrefetchConfig,
    QuotaConfig,
    RamConfig,
    StoreConfig,
    TierConfig,
    WriteBehindConfig,
)
from kvtier.config.values import AdmissionName, CompactionName, EvictionName, PrefetchName, PromotionName
from kvtier.config.whole import SAVED_BYTES_MAX, SAVED_FILE, Config, json_schema

__all__ = [
    "SAVED_BYTES_MAX",
    "SAVED_FILE",
    "AdmissionName",
    "CodecName",
    "CompactionName",
    "Config",
    "EvictionName",
    "PrefetchConfig",
    "PrefetchName",
    "PromotionName",
    "QuotaConfig",
    "RamConfig",
    "StoreConfig",
    "TierConfig",
    "WriteBehindConfig",
    "json_schema",
]
