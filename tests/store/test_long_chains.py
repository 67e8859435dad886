"""A chain that is longer than a tier keeps its beginning: an end without its beginning is of no use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvtier import Config, FlushError, Store

KIB = 1024
KEYS = [b"%03d" % n for n in range(60)]


def put_chain(store: Store, keys: list[bytes]) -> None:
    for n, key in enumerate(keys):
        store.put(key, os.urandom(64 * KIB), parent=keys[n - 1] if n else None)


def config(folder: Path, *caps: int, ram: int = 0) -> Config:
    tiers = [
        {"name": f"t{n}", "kind": "ssd", "bytes_max": cap, "segment_bytes": "256KiB"} for n, cap in enumerate(caps)
    ]
    return Config.from_dict(
        {"store": {"path": folder, "value_bytes_max": "128KiB"}, "ram": {"bytes_max": ram}, "tier": tiers}
    )


def test_on_disk_whether_written_at_once_or_turn_by_turn(tmp_path: Path) -> None:
    for turn in (1, len(KEYS)):
        with Store.open(config(tmp_path / str(turn), 2048 * KIB), background=False) as store:
            for at in range(0, len(KEYS), turn):
                for n in range(at, at + turn):
                    store.put(KEYS[n], os.urandom(64 * KIB), parent=KEYS[n - 1] if n else None)
                try:
                    store.flush()
                except FlushError:
                    assert at + turn > 15
            stored = store.match(KEYS)
            assert stored >= 15
            assert store.stats().blocks == stored


def test_a_new_chain_still_displaces_an_old_one(tmp_path: Path) -> None:
    other = [b"other-" + key for key in KEYS]
    with Store.open(config(tmp_path, 2048 * KIB), background=False) as store:
        for keys in (KEYS, other):
            put_chain(store, keys)
            with pytest.raises(FlushError):
                store.flush()
        assert store.match(other) >= 15
        assert store.match(KEYS) == 0


def test_in_ram_without_a_disk() -> None:
    with Store.open(Config(ram={"bytes_max": 1024 * KIB})) as store:
        put_chain(store, KEYS)
        assert store.match(KEYS) >= 10
        other = [b"other-" + key for key in KEYS[:12]]
        put_chain(store, other)
        assert store.match(other) == 12


def test_a_second_tier_takes_what_does_not_fit_the_first(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, 1536 * KIB, 8192 * KIB), background=False) as store:
        for n, key in enumerate(KEYS):
            store.put(key, os.urandom(64 * KIB), parent=KEYS[n - 1] if n else None)
            store.flush()
        assert store.match(KEYS) == len(KEYS)
