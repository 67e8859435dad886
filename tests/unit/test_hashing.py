"""Content ids that are found ahead, on a thread: the same as those found at once, whatever becomes of the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier import FlushError, Key, Store
from kvtier.background import hashing
from kvtier.background.hashing import LEAST_BYTES, ContentIds
from kvtier.background.write_behind import Pending
from kvtier.identity import Identity
from kvtier.tiers.drafts import content_id_of
from kvtier.tiers.ram import RamBlock
from kvtier.vault import KeyMissing, KeyUnavailable, Vault
from tests.stores import KIB, MIB, config, names, noise, tier, value_of

VAULT = Vault(Identity(bytes(16), bytes(32), "test"))


class Held:
    """In the place of :func:`content_id_of`: what the thread begins with waits until it is let go."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []  #: keys, in order
        self.at_once: list[bytes] = []  #: those that were not found on the thread
        self.has_begun = threading.Semaphore(0)
        self.go = threading.Event()
        self._asking = threading.get_ident()

    def __call__(self, vault: Vault, block: RamBlock) -> bytes:
        if threading.get_ident() == self._asking:
            self.at_once.append(block.key)
        else:
            self.begun.append(block.key)
            self.has_begun.release()
            self.go.wait()
        return content_id_of(vault, block)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held()
    monkeypatch.setattr(hashing, "content_id_of", made)
    yield made
    made.go.set()


@pytest.fixture
def ids() -> Iterator[ContentIds]:
    made = ContentIds(VAULT)
    yield made
    made.close()


def pending(number: int, size: int = LEAST_BYTES) -> Pending:
    key = b"k%d" % number
    return Pending(number, number, RamBlock(b"", key, 0, b"", (memoryview(noise(key, size)),)))


def of(ids: ContentIds, item: Pending) -> bytes:
    assert item.block is not None
    return ids.of(item, item.block)


def wait_for(ids: ContentIds, item: Pending) -> None:
    """Until the thread is done with it."""
    with ids._changed:
        assert ids._changed.wait_for(lambda: ids._jobs[item].is_done, 60)


def right(item: Pending) -> bytes:
    assert item.block is not None
    return content_id_of(VAULT, item.block)


@pytest.mark.parametrize("size", [0, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 1])
def test_they_are_those_found_at_once(ids: ContentIds, size: int) -> None:
    items = [pending(i, size) for i in range(5)]
    ids.expect(items)
    assert [of(ids, item) for item in items] == [right(item) for item in items]
    late = pending(9, size)
    assert of(ids, late) == right(late), "of which nobody said that it comes"


