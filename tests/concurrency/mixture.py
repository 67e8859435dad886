"""A mixture of all that threads do to a store. Every value follows from its key and version to its last byte, so that a
wrong, old or torn one shows. The work is bounded by counts, not by time."""

from __future__ import annotations

import random
import threading
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kvtier import Config, Hit, HitInto, Miss, MissReason, Store
from tests.stores import KIB, MIB, config, names, noise, tier, value_of

KEYS = names(60)
#: Of as many, half of them with blocks that are long enough to be written and read directly.
LONG_KEYS = names(60, "long")
#: Each key's values have one size, so that ``get_into`` can be used whatever the version.
SIZES = {key: 500 + 1600 * i for i, key in enumerate(KEYS)} | {
    key: 700 + 9001 * i + (600 * KIB if i % 2 else 0) for i, key in enumerate(LONG_KEYS)
}
_POOL = noise("pool", 3 * MIB)


def value(key: bytes, version: int) -> bytes:
    stamp = b"%s/%010d|" % (key, version)
    at = zlib.crc32(stamp) % MIB
    return stamp + _POOL[at : at + SIZES[key] - len(stamp)]


def version_of(key: bytes, got: bytes, meta: bytes) -> int:
    """The version; fails unless every byte and the metadata are of that version of that key."""
    version = int(meta)
    assert got == value(key, version), (key, meta, got[:40])
    return version


class Versions:
    """What the threads know: versions are handed out per key, one put at a time per key."""

    def __init__(self) -> None:
        self._locks: defaultdict[bytes, threading.Lock] = defaultdict(threading.Lock)
        self.done: defaultdict[bytes, int] = defaultdict(int)

    def put(self, store: Store, key: bytes, parent: bytes | None) -> None:
        with self._locks[key]:
            version = self.done[key] + 1
            store.put(key, value(key, version), meta=b"%d" % version, parent=parent)
            self.done[key] = version

    def delete(self, store: Store, key: bytes) -> None:
        with self._locks[key]:
            store.delete(key)

    def check(self, key: bytes, at_least: int, outcome: Hit | Miss) -> None:
        if isinstance(outcome, Hit):
            assert outcome.key == key
            assert version_of(key, value_of(outcome), outcome.meta) >= at_least, "an older value came back"
        else:
            assert outcome.reason is MissReason.ABSENT


def work(
    store: Store, versions: Versions, seed: int, rounds: int, *, pins: bool = True, keys: Sequence[bytes] = KEYS
) -> int:
    """One thread's mixture of everything; returns its hits."""
    rng, hits, pinned = random.Random(seed), 0, list[bytes]()
    for _ in range(rounds):
        i = rng.randrange(len(keys))
        key = keys[i]
        known = versions.done[key]
        match rng.randrange(12):
            case 0 | 1 | 2:
                versions.put(store, key, keys[i - 1] if i % 10 else None)
            case 3 | 4 | 5:
                outcome = store.get(key)
                versions.check(key, known, outcome)
                hits += bool(outcome)
            case 6:
                target = bytearray(SIZES[key])
                into = store.get_into(key, target)
                if isinstance(into, HitInto):
                    assert version_of(key, bytes(target), into.meta) >= known
                    hits += 1
            case 7:
                wanted = [keys[rng.randrange(len(keys))] for _ in range(8)]
                known_by = {k: versions.done[k] for k in wanted}
                for k, outcome in zip(wanted, store.get_many(wanted), strict=True):
                    versions.check(k, known_by[k], outcome)
                    hits += bool(outcome)
            case 8:
                store.prefetch(keys[i : i + 10])
                assert 0 <= store.match(keys[i : i + 10]) <= 10
            case 9:
                versions.delete(store, key) if rng.random() < 0.3 else store.contains(key)
            case 10:
                if pinned:
                    store.unpin([pinned.pop()])
                elif pins and i < 20:  # not more than t0 can hold
                    pinned.append(key)
                    store.pin([key])
            case _:
                info = store.info(key)
                assert info is None or info.nbytes == SIZES[key]
                if rng.random() < 0.05:
                    store.flush()
    store.unpin(pinned)
    return hits


def small(folder: Path, codec: str = "none", ram: int = 256 * KIB) -> Config:
    """Less room than the blocks need (2.8 MiB), so that everything moves all the time. The index counts in the upper
    tier, and has room there to grow by more than a megabyte while readers wait for a processor."""
    return config(
        folder,
        tier("t0", bytes_max=2 * MIB, segment_bytes=256 * KIB),
        tier("t1", bytes_max=768 * KIB, segment_bytes=256 * KIB, codec=codec),
        ram=ram,
        queue=256 * KIB,
        value_bytes_max=96 * KIB,
        prefetch={"bytes_max": 128 * KIB, "coalesce_bytes_max": 64 * KIB, "threads": 4},
    )


def long(folder: Path) -> Config:
    """The same for long blocks (30 MiB), on a disk that is written and read directly but for its lower tier."""
    return config(
        folder,
        tier("t0", bytes_max=16 * MIB, segment_bytes=4 * MIB),
        tier("t1", bytes_max=8 * MIB, segment_bytes=4 * MIB, page_cache=True),
        ram=2 * MIB,
        queue=8 * MIB,
        value_bytes_max=2 * MIB,
        prefetch={"bytes_max": 8 * MIB, "coalesce_bytes_max": 2 * MIB, "threads": 4},
    )
