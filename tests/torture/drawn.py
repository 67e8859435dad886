"""The settings of a simulated store, drawn anew for each of its openings but for what its files depend on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from kvtier import Config
from tests.stores import KIB, MIB, config, tier
from tests.torture.simulated import SharedDisk

#: Such that blocks of 20 KiB and more are written directly.
TIMES = 53
#: Without those that look at the clock of the machine: a life has to repeat.
EVICTION = ["leaf-lru", "leaf-lru", "slru", "s3-fifo", "sieve", "gdsf"]


class Settings:
    """Of two tiers in a folder."""

    def __init__(self, folder: Path, rng: random.Random, *, is_long: bool = False) -> None:
        """``is_long``: of blocks that are :data:`TIMES` as long, and of all else in bytes too. Then the disk is theirs
        alone."""
        self._folder = folder
        self._rng = rng
        self._kib = (TIMES if is_long else 1) * KIB
        self._caps = [160 * self._kib, 256 * self._kib] if is_long else [640 * KIB, 640 * KIB, MIB]
        self._low_caps = [128 * self._kib, 192 * self._kib] if is_long else [256 * KIB, 512 * KIB]
        self._ram = rng.choice([0, 64 * self._kib])
        self._write = rng.choice(["through", "back"]) if self._ram else "through"
        self._codec = rng.choice(["none", "zstd"])
        self._low_kind = rng.choice(["ssd", "hdd"])
        self.has_floor = rng.random() < 0.5 and not is_long

    def drawn(self) -> Config:
        """With policies and limits by chance."""
        floor = SharedDisk.FLOOR if self.has_floor else 0
        return config(
            self._folder,
            self._tier("top", self._rng.choice(self._caps), free_bytes_min=floor, **self._policies()),
            self._tier("low", self._rng.choice(self._low_caps), free_bytes_min=floor, **self._policies()),
            ram={"bytes_max": self._ram, "write": self._write},
            value_bytes_max=32 * self._kib,
            queue=128 * self._kib,
            prefetch={
                "threads": 1,
                "bytes_max": self._rng.choice([32, 1024]) * self._kib,
                "coalesce_bytes_max": 32 * self._kib,
            },
            ttl_s=self._rng.choice([0, 0, 0, 3600]),
            quota=self._rng.choice([None, None, None, 160 * self._kib]),
        )

    def plain(self) -> Config:
        """What takes in every block for ever."""
        return config(
            self._folder,
            self._tier("top", 640 * self._kib, free_bytes_min=0),
            self._tier("low", 256 * self._kib, free_bytes_min=0),
            value_bytes_max=32 * self._kib,
        )

    def _tier(self, name: str, bytes_max: int, **changes: Any) -> dict[str, Any]:
        kind, codec = (self._low_kind, self._codec) if name == "low" else ("ssd", "none")
        return tier(name, kind=kind, codec=codec, bytes_max=bytes_max, segment_bytes=64 * self._kib, **changes)

    def _policies(self) -> dict[str, Any]:
        rng = self._rng
        admission = rng.choice([*["always"] * 5, "second-touch", "min-chain", "write-budget"])
        return {
            "page_cache": self._kib > KIB and rng.random() < 0.3,
            "eviction": rng.choice(EVICTION),
            "promotion": rng.choice(["always", "always", "always", "second-hit", "never"]),
            "admission": admission,
            "write_bytes_per_day": rng.choice([200, 1024]) * self._kib if admission == "write-budget" else None,
            "compaction": rng.choice(["reclaim", "copy", "copy"]),
            "compaction_dead_ratio": rng.choice([0.1, 0.1, 0.3, 0.65]),
            "compaction_bytes_per_s": rng.choice([32 * self._kib, 32 * 1024 * self._kib]),
        }