def test_nothing_is_kept_of_a_block_that_was_hashed(ids: ContentIds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is used again once nobody sees it."""
    looks_on, next_job = threading.Semaphore(0), ids._next

    def noted() -> object:
        looks_on.release()
        return next_job()

    monkeypatch.setattr(ids, "_next", noted)
    memory = bytearray(LEAST_BYTES)
    item = Pending(1, 1, RamBlock(b"", b"k", 0, b"", (memoryview(memory),)))
    ids.expect([item])
    assert all(looks_on.acquire(timeout=60) for _ in range(2)), "when it begins, and behind the block"
    assert of(ids, item) == right(item)
    del item
    memory.append(0)  # which fails while anyone sees it


def test_only_long_blocks_are_handed_over(ids: ContentIds, held: Held) -> None:
    short, long, deletion = pending(0, LEAST_BYTES - 1), pending(1), Pending(2, 2, None)
    ids.expect([short, deletion, long])
    held.has_begun.acquire()
    assert held.begun == [b"k1"]
    held.go.set()
    assert (of(ids, short), of(ids, long)) == (right(short), right(long))
    assert (held.begun, held.at_once) == ([b"k1"], [b"k0"])


def test_what_the_thread_has_not_begun_is_done_at_once(ids: ContentIds, held: Held) -> None:
    first, second, third = items = [pending(i) for i in range(3)]
    ids.expect(items)
    held.has_begun.acquire()
    assert [of(ids, second), of(ids, third)] == [right(second), right(third)]
    assert held.at_once == [b"k1", b"k2"]
    held.go.set()
    assert of(ids, first) == right(first)
    assert held.begun == [b"k0"], "what was done at once is not begun any more"


def test_it_is_begun_once_however_often_it_is_expected(ids: ContentIds, held: Held) -> None:
    held.go.set()
    items = [pending(i) for i in range(4)]
    for count in range(1, 5):
        ids.expect(items[:count])
    assert [of(ids, item) for item in items] == [right(item) for item in items]
    assert sorted([*held.begun, *held.at_once]) == [b"k0", b"k1", b"k2", b"k3"]


def test_a_block_that_was_replaced_while_it_was_hashed(ids: ContentIds, held: Held) -> None:
    """The new one has an id of its own, also under the same key; what is left of the old one is dropped."""
    old, waiting, deleted = pending(1), pending(2), pending(3)
    new = Pending(1, 4, RamBlock(b"", b"k1", 0, b"", (memoryview(noise("new", LEAST_BYTES)),)))
    ids.expect([old, waiting, deleted])
    held.has_begun.acquire()
    ids.expect([waiting, Pending(3, 5, None), new])
    assert ids._jobs.keys() == {waiting, new}
    held.go.set()
    assert (of(ids, waiting), of(ids, new)) == (right(waiting), right(new))
    assert right(new) != right(old)
    assert b"k3" not in held.begun
    assert not ids._jobs


def test_keys_that_are_missing_are_said_to_whoever_asks(ids: ContentIds, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(vault: Vault, block: RamBlock) -> bytes:
        raise KeyMissing("there is none")

    monkeypatch.setattr(hashing, "content_id_of", missing)
    first, second = pending(0), pending(1)
    ids.expect([first])
    for item in (first, second):
        with pytest.raises(KeyMissing, match="there is none"):
            of(ids, item)


def test_keys_that_were_asked_for_too_early_are_asked_for_again(
    ids: ContentIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(vault: Vault, block: RamBlock) -> bytes:
        raise KeyUnavailable("the provider is away")

    monkeypatch.setattr(hashing, "content_id_of", unavailable)
    item = pending(0)
    ids.expect([item])
    wait_for(ids, item)
    monkeypatch.undo()
    assert of(ids, item) == right(item)


def test_ids_from_before_keys_were_forgotten_are_not_used(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that is found by then, nor one that is being found."""
    vault = Vault(Identity(bytes(16), bytes(32), "test"))
    ids, items = ContentIds(vault), [pending(i) for i in range(2)]
    ids.expect(items)
    held.has_begun.acquire()
    monkeypatch.setattr(vault, "era", object())
    held.go.set()
    wait_for(ids, items[0])
    assert of(ids, items[0]) == right(items[0])
    assert held.at_once == [b"k0"]
    wait_for(ids, items[1])
    assert of(ids, items[1]) == right(items[1])
    assert held.at_once == [b"k0"], "it was begun after that"
    ids.close()


def test_without_a_thread_all_is_done_at_once(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is going down, or the system lets nobody have another one."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    ids, items = ContentIds(VAULT), [pending(i) for i in range(3)]
    ids.expect(items)
    assert [of(ids, item) for item in items] == [right(item) for item in items]
    assert held.at_once == [b"k0", b"k1", b"k2"]
    ids.close()


def test_nothing_is_left_after_closing(ids: ContentIds, held: Held) -> None:
    ids.expect([pending(i) for i in range(8)])
    held.has_begun.acquire()
    closing = threading.Thread(target=ids.close)
    closing.start()
    held.go.set()
    closing.join()
    assert held.begun == [b"k0"], "the rest was cancelled"
    assert not any(t.name.startswith("kvtier-hash") for t in threading.enumerate())


# -- in a store --------------------------------------------------------------------------------------

BIG = tier(bytes_max=64 * MIB, segment_bytes=8 * MIB)


def test_a_store_finds_equal_contents_with_and_without(tmp_path: Path) -> None:
    for background in (True, False):
        with Store.open(config(tmp_path / str(background), BIG), background=background) as store:
            for i in range(12):
                store.put(b"k%d" % i, noise(i % 4, 300 * KIB + i % 4))
            store.flush()
            stats = store.stats()
            assert (stats.blocks, stats.dedup.blocks) == (12, 8)
            assert value_of(store.get(b"k11")) == noise(3, 300 * KIB + 3)


def test_blocks_that_are_replaced_or_deleted_while_they_are_hashed(tmp_path: Path, held: Held) -> None:
    values = {key: noise((key, "new"), 300 * KIB + 1) for key in names(4)}
    with Store.open(config(tmp_path, BIG)) as store:
        for key in names(8):
            store.put(key, noise(key, 300 * KIB))
        held.has_begun.acquire()
        for key, value in values.items():
            store.put(key, value)
        for key in names(8)[4:]:
            store.delete(key)
        held.go.set()
        store.flush()
        assert [value_of(store.get(key)) for key in values] == list(values.values())
    with Store.open(config(tmp_path, BIG)) as store:
        assert [value_of(store.get(key)) for key in values] == list(values.values())
        assert store.stats().blocks == 4


@contextmanager
def keys_forgotten_meanwhile(store: Store, change: Callable[[], None]) -> Iterator[None]:
    """Inside, the worker waits. Then ids of what is queued are found; keys change and are forgotten; and it goes on."""
    back, go_on, is_asked_for = store._back, threading.Event(), threading.Event()
    assert back is not None
    assert back._content_ids is not None
    submit = back._worker.submit

    def submitted(job: Callable[[], None], *, lazy: bool = False) -> None:
        submit(job, lazy=lazy)
        is_asked_for.set()

    submit(lambda: None if go_on.wait(60) else pytest.fail("nobody let the worker go on"))
    setattr(back._worker, "submit", submitted)  # noqa: B010
    yield
    back._content_ids.expect(store._front.queued())
    for item in tuple(back._content_ids._jobs):
        wait_for(back._content_ids, item)
    change()
    forgetting = threading.Thread(target=store.forget_keys)
    forgetting.start()
    assert is_asked_for.wait(60)
    go_on.set()
    forgetting.join()


class KeyRing:
    """A key provider whose newest key counts."""

    newest = "1"
    shut: bytes | None = None

    def __call__(self, namespace: bytes | None, key_id: str | None) -> Key:
        if namespace is not None and namespace == self.shut:
            raise LookupError("erased")
        chosen = key_id or self.newest
        return Key(chosen, noise(("key", namespace, chosen), 32))


def test_a_namespace_whose_key_is_gone_loses_its_long_blocks_only(tmp_path: Path) -> None:
    ring = KeyRing()
    with Store.open(config(tmp_path, BIG), keys=ring) as store:
        with keys_forgotten_meanwhile(store, lambda: setattr(ring, "shut", b"shut")):
            for key in names(6):
                for namespace in (b"shut", b"open"):
                    store.put(key, noise(key, 300 * KIB), namespace=namespace)
        with pytest.raises(FlushError) as failed:
            store.flush()
        assert failed.value.failed == 6
        for key in names(6):
            assert value_of(store.get(key, namespace=b"open")) == noise(key, 300 * KIB)
            assert not store.get(key, namespace=b"shut")


def test_what_was_queued_when_keys_changed_is_known_by_the_new_ones(tmp_path: Path) -> None:
    """Equal blocks from before and after are one."""
    ring = KeyRing()
    with Store.open(config(tmp_path, BIG), keys=ring) as store:
        with keys_forgotten_meanwhile(store, lambda: setattr(ring, "newest", "2")):
            store.put(b"before", noise("a value", 300 * KIB))
        store.put(b"after", noise("a value", 300 * KIB))
        store.flush()
        assert store.stats().dedup.blocks == 1
