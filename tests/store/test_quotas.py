"""Quotas: what a namespace may have, counted on all disk tiers, and who has to make room for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvtier import BlockState, Config, ConfigError, FlushError, Hit, Store
from kvtier.index.lmdb_index import LmdbIndex, View
from kvtier.index.schema import BlockEntry
from kvtier.stats import NamespaceStats
from kvtier.tiers.limits import BLOCK_OVERHEAD_BYTES as OVERHEAD
from tests.stores import KIB, MIB, config, names, noise, settle, tier

A, B = b"tenant-a", b"tenant-b"
SIZE = 10_000
QUOTA = 5 * (SIZE + OVERHEAD)  # five blocks


def limited(folder: Path, *tiers: dict[str, Any], **quotas: int) -> Config:
    """Quotas by namespace (a, b), or of the ``others``."""
    named = {"a": {"namespace": A.decode()}, "b": {"namespace": B.decode()}, "others": {}}
    made = config(folder, *tiers)
    rows = [{**named[name], "bytes_max": limit} for name, limit in quotas.items()]
    return Config(store=made.store, ram=made.ram, write_behind=made.write_behind, tier=made.tier, quota=rows)


@contextmanager
def opened(settings: Config) -> Iterator[Store]:
    with Store.open(settings, background=False) as store:
        settle(store)
        yield store


def put(store: Store, keys: list[bytes], namespace: bytes = A, *, chain: bool = False, size: int = SIZE) -> None:
    for parent, key in zip([None, *keys], keys, strict=False):
        store.put(key, noise((namespace, key), size), namespace=namespace, parent=parent if chain else None)
        store.flush()


def there(store: Store, keys: list[bytes], namespace: bytes = A) -> list[bytes]:
    return [key for key in keys if store.contains(key, namespace=namespace)]


def stats(store: Store, namespace: bytes = A) -> NamespaceStats:
    return next(n for n in store.stats().namespaces if n.name == namespace)


def test_who_reaches_its_quota_makes_room_among_its_own(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5), B)
        put(store, names(8))
        assert there(store, names(8)) == names(8)[3:]
        assert there(store, names(5), B) == names(5)
        assert stats(store).bytes_counted == stats(store).bytes_max == QUOTA
        assert store.stats().counters["quota_evictions"] == 3
        assert (stats(store, B).bytes_counted, stats(store, B).bytes_max) == (QUOTA, None)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        store.get(names(1)[0], namespace=A)
        put(store, [b"new"])
        assert there(store, names(5)) == [names(5)[0], *names(5)[2:]]


def test_a_prefix_outlives_what_extends_it(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5), chain=True)
        put(store, [b"new"])
        assert there(store, names(5)) == names(4)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_chain_longer_than_the_quota_keeps_its_beginning(tmp_path: Path, at_once: bool) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, [b"old"])
        if at_once:
            for parent, key in zip([None, *names(8)], names(8), strict=False):
                store.put(key, noise(key, SIZE), namespace=A, parent=parent)
            store.flush()
        else:
            put(store, names(8), chain=True)
        assert there(store, [b"old", *names(8)]) == names(5)
        assert store.stats().counters["over_quota"] == 3
        assert store.explain(names(8)[7], namespace=A).state is BlockState.OVER_QUOTA


def test_what_extends_nothing_displaces_nothing(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        store.put(b"orphan", noise(0, SIZE), namespace=A, parent=b"never stored")
        store.flush()
        assert there(store, [*names(5), b"orphan"]) == names(5)


def test_what_could_never_fit_displaces_nothing(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        put(store, [b"large"], size=QUOTA)
        assert there(store, [*names(5), b"large"]) == names(5)
        put(store, [names(1)[0]], size=QUOTA)  # its older value must not stand in for it
        assert there(store, names(5)) == names(5)[1:]


def test_what_is_pinned_stays(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        store.pin(names(5)[:4], namespace=A)
        put(store, names(5))
        put(store, [b"new"])
        assert there(store, [*names(5), b"new"]) == [*names(4), b"new"]
        store.pin([b"new"], namespace=A)
        put(store, [b"newer"])
        assert there(store, [*names(4), b"new", b"newer"]) == [*names(4), b"new"]
        store.unpin(names(1), namespace=A)
        put(store, [b"newest"])
        assert there(store, [*names(4), b"newest"]) == [*names(4)[1:], b"newest"]


def test_what_is_stored_already_stays(tmp_path: Path) -> None:
    """Put again with something new, for which there is no room, it does not go in its place."""
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        store.pin(names(5), namespace=A)
        for key in (b"new", names(1)[0]):
            store.put(key, noise((A, key), SIZE), namespace=A)
        store.flush()
        assert there(store, [*names(5), b"new"]) == names(5)


def test_the_older_value_of_what_could_never_fit_makes_room_once(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        store.put(names(1)[0], noise(0, QUOTA), namespace=A)
        for key in (b"x", b"y"):
            store.put(key, noise(key, SIZE), namespace=A)
        store.flush()
        assert there(store, [*names(5), b"x", b"y"]) == [*names(5)[2:], b"x", b"y"]
        assert stats(store).bytes_counted == QUOTA


def test_nothing_makes_room_for_what_cannot_be_written_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        assert store._back is not None
        monkeypatch.setattr(store._back.ladder.tiers[0], "is_suspended", lambda: True)
        store.put(b"new", noise(0, SIZE), namespace=A)
        with pytest.raises(FlushError):
            store.flush()
        assert there(store, names(5)) == names(5)


def test_what_was_about_to_go_is_not_forgotten_if_the_index_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = View.block

    def fail(view: View, block_id: int) -> BlockEntry | None:
        if block_id == oldest:
            raise OSError("index: it cannot be read")
        return read(view, block_id)

    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        oldest = store._wanted(names(1)[0], A).block_id
        store.put(b"new", noise(0, SIZE), namespace=A)
        with monkeypatch.context() as patch:
            patch.setattr(View, "block", fail)
            with pytest.raises(FlushError):
                store.flush()
        put(store, [b"newer"])
        assert there(store, [*names(5), b"newer"]) == [*names(5)[1:], b"newer"]


def test_a_block_that_never_was_written_costs_no_look_at_the_others(tmp_path: Path) -> None:
    """Its deletion says nothing of the order in which blocks go, which is made from the whole index."""
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(6))
        store.put(b"short-lived", b"value", namespace=B)
        store.delete(b"short-lived", namespace=B)
        store.flush()
        assert store._back is not None
        assert store._back.ladder.quotas._orders.is_loaded


def test_overwriting_and_deleting_give_back(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        put(store, names(2))  # the same again
        put(store, names(5)[:2], size=100)
        assert there(store, names(5)) == names(5)
        assert stats(store).bytes_counted == 3 * SIZE + 200 + 5 * OVERHEAD
        store.delete(names(5)[4], namespace=A)
        for key in (b"x", b"y"):
            store.put(key, noise(key, SIZE), namespace=A)
        store.flush()
        assert there(store, [*names(5), b"x", b"y"]) == [*names(4), b"x", b"y"]


def test_small_blocks_cost_too(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=10 * OVERHEAD)) as store:
        put(store, names(20), size=0)
        assert len(there(store, names(20))) == 10


def test_bytes_that_are_shared_count_for_each_block(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        for key in names(8):
            store.put(key, noise("same", SIZE), namespace=A)
        store.flush()
        assert there(store, names(8)) == names(5)  # one group: its beginning
        assert stats(store).bytes_stored == 5 * SIZE


def test_a_quota_spans_the_tiers(tmp_path: Path) -> None:
    tiers = [tier("top", bytes_max=2 * MIB), tier("low", bytes_max=16 * MIB)]
    quota = 30 * (100 * KIB + OVERHEAD)
    with opened(limited(tmp_path, *tiers, a=quota)) as store:
        put(store, names(60), size=100 * KIB)
        assert there(store, names(60)) == names(60)[30:]
        assert store.stats().counters["demotions"] > 0
        assert stats(store).bytes_counted == quota


def test_each_of_the_others_has_its_own(tmp_path: Path) -> None:
    with opened(limited(tmp_path, others=QUOTA, b=2 * QUOTA)) as store:
        for namespace in (A, B, b""):
            put(store, names(12), namespace)
        assert [len(there(store, names(12), n)) for n in (A, B, b"")] == [5, 10, 5]
        assert [stats(store, n).bytes_max for n in (A, B, b"")] == [QUOTA, 2 * QUOTA, QUOTA]


def test_the_empty_name_is_a_namespace(tmp_path: Path) -> None:
    made = limited(tmp_path)
    quota = {"namespace": "", "bytes_max": QUOTA}
    with opened(Config(store=made.store, ram=made.ram, tier=made.tier, quota=[quota])) as store:
        put(store, names(8), b"")
        put(store, names(8), A)
        assert [len(there(store, names(8), n)) for n in (b"", A)] == [5, 8]


def test_a_lowered_quota_is_kept_from_the_next_opening_on(tmp_path: Path) -> None:
    with opened(limited(tmp_path)) as store:
        put(store, names(8), chain=True)
        put(store, names(8), B)
    with opened(limited(tmp_path, a=QUOTA)) as store:
        assert there(store, names(8)) == names(5)
        assert there(store, names(8), B) == names(8)


def test_quotas_hold_when_the_count_was_lost(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(5))
        assert store._back is not None
        index: LmdbIndex = store._back.parts.index
        with index.write() as txn:
            txn._txn.put(b"\x08" + A, b"something else", db=index.namespaces)
            txn.set_counter("counted", txn.number)
        put(store, [b"new"])
        assert there(store, [*names(5), b"new"]) == [*names(5)[1:], b"new"]
        assert stats(store).bytes_counted == QUOTA


def test_it_is_remembered_what_a_quota_cost(tmp_path: Path) -> None:
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(6))
    with opened(limited(tmp_path, a=QUOTA)) as store:
        explained = store.explain(names(1)[0], namespace=A)
        assert (explained.state, explained.tier) == (BlockState.OVER_QUOTA, "disk")
        assert "quota" in str(explained)
        assert isinstance(store.get(names(6)[5], namespace=A), Hit)


def test_quotas_do_not_cost_who_has_none(tmp_path: Path) -> None:
    """Not even the policy's memory."""
    with opened(limited(tmp_path, a=QUOTA)) as store:
        put(store, names(30), B)
        assert store._back is not None
        assert not store._back.ladder.quotas._orders.is_loaded


