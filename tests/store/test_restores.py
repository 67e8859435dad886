"""A chain that is being read is not evicted under its reader, as long as anything else can be."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from kvtier import Hit, Store
from tests.stores import KIB, MIB, config, fill, names, settle, tier, value_of

SIZE = 100 * KIB


def one(folder: Path) -> Store:
    c = config(folder, tier(bytes_max=4 * MIB), prefetch={"bytes_max": "256KiB", "coalesce_bytes_max": "256KiB"})
    return Store.open(c, background=False)


def test_a_chain_that_is_being_read_is_evicted_last(tmp_path: Path) -> None:
    chain = names(20, "chain")
    with one(tmp_path) as store:
        values = fill(store, chain, SIZE, chain=True)
        outcomes = store.get_many(chain, keep=False)
        read = [value_of(next(outcomes))]
        for i in range(8):
            fill(store, names(10, f"other{i}"), SIZE)  # the chain is older than all of them
        assert store.stats().being_read == 1
        read += [value_of(o) for o in outcomes]
        assert read == list(values.values())
        settle(store)
        assert store.stats().being_read == 0
        for i in range(8):
            fill(store, names(10, f"more{i}"), SIZE)
        assert store.match(chain) == 0


def test_without_a_reader_it_goes(tmp_path: Path) -> None:
    chain = names(20, "chain")
    with one(tmp_path) as store:
        fill(store, chain, SIZE, chain=True)
        for i in range(8):
            fill(store, names(10, f"other{i}"), SIZE)
        assert store.match(chain) == 0


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_a_reader_that_stops_early_holds_nothing(tmp_path: Path, how: str) -> None:
    chain = names(5, "chain")
    with one(tmp_path) as store:
        fill(store, chain, SIZE, chain=True)
        outcomes = store.get_many(chain)
        assert next(outcomes)
        settle(store)
        assert store.stats().being_read == 1
        if how == "closed":
            outcomes.close()  # type: ignore[attr-defined]
        del outcomes
        gc.collect()
        settle(store)
        assert store.stats().being_read == 0


def test_a_chain_over_two_tiers_is_held_on_both(tmp_path: Path) -> None:
    chain = names(30, "chain")
    c = config(tmp_path, tier("t0", bytes_max=2 * MIB), tier("t1", bytes_max=3 * MIB, promotion="never"))
    with Store.open(c, background=False) as store:
        fill(store, chain, SIZE, chain=True)
        assert {i.tier for k in chain if (i := store.info(k))} == {"t0", "t1"}
        outcomes = store.get_many(chain, keep=False)
        assert next(outcomes)
        settle(store)
        assert store.stats().being_read == 2
        for n in range(5):
            fill(store, names(3, f"other{n}"), SIZE)
        assert store.match(chain) == 30
        del outcomes


def test_a_reader_does_not_stop_writes_where_nothing_else_is_left(tmp_path: Path) -> None:
    chain = names(36, "chain")
    with one(tmp_path) as store:
        fill(store, chain, SIZE, chain=True)
        assert store.match(chain) == 36
        outcomes = store.get_many(chain, keep=False)
        assert isinstance(next(outcomes), Hit)
        fill(store, names(10, "other"), SIZE)  # raises if they cannot be written
        assert store.stats().counters["restores_cut"] == 1
        assert store.match(names(10, "other")) == 10
        assert store.match(chain) < 36
        del outcomes
        settle(store)
        assert store.stats().being_read == 0
