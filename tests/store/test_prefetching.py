"""What prefetch brings up, what becomes of it, and when it is given up. Reads wait where the test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvtier import ConfigError, Hit, Store
from kvtier.events import PolicyDisabled
from kvtier.fs import OsFileSystem
from kvtier.testing import Call, FaultyFileSystem
from tests.stores import KIB, MIB, config, fill, names, tier, value_of

KEYS = names(16)
SIZE = 100 * KIB


@pytest.fixture
def fs() -> FaultyFileSystem:
    return FaultyFileSystem(OsFileSystem())


@contextmanager
def held(fs: FaultyFileSystem, *, only_first: bool = False) -> Iterator[threading.Event]:
    """Every read of a segment (or the first) waits for the end of this; the event says that one has begun."""
    begun, gate = threading.Event(), threading.Event()

    def hold(call: Call) -> None:
        if call.op == "read_at" and not (only_first and begun.is_set()):
            begun.set()
            assert gate.wait(60)

    fs.on_call = hold
    try:
        yield begun
    finally:
        gate.set()
        fs.on_call = None


def reopened(
    folder: Path, fs: FaultyFileSystem | None = None, *, ram: int = 4 * MIB, kind: str = "hdd", **prefetch: object
) -> Store:
    """A store with a chain on disk and nothing in RAM; one block is read at a time."""
    limits = {"bytes_max": SIZE + 4 * KIB, "coalesce_bytes_max": SIZE, "threads": 1, **prefetch}
    c = config(folder, tier(kind=kind), ram=ram, prefetch=limits)
    with Store.open(c) as store:
        fill(store, KEYS, SIZE, chain=True)
    return Store.open(c, fs=fs)


def arrive(store: Store, keys: Sequence[bytes]) -> None:
    """Wait until what was asked for is there."""
    assert store._back is not None
    for future in list(store._back._prefetcher._flying.values()):
        future.result(60)
    for key in keys:
        assert store.info(key) is not None


def test_what_came_is_useful_once_it_is_used_and_wasted_if_it_goes_unused(tmp_path: Path) -> None:
    with reopened(tmp_path, ram=5 * SIZE) as store:
        assert store.prefetch(KEYS[:3]) == 3
        arrive(store, KEYS[:3])
        assert (store.stats().prefetch.unused, store.stats().prefetch.bytes_unused) == (3, 3 * SIZE)
        for _ in range(2):  # which is counted once
            assert value_of(store.get(KEYS[0]))
        found = store.stats().prefetch
        assert (found.useful, found.bytes_useful, found.unused, found.wasted) == (1, SIZE, 2, 0)
        for number in range(5):
            store.put(b"new%d" % number, bytes(SIZE))
        found = store.stats().prefetch
        assert (found.useful, found.unused, found.wasted, found.bytes_wasted) == (1, 0, 2, 2 * SIZE)


def test_no_more_is_asked_for_than_ram_has_room_for(tmp_path: Path) -> None:
    with reopened(tmp_path, ram=5 * SIZE) as store:
        assert store.prefetch(KEYS) == 4, "five would displace one another"
        arrive(store, KEYS[:4])
        assert store.prefetch(KEYS) == 0, "what is unused keeps its room"
        assert [value_of(hit) != b"" for hit in store.get_many(KEYS[:4])] == [True] * 4
        assert store.stats().prefetch.wasted == 0


def test_without_ram_nothing_is_brought_up(tmp_path: Path) -> None:
    with reopened(tmp_path, ram=0) as store:
        assert store.prefetch(KEYS) == 0
        assert store.stats().tiers[0].bytes_read == 0


def test_what_nobody_wants_any_more_is_not_read(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with reopened(tmp_path, fs) as store:
        with held(fs) as begun:
            assert store.prefetch(KEYS[:8]) == 8
            assert begun.wait(60)
            assert store.prefetch(KEYS[:4]) == 0, "they are on their way, and wanted twice"
            assert store.cancel_prefetch(KEYS[:8]) == 4
            assert store.cancel_prefetch(KEYS[:8]) == 3, "one is being read"
            assert store.cancel_prefetch(KEYS) == 0
        arrive(store, KEYS[:1])
        found = store.stats().prefetch
        assert (found.requested, found.loaded, found.cancelled) == (8, 1, 7)


def test_who_needs_it_now_does_not_wait_for_its_turn(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with reopened(tmp_path, fs) as store:
        with held(fs) as begun:
            assert store.prefetch(KEYS[:8]) == 8
            assert begun.wait(60)
            assert store._back is not None
            store._back.prefetching.take_over([store._wanted(k, b"").block_id for k in KEYS[1:8]])
        arrive(store, KEYS[:1])
        assert all(store.get_many(KEYS[:8], keep=False))
        found = store.stats()
        assert found.prefetch.late == 7
        assert found.tiers[0].bytes_read < 9 * SIZE, "nothing was read twice"


@pytest.mark.parametrize("how", ["get", "get_many"])
def test_a_read_takes_over_what_waits_to_be_read(tmp_path: Path, fs: FaultyFileSystem, how: str) -> None:
    with reopened(tmp_path, fs, kind="ssd", threads=2) as store:
        with held(fs, only_first=True) as begun:
            assert store.prefetch(KEYS[:8]) == 8
            assert begun.wait(60)
            rest = KEYS[1:8]
            assert all(store.get_many(rest) if how == "get_many" else map(store.get, rest))
        arrive(store, KEYS[:1])
        found = store.stats().prefetch
        assert (found.loaded, found.late) == (1, 7)


@pytest.mark.parametrize("how", ["get", "get_many"])
def test_what_comes_while_memory_is_looked_through_is_not_read_again(
    tmp_path: Path, fs: FaultyFileSystem, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with reopened(tmp_path, fs) as store, ExitStack() as reading:
        begun = reading.enter_context(held(fs))
        assert store.prefetch(KEYS[:1]) == 1
        assert begun.wait(60)
        name = "find" if how == "get" else "find_many"
        find = getattr(store._front, name)

        def found_before_it_came(*args: Any, **options: Any) -> Any:
            monkeypatch.undo()
            found = find(*args, **options)
            reading.close()
            arrive(store, KEYS[:1])
            return found

        monkeypatch.setattr(store._front, name, found_before_it_came)
        hit = store.get(KEYS[0]) if how == "get" else next(store.get_many(KEYS[:1]))
        assert isinstance(hit, Hit)
        assert hit.tier == "ram"
        assert store.stats().tiers[0].bytes_read < 2 * SIZE


def test_a_policy_of_ones_own_that_fails_is_given_up(tmp_path: Path) -> None:
    events: list[object] = []
    c = config(tmp_path, ram=MIB, prefetch={"policy": f"{__name__}:Failing"})
    with Store.open(c, listeners=[events.append]) as store:
        fill(store, KEYS[:2], 1000)
        for _ in range(2):
            assert store.answered(KEYS[:2]) == 0
        assert all(store.get_many(KEYS[:2]))
    assert [e for e in events if isinstance(e, PolicyDisabled)] == [
        PolicyDisabled("prefetch", "Failing", "RuntimeError: mine")
    ]


class Failing:
    def asked(self, group: bytes, chain: Sequence[int]) -> None:
        raise RuntimeError("mine")

    def answered(self, group: bytes, chain: Sequence[int], stays_s: float) -> bool:
        raise RuntimeError("mine")


class Always:
    def asked(self, group: bytes, chain: Sequence[int]) -> None:
        pass

    def answered(self, group: bytes, chain: Sequence[int], stays_s: float) -> bool:
        return True


def test_a_chain_comes_up_after_its_answer_if_the_policy_says_so(tmp_path: Path) -> None:
    with reopened(tmp_path / "always", policy=f"{__name__}:Always", ram=64 * MIB) as store:
        assert all(store.get_many(KEYS, keep=False))
        assert store.answered(KEYS) == len(KEYS)
        arrive(store, KEYS)
        assert {hit.tier for hit in store.get_many(KEYS) if isinstance(hit, Hit)} == {"ram"}
    with reopened(tmp_path / "chain") as store:
        assert store.answered(KEYS) == 0


def test_what_nobody_asked_for_is_bounded_by_what_was_of_use(tmp_path: Path) -> None:
    """Whatever a policy expects: a 32nd of RAM to begin with, then an eighth of what was used."""
    with reopened(tmp_path, policy=f"{__name__}:Always", ram=96 * (SIZE + KIB)) as store:
        assert store.answered(KEYS) == 3
        arrive(store, KEYS[:3])
        assert store.answered(KEYS) == 0  # as long as those are not used
        assert all(store.get_many(KEYS[:3]))
        assert store.answered(KEYS) == 3  # and an eighth of three is not a block yet
        arrive(store, KEYS[3:6])
        store._front.forget_all()
        assert store.answered(KEYS) == 0  # they were in vain
        assert store.prefetch(KEYS) == len(KEYS)  # but what is asked for comes


def test_the_same_key_many_times_is_read_once(tmp_path: Path) -> None:
    settings = config(tmp_path, ram=4 * MIB)
    with Store.open(settings) as store:
        fill(store, KEYS[:1], SIZE)
    with Store.open(settings) as store:
        assert store.prefetch(KEYS[:1] * 100) == 1
        value_of(store.get(KEYS[0]))
        assert store.stats().prefetch.loaded == 1


def test_a_policy_that_cannot_be_made_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no_such"):
        Store.open(config(tmp_path, ram=4 * MIB, prefetch={"policy": "no_such.module:Class"}))
    Store.open(config(tmp_path, ram=4 * MIB)).close()
