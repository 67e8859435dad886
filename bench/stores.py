"""Stores for the I/O benchmarks: one disk tier and as much RAM as is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.workloads import MIB, payloads, stamped
from kvtier import Config, Hit, Miss, Store
from kvtier.fs import FileSystem

_VALUE_BYTES_MAX = 64 * MIB


def config_of(
    folder: Path, *, ram_bytes: int = 0, value_bytes_max: int = _VALUE_BYTES_MAX, disk: Path | None = None, **tier: Any
) -> Config:
    """A store in ``folder`` with one disk tier, in ``disk`` if that is elsewhere; an SSD, if ``tier`` does not say."""
    place = {"path": str(disk)} if disk is not None else {}
    return Config.from_dict(
        {
            "store": {"path": str(folder), "value_bytes_max": value_bytes_max},
            "ram": {"bytes_max": ram_bytes},
            "write_behind": {"bytes_max": 1024 * MIB},
            "tier": [{"name": "disk", "kind": "ssd", "bytes_max": "64GiB", **place, **tier}],
        }
    )


@contextmanager
def filled(config: Config, keys: Sequence[bytes], block_bytes: int, fs: FileSystem | None = None) -> Iterator[Store]:
    """The store, with a chain of blocks of random bytes, all of them durable."""
    with Store.open(config, fs=fs) as store:
        fill(store, keys, block_bytes)
        store.flush()
        yield store


def fill(store: Store, keys: Sequence[bytes], block_bytes: int, *, seed: int = 0) -> None:
    """Put a chain of blocks of random bytes, each with a content of its own, other ones for another ``seed``."""
    block = payloads(1, block_bytes)[0]
    for number, key in enumerate(keys):
        store.put(key, stamped(block, (seed << 32) + number).data, parent=keys[number - 1] if number else None)


def keys_of(total_bytes: int, block_bytes: int) -> list[bytes]:
    """Of so many bytes in blocks, of which there are at least four."""
    return [b"%032d" % i for i in range(max(4, total_bytes // block_bytes))]


def hit(outcome: Hit | Miss) -> Hit:
    """Raises :class:`RuntimeError` for a miss: what is measured must be there."""
    if not isinstance(outcome, Hit):
        raise RuntimeError(f"block {outcome.key!r} is missing: {outcome.reason}")
    return outcome
