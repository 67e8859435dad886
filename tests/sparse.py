"""Stores with dead space in their segments, which copy what lives beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvtier import Config, Store
from tests.stores import KIB, config, fill, names, settle, tier, value_of

SIZE = 100 * KIB  # ten a segment
KEYS = names(36)
SETTINGS = {"compaction": "copy", "compaction_dead_ratio": 0.25, "compaction_bytes_per_s": "1GiB"}


def copying(folder: Path, **changes: Any) -> Config:
    return config(folder, tier(**{**SETTINGS, **changes}))


def thin_out(store: Store, every: int = 3) -> dict[bytes, bytes]:
    """Four segments, of which one block in so many is left; compaction is paused."""
    store.pause_compaction()
    values = fill(store, KEYS, SIZE)
    for i, key in enumerate(KEYS):
        if i % every:
            store.delete(key)
            del values[key]
    store.flush()
    settle(store)
    return values


def intact(store: Store, values: dict[bytes, bytes]) -> bool:
    return {k: value_of(store.get(k)) for k in values} == values


def steps(store: Store) -> int:
    """Let the worker do all there is; how many steps that were."""
    assert store._back is not None
    count = 0
    while store._back._worker.step():
        count += 1
    return count
