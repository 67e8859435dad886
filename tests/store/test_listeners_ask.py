"""A listener that is told of something while a lock is held may ask for statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvtier import Config, Store
from kvtier.events import Event, PolicyDisabled
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.stats import StoreStats


class FailsOnUse(LeafLru):
    def touch(self, block: int, clock: int) -> None:
        raise RuntimeError("a policy that fails")


def test_statistics_while_a_policy_fails(tmp_path: Path) -> None:
    asked: list[StoreStats] = []

    def listener(event: Event) -> None:
        if isinstance(event, PolicyDisabled):
            asked.append(store.stats())

    ram: dict[str, Any] = {"bytes_max": "1MiB", "eviction": f"{__name__}:FailsOnUse"}
    with Store.open(Config.from_dict({"ram": ram}), listeners=[listener]) as store:
        store.put(b"k", b"v")
        assert store.get(b"k")
        assert store.stats().ram.hits == 1
        assert len(asked) == 1
        store.put(b"another", b"v")
        assert store.get(b"another")
        assert store.stats().ram.hits == 2
