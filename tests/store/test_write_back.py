"""RAM that is written back: blocks go to disk when they leave it, at a flush, and at the end."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtier import BlockState, Config, ConfigError, Hit, PutOutcome, Store
from kvtier.fs import OsFileSystem
from kvtier.testing import FaultyFileSystem
from tests.clocks import HandClock
from tests.crash.oracle import die
from tests.stores import KIB, MIB, commits, config, disk_tier, fill, names, noise, settle, tier, value_of

SIZE = 100 * KIB


def opened(folder: Path, *tiers: dict[str, Any], ram: int = 8 * MIB, queue: int = 64 * MIB, **options: Any) -> Store:
    when_full = options.pop("when_full", "wait")
    settings = config(folder, *tiers, ram={"bytes_max": ram, "write": "back"}, queue=queue, when_full=when_full)
    return Store.open(settings, background=False, **options)


def put_chain(store: Store, keys: list[bytes], size: int = SIZE) -> dict[bytes, bytes]:
    """As :func:`fill`, without its flush."""
    values = {key: noise(key, size) for key in keys}
    for parent, key in zip([None, *keys], keys, strict=False):
        store.put(key, values[key], parent=parent)
    return values


def written(store: Store) -> int:
    settle(store)
    return disk_tier(store).bytes_written


def test_nothing_is_written_before_it_has_to_be(tmp_path: Path) -> None:
    keys = names(5)
    with opened(tmp_path) as store:
        values = put_chain(store, keys)
        before = commits(store)
        assert written(store) == 0
        assert commits(store) == before
        assert store.stats().ram.unwritten == 5
        assert {key: value_of(store.get(key)) for key in keys} == values
        store.flush()
        assert store.stats().ram.unwritten == 0
        assert 5 * SIZE < written(store) < 6 * SIZE
        assert store.explain(keys[0]).state is BlockState.RAM
        store.flush()
        assert written(store) < 6 * SIZE


@pytest.mark.parametrize("end", [Store.flush, Store.close])
def test_a_flush_and_the_end_make_it_durable(tmp_path: Path, end: Callable[[Store], None]) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    store = opened(tmp_path, fs=fs)
    values = put_chain(store, names(5))
    end(store)
    if end is Store.flush:
        die(store, fs)
    with opened(tmp_path) as store:
        assert {key: value_of(store.get(key)) for key in values} == values


def test_what_is_replaced_or_deleted_meanwhile_is_never_written(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for turn in range(10):
            store.put(b"k", noise(turn, SIZE))
        store.put(b"gone", noise("gone", SIZE), parent=b"k")
        store.delete(b"gone")
        assert store.stats().ram.unwritten == 1
        store.flush()
        assert SIZE < written(store) < 2 * SIZE
        assert value_of(store.get(b"k")) == noise(9, SIZE)
        assert not store.get(b"gone")


def test_what_leaves_is_written_after_what_it_extends(tmp_path: Path) -> None:
    """A chain loses its end first: of what a crash leaves, none may be without its start."""
    keys = names(10)
    fs = FaultyFileSystem(OsFileSystem())
    store = opened(tmp_path, ram=10 * (SIZE + KIB), fs=fs)
    values = put_chain(store, keys)
    assert written(store) == 0
    put_chain(store, [b"x"])
    assert [item.block.key for item in store._front.next_group() if item.block] == keys
    settle(store)
    for key in keys:
        assert value_of(store.get(key)) == values[key]
    die(store, fs)
    with opened(tmp_path) as store:
        assert store.match(keys) == 10


def test_every_block_is_there_all_the_time(tmp_path: Path) -> None:
    """Whatever has been evicted, replaced, deleted, or has expired, in whichever order."""
    clock, chance = HandClock(), random.Random(7)
    truth: dict[bytes, tuple[bytes, float]] = {}
    keys = names(30)
    with opened(tmp_path, ram=12 * (SIZE + KIB), queue=512 * KIB, clock=clock) as store:
        for turn in range(1_500):
            key = chance.choice(keys)
            match chance.randrange(8):
                case 0 | 1 | 2:
                    ttl = chance.choice([0, 0, 50])
                    truth[key] = noise(turn, chance.choice([100, SIZE])), clock.now + ttl if ttl else 1e9
                    store.put(key, truth[key][0], parent=chance.choice([None, *keys]), ttl=ttl)
                case 3:
                    store.delete(key)
                    truth.pop(key, None)
                case 4:
                    clock.advance(chance.choice([1, 20]))
                case 5:
                    store._back._worker.step()  # type: ignore[union-attr]
                case 6 if chance.random() < 0.1:
                    store.flush()
                case _:
                    pass
            for each in chance.sample(keys, 3):
                value, until = truth.get(each, (None, 0.0))
                hit = store.get(each)
                assert (value_of(hit) if hit else None) == (value if clock.now < until else None), (turn, each)
        store.flush()
        now = {key: value for key, (value, until) in truth.items() if clock.now < until}
    with opened(tmp_path, clock=clock) as store:
        assert {key: value_of(hit) for key in keys if (hit := store.get(key))} == now


def test_a_put_after_a_deletion_that_is_not_written_yet(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, [b"k"], SIZE)
        store.delete(b"k")
        store.put(b"k", b"new")
        assert value_of(store.get(b"k")) == b"new"
        store.flush()
        assert value_of(store.get(b"k")) == b"new"


def test_a_value_whose_time_is_up_takes_the_older_one_with_it(tmp_path: Path) -> None:
    clock = HandClock()
    with opened(tmp_path, clock=clock) as store:
        fill(store, [b"k"], SIZE)
        before = written(store)
        store.put(b"k", noise("new", SIZE), ttl=10)
        clock.advance(11)
        assert not store.get(b"k")
        store.flush()
        assert not store.get(b"k")
        assert written(store) == before


def test_a_block_that_ram_cannot_keep_is_written_at_once(tmp_path: Path) -> None:
    with opened(tmp_path, ram=SIZE) as store:
        store.put(b"start", b"small")
        store.put(b"k", noise("k", 2 * SIZE), parent=b"start")
        assert written(store) > 2 * SIZE
        assert store.explain(b"k").state is BlockState.STORED
        assert store.stats().ram.unwritten == 0


def test_a_full_queue_makes_no_room_in_ram(tmp_path: Path) -> None:
    """With ``skip`` nobody waits: what a put would displace has nowhere to go."""
    with opened(tmp_path, ram=4 * (SIZE + KIB), queue=512 * KIB, when_full="skip") as store:
        outcomes = [store.put(key, noise(key, SIZE)) for key in names(40)]
        stats = store.stats()
        assert outcomes.count(PutOutcome.SKIPPED) > 20
        assert stats.queue.bytes_used <= 512 * KIB
        kept = [key for key, outcome in zip(names(40), outcomes, strict=True) if outcome is PutOutcome.QUEUED]
        store.flush()
        assert [key for key in names(40) if store.contains(key)] == kept


def test_what_comes_up_displaces_nothing_while_the_queue_is_full(tmp_path: Path) -> None:
    with opened(tmp_path, ram=4 * (SIZE + KIB), queue=512 * KIB) as store:
        old = fill(store, names(4, "old"), SIZE)
        for key in names(9, "new"):
            store.put(key, noise(key, SIZE))
        assert store.stats().queue.bytes_used > 512 * KIB - SIZE
        woken: list[None] = []
        store._front.wake = lambda: woken.append(None)
        for key, value in old.items():
            assert value_of(store.get(key)) == value
        assert (store.stats().queue.bytes_used <= 512 * KIB, store.stats().ram.unwritten, woken) == (True, 4, [])
        store._back._worker.step()  # type: ignore[union-attr]
        hit = store.get(b"old0000")  # and now there is room for what it displaces
        assert isinstance(hit, Hit)
        assert hit.tier == "disk"
        assert (store.stats().ram.unwritten, woken) == (3, [None])


def test_memory_that_is_short_waits_for_the_disk(tmp_path: Path) -> None:
    """What has left RAM for the queue is not free yet: no more leaves before that."""
    keys = names(600)
    with opened(tmp_path, queue=512 * KIB) as store:
        for key in keys:
            store.put(key, noise(key, 4 * KIB))
        store._front.keep_ram_to(0)
        assert store.stats().ram.blocks > 300
        rounds = 0
        while store.stats().ram.blocks:
            settle(store)
            store._front.keep_ram_to(0)
            rounds += 1
        assert rounds == 2
        assert all(store.contains(key) for key in keys)


def test_to_be_read_in_ram_is_to_be_touched(tmp_path: Path) -> None:
    """What is read while it is in RAM only has had its second touch when it leaves."""
    with opened(tmp_path, tier(admission="second-touch")) as store:
        for key in (b"read", b"unread"):
            store.put(key, noise(key, SIZE))
        store.get(b"read")
        store.flush()
        assert store._back is not None
        assert [key for key in (b"read", b"unread") if store._back.has(store._wanted(key, b""))] == [b"read"]


def test_a_writer_waits_for_the_worker(tmp_path: Path) -> None:
    """With a worker of its own, four writers and a queue of five blocks."""
    settings = config(tmp_path, tier(bytes_max=64 * MIB), ram={"bytes_max": MIB, "write": "back"}, queue=512 * KIB)
    with Store.open(settings) as store:

        def write(number: int) -> None:
            put_chain(store, names(40, f"{number}-"))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.flush()
        for number in range(4):
            keys = names(40, f"{number}-")
            assert [value_of(hit) for hit in store.get_many(keys)] == [noise(key, SIZE) for key in keys]


@pytest.mark.parametrize("wrong", [{"ram": {"bytes_max": 0, "write": "back"}}, {"tier": []}])
def test_it_needs_ram_and_a_disk(tmp_path: Path, wrong: dict[str, Any]) -> None:
    settings = {
        "store": {"path": tmp_path, "value_bytes_max": KIB},
        "ram": {"write": "back"},
        "tier": [tier()],
        **wrong,
    }
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(settings)
    assert [problem.path for problem in caught.value.problems] == ["ram.write"]