@pytest.mark.parametrize(
    ("quotas", "problem"),
    [
        ([{"namespace": "a"}], "quota[0].bytes_max"),
        ([{"namespace": "a", "bytes_max": 0}], "leaves no room"),
        ([{"namespace": "a", "bytes_max": "1TiB"}], "more than all disk tiers together"),
        ([{"namespace": "a", "bytes_max": 9}, {"namespace": "a", "bytes_max": 9}], "has a quota already"),
        ([{"bytes_max": 9}, {"bytes_max": 9}], "have a quota already"),
        ([{"namespace": "a" * 65, "bytes_max": 9}], "65 bytes"),
        ([{"namespace": "ä" * 33, "bytes_max": 9}], "66 bytes"),
        ([{"namespace": "\ud800", "bytes_max": 9}], "not Unicode"),
        ([{"namespace": 7, "bytes_max": 9}], "not a namespace"),
        ([{"name": "a", "bytes_max": 9}], "quota"),
        ({"a": 9}, "quota"),
    ],
)
def test_wrong_quotas(tmp_path: Path, quotas: Any, problem: str) -> None:
    made = config(tmp_path)
    with pytest.raises(ConfigError) as raised:
        Config(store=made.store, tier=made.tier, quota=quotas)
    assert problem in str(raised.value)


def test_quotas_need_a_disk() -> None:
    with pytest.raises(ConfigError, match="no disk tier"):
        Config.from_dict({"quota": [{"bytes_max": "1GiB"}]})


def test_the_saved_configuration_has_them(tmp_path: Path) -> None:
    with opened(limited(tmp_path, others=QUOTA, b=2 * QUOTA)):
        pass
    saved = Config.of_store(tmp_path / "store")
    assert [(q.namespace, q.bytes_max) for q in saved.quota] == [(None, QUOTA), ("tenant-b", 2 * QUOTA)]
