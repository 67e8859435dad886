"""Blocks come and go in a store that is 90 % full: bytes written for each that came in, bytes on disk for each that
is alive. Counted, not timed; on a file system with holes, and as if there were none."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.workloads import MIB, SEED
from kvtier import Config, Store
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem

_FULL = 0.9
_SEGMENTS = 256  # as many as 64 GiB have
_COPIED = "compaction_bytes_copied"
_BLOCK_BYTES = (8 << 10, 48 << 10)
_CHAIN_BLOCKS = (4, 24)
FILE_SYSTEMS: dict[str, Callable[[], FileSystem]] = {"holes": OsFileSystem, "no holes": PortableFileSystem}
#: How blocks go: ``evicted`` at the cap, least recently used conversations first; ``deleted``, conversations by chance.
ENDS = ("evicted", "deleted")


def run(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """For each file system, end and compaction: bytes written per byte taken in, bytes on disk per byte alive."""
    cap, rounds = (32 * MIB, 1) if quick else (64 * MIB, 2)
    found: dict[str, Any] = {"bytes_max": cap, "bytes_put": rounds * cap, "arms": {}}
    for system, make_fs in FILE_SYSTEMS.items():
        for end in ENDS:
            for compaction in ("reclaim", "copy"):
                arm = f"{end}, {system}, {compaction}"
                say(arm)
                with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as folder:
                    found["arms"][arm] = churn(Path(folder), make_fs(), end, compaction, cap, rounds)
    return found


def churn(folder: Path, fs: FileSystem, end: str, compaction: str, cap: int, rounds: int) -> dict[str, Any]:
    """Fill a tier, then put ``rounds`` times its cap; figures of the time after it was first full."""
    tier = {
        "name": "disk",
        "kind": "ssd",
        "bytes_max": cap,
        "segment_bytes": cap // _SEGMENTS,
        "compaction": compaction,
        "compaction_bytes_per_s": "1TiB",
    }
    config = {
        "store": {"path": str(folder), "value_bytes_max": min(128 << 10, cap // _SEGMENTS - (16 << 10))},
        "ram": {"bytes_max": 0},
        "tier": [tier],
    }
    with Store.open(Config.from_dict(config), fs=fs, background=False) as store:
        life = _Life(store, end, int(_FULL * cap))
        while life.put < cap:
            life.go_on()
        first = store.stats()
        ratios: list[float] = []
        live: list[float] = []
        while life.put < (rounds + 1) * cap:
            life.go_on()
            stats = store.stats()
            ratios.append((stats.bytes_on_disk - stats.index_bytes) / stats.tiers[0].bytes_live)
            live.append(stats.tiers[0].bytes_live / cap)
        last = store.stats()
        written = last.bytes_written - first.bytes_written
        copied = last.counters.get(_COPIED, 0) - first.counters.get(_COPIED, 0)
        return {
            "written_to_admitted": written / (written - copied),
            "disk_to_live": sum(ratios) / len(ratios),
            "live_to_cap": sum(live) / len(live),
            "evictions": last.counters.get("evictions", 0) - first.counters.get("evictions", 0),
        }


class _Life:
    """Conversations that grow, are read again, and end."""

    def __init__(self, store: Store, end: str, live_max: int) -> None:
        self.put = 0
        self._store = store
        self._deletes = end == "deleted"
        self._live_max = live_max
        self._rng = random.Random(SEED)
        self._chains: list[list[bytes]] = []
        self._next = 0

    def go_on(self) -> None:
        """Some conversations have a turn; then the store has time."""
        rng = self._rng
        for _ in range(8):
            old = rng.random() < 0.6 and self._chains
            chain = rng.choice(self._chains[-64:]) if old else self._new()
            self._turn(chain)
        self._store.flush()
        while self._deletes and self._store.stats().tiers[0].bytes_live > self._live_max:
            for key in self._chains.pop(rng.randrange(len(self._chains))):
                self._store.delete(key)
            self._store.flush()
        assert self._store._back is not None
        while self._store._back._worker.step():
            pass

    def _new(self) -> list[bytes]:
        self._chains.append([])
        return self._chains[-1]

    def _turn(self, chain: list[bytes]) -> None:
        for _ in self._store.get_many(chain):
            pass
        for _ in range(self._rng.randint(*_CHAIN_BLOCKS) // 2):
            key, size = b"%d" % self._next, self._rng.randint(*_BLOCK_BYTES)
            self._store.put(key, self._rng.randbytes(size), parent=chain[-1] if chain else None)
            chain.append(key)
            self._next += 1
            self.put += size
