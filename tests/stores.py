"""Small stores for tests, and what tests look at from outside: files, blocks on disk, index commits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvtier import Config, Hit, Miss, Store
from kvtier.tiers.disk import DiskTier

KIB, MIB = 1 << 10, 1 << 20


class HandClock:
    """Time that passes when told to; the wall clock may be set to anything."""

    def __init__(self) -> None:
        self.now, self.wall = 0.0, 1_000_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


def tier(name: str = "disk", **changes: Any) -> dict[str, Any]:
    """A disk tier's section: 16 MiB in segments of 1 MiB."""
    return {"name": name, "kind": "ssd", "bytes_max": 16 * MIB, "segment_bytes": MIB, **changes}


def config(
    folder: Path,
    *tiers: dict[str, Any],
    ram: int = 0,
    value_bytes_max: int = 512 * KIB,
    queue: int = 64 * MIB,
    when_full: str = "wait",
    prefetch: dict[str, Any] | None = None,
) -> Config:
    """A store in ``folder`` with these tiers (one, if none is given), by default without RAM."""
    return Config.from_dict(
        {
            "store": {"path": folder / "store", "value_bytes_max": value_bytes_max},
            "ram": {"bytes_max": ram},
            "write_behind": {"bytes_max": queue, "when_full": when_full},
            "prefetch": prefetch or {},
            "tier": tiers or (tier(),),
        }
    )


def noise(seed: object, size: int) -> bytes:
    """Bytes that differ from seed to seed and do not compress."""
    return random.Random(repr(seed)).randbytes(size)


def value_of(outcome: Hit | Miss) -> bytes:
    """All the bytes of a hit."""
    assert isinstance(outcome, Hit), outcome
    return b"".join(outcome.buffers)


def fill(store: Store, keys: Sequence[bytes], size: int, *, chain: bool = False) -> dict[bytes, bytes]:
    """Put a value of its own under each key (each the parent of the next, if ``chain``) and flush."""
    values = {}
    parent = None
    for key in keys:
        values[key] = noise(key, size)
        store.put(key, values[key], parent=parent)
        parent = key if chain else None
    store.flush()
    return values


def names(count: int, prefix: str = "k") -> list[bytes]:
    return [f"{prefix}{i:04d}".encode() for i in range(count)]


def settle(store: Store) -> None:
    """Do all that the background worker would do (for stores opened with ``background=False``)."""
    assert store._back is not None
    while store._back._worker.step():
        pass


def disk_tier(store: Store, number: int = 0) -> DiskTier:
    assert store._back is not None
    return store._back.ladder.tiers[number]


def commits(store: Store) -> int:
    """Index transactions committed so far in the life of the store, as LMDB counts them."""
    assert store._back is not None
    return int(store._back.parts.index._env.info()["last_txnid"])


def occupied(folder: Path) -> int:
    """What everything under a folder takes on its disk, as ``du`` counts it."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.lstat().st_blocks * 512
        except FileNotFoundError:  # it went away meanwhile
            continue
    return total


def segments(folder: Path, name: str = "disk") -> list[Path]:
    return sorted((folder / "store" / name).glob("*.seg"))


def flip(file: Path, offset: int) -> None:
    """Flip one bit in place."""
    with file.open("r+b") as f:
        f.seek(offset)
        old = f.read(1)
        f.seek(offset)
        f.write(bytes((old[0] ^ 1,)))


def only_segment(folder: Path, name: str = "disk") -> Path:
    (file,) = segments(folder, name)
    return file
