"""kvtier: a tiered, crash-safe block store for LLM KV cache. See :class:`kvtier.Store`."""

from kvtier.blocks import (
    BlockInfo,
    BlockState,
    Explanation,
    Hit,
    HitInto,
    Miss,
    MissReason,
    PutItem,
    PutOutcome,
)
from kvtier.config import (
    Config,
    PrefetchConfig,
    RamConfig,
    StoreConfig,
    TierConfig,
    WriteBehindConfig,
)
from kvtier.errors import (
    ConfigError,
    ConfigProblem,
    CorruptStore,
    FlushError,
    ForkedStore,
    KvtierError,
    LimitError,
    NotAStore,
    ReadOnlyStore,
    StoreClosed,
    StoreError,
    StoreLocked,
    StoreUnwritable,
    TierMissing,
    UnsupportedFormat,
    WrongKeys,
)
from kvtier.keys import Key, KeyProvider, single_key
from kvtier.stats import StoreStats
from kvtier.store import Store

__version__ = "0.1.0"

__all__ = [
    "BlockInfo",
    "BlockState",
    "Config",
    "ConfigError",
    "ConfigProblem",
    "CorruptStore",
    "Explanation",
    "FlushError",
    "ForkedStore",
    "Hit",
    "HitInto",
    "Key",
    "KeyProvider",
    "KvtierError",
    "LimitError",
    "Miss",
    "MissReason",
    "NotAStore",
    "PrefetchConfig",
    "PutItem",
    "PutOutcome",
    "RamConfig",
    "ReadOnlyStore",
    "Store",
    "StoreClosed",
    "StoreConfig",
    "StoreError",
    "StoreLocked",
    "StoreStats",
    "StoreUnwritable",
    "TierConfig",
    "TierMissing",
    "UnsupportedFormat",
    "WriteBehindConfig",
    "WrongKeys",
    "single_key",
]
