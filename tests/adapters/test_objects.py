"""Objects that an engine names itself, in a store."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtier import Config, FlushError, LimitError, PutOutcome, Store
from kvtier.fs import default_file_system
from kvtier.testing import FaultyFileSystem
from kvtier_adapters.objects import Name, Objects, namespace_of, owner_of
from tests.stores import KIB, MIB, config, names, noise, tier

SIZE = 64 * KIB
owners = st.text(st.characters(exclude_categories=["Cs"]), max_size=140)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(config(tmp_path)) as opened:
        yield opened


@pytest.fixture
def objects(store: Store) -> Objects:
    return Objects(store)


@pytest.fixture(scope="module")
def in_ram() -> Iterator[Objects]:
    with Store.open(Config(ram={"bytes_max": MIB})) as opened:
        yield Objects(opened)


def view(data: bytes) -> memoryview:
    """As an engine hands it over: memory of its own, to be used again."""
    return memoryview(bytearray(data))


def save(objects: Objects, *fields: bytes, owner: str = "", durable: bool = False) -> list[Name]:
    found = [objects.name(owner, [field]) for field in fields]
    assert PutOutcome.SKIPPED not in [objects.save(n, view(noise(n, SIZE))) for n in found]
    if durable:
        objects.flush()
    return found


def loaded(objects: Objects, name: Name, size: int = SIZE) -> bytes | None:
    into = bytearray(size)
    return bytes(into) if objects.load([name], [memoryview(into)]) == [True] else None


# -- names -------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.binary(max_size=4), max_size=4), unique_by=tuple, max_size=8))
def test_other_fields_give_another_key(in_ram: Objects, many: list[list[bytes]]) -> None:
    found = {in_ram.name("", fields).key for fields in many}
    assert len(found) == len(many)
    assert all(len(key) == 32 for key in found)


def test_how_fields_are_cut_matters(objects: Objects) -> None:
    cuts = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"", b"abc"]]
    assert len({objects.name("", fields).key for fields in cuts}) == len(cuts)


def test_a_key_tells_nothing_to_who_has_not_the_store(objects: Objects, in_ram: Objects) -> None:
    assert in_ram.name("", [b"field"]).key != objects.name("", [b"field"]).key


@given(st.lists(owners, unique=True, max_size=6))
@example(["@", "@" * 65, "@" + "a" * 63, "a" * 64, "a" * 65])
def test_owners_have_namespaces_of_their_own(many: list[str]) -> None:
    found = [namespace_of(owner) for owner in many]
    assert len(set(found)) == len(many)
    hashed = [owner.startswith("@") or len(owner.encode()) > 64 for owner in many]
    assert [len(n) for n in found] == [33 if h else len(o.encode()) for h, o in zip(hashed, many, strict=True)]
    assert [owner_of(n) for n in found] == [None if h else o for o, h in zip(many, hashed, strict=True)]


def test_a_namespace_of_someone_else_is_no_owner() -> None:
    assert owner_of(b"\xff") is None


# -- saving and loading ------------------------------------------------------------------------------------


def test_an_object_comes_back_and_only_for_its_owner(objects: Objects) -> None:
    (name,) = save(objects, b"x", owner="tenant")
    assert loaded(objects, name) == noise(name, SIZE)
    assert loaded(objects, objects.name("other", [b"x"])) is None


def test_what_cannot_be_loaded_costs_no_other(objects: Objects) -> None:
    (theirs,) = save(objects, b"x", owner="them", durable=True)
    a, b, c = save(objects, b"a", b"b", b"c", durable=True)
    asked = [a, theirs, b, objects.name("", [b"absent"]), c]
    into = [bytearray(SIZE), bytearray(SIZE), bytearray(SIZE // 2), bytearray(SIZE), bytearray(SIZE)]
    assert objects.load(asked, [memoryview(i) for i in into]) == [True, True, False, False, True]
    assert [bytes(into[i]) for i in (0, 1, 4)] == [noise(name, SIZE) for name in (a, theirs, c)]
    assert objects.load([], []) == []


def test_memory_that_is_gone_costs_its_own_object_only(objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
    found = save(objects, *names(4), durable=True)
    into = [view(bytes(SIZE)) for _ in found]
    into[2].release()
    assert objects.load(found, into) == [True, True, False, True]
    assert [bytes(into[i]) for i in (0, 1, 3)] == [noise(found[i], SIZE) for i in (0, 1, 3)]
    assert caplog.messages == ["kvtier: an object was not loaded"]


def test_what_does_not_fit_has_nothing_counted_twice() -> None:
    with Store.open(Config(ram={"bytes_max": MIB})) as store:
        objects = Objects(store)
        found = save(objects, *names(3))
        assert objects.load(found, [view(bytes(size)) for size in (SIZE, SIZE, 5)]) == [True, True, False]
        (namespace,) = store.stats().namespaces
        assert namespace.hits == 2


def test_objects_side_by_side_come_in_one_read(tmp_path: Path) -> None:
    fs = FaultyFileSystem(default_file_system())
    with Store.open(config(tmp_path), fs=fs) as store:
        objects = Objects(store)
        found = save(objects, *names(8), durable=True)
        before = fs.counts["read_at"]
        assert all(objects.load(found, [view(bytes(SIZE)) for _ in found]))
        assert fs.counts["read_at"] == before + 1


def test_the_memory_of_a_saved_object_can_be_used_again(objects: Objects) -> None:
    name, data = objects.name("", [b"x"]), view(noise("x", SIZE))
    objects.save(name, data)
    data[:] = bytes(SIZE)
    assert loaded(objects, name) == noise("x", SIZE)


def test_what_is_there_is_not_stored_again(store: Store, objects: Objects) -> None:
    (name,) = save(objects, b"a")
    assert objects.save(name, view(bytes(SIZE))) is None
    assert loaded(objects, name) == noise(name, SIZE)
    assert store.stats().puts == 1


def test_another_size_takes_the_place_of_what_is_there(objects: Objects) -> None:
    (name,) = save(objects, b"a", durable=True)
    assert loaded(objects, name, SIZE // 2) is None
    assert objects.save(name, view(noise("half", SIZE // 2)))
    assert objects.save(name, view(noise("half", SIZE // 2))) is None
    objects.flush()
    assert loaded(objects, name, SIZE // 2) == noise("half", SIZE // 2)


def test_what_cannot_be_read_can_be_stored_again(tmp_path: Path) -> None:
    fs = FaultyFileSystem(default_file_system())
    with Store.open(config(tmp_path), fs=fs) as store:
        objects = Objects(store)
        name, other = save(objects, b"a", b"b", durable=True)
        fs.fail_at(1, errno.EIO, op="read_at", lasting=True)
        assert (loaded(objects, name), loaded(objects, other)) == (None, None)
        fs.heal()
        assert objects.save(name, view(noise(name, SIZE)))
        assert objects.save(name, view(noise(name, SIZE))) is None
        assert store.stats().puts == 3
        assert loaded(objects, other) == noise(other, SIZE)  # it can be read after all
        assert objects.save(other, view(noise(other, SIZE))) is None


def test_durable_waits_for_the_disk(store: Store, objects: Objects) -> None:
    save(objects, b"a", b"b", durable=True)
    assert store.stats().queue.blocks == 0
    assert store.stats().tiers[0].bytes_written > 2 * SIZE


def test_durable_says_if_the_disk_did_not_take_it(tmp_path: Path) -> None:
    fs = FaultyFileSystem(default_file_system())
    with Store.open(config(tmp_path), fs=fs) as store:
        fs.fail_at(1, errno.EIO, op="sync_data", lasting=True)
        with pytest.raises(FlushError):
            save(Objects(store), b"a", durable=True)


def test_a_full_queue_that_skips_is_told(tmp_path: Path) -> None:
    settings = config(tmp_path, queue=SIZE, value_bytes_max=SIZE, when_full="skip")
    with Store.open(settings, background=False) as store:
        objects = Objects(store)
        found = [objects.name("", [field]) for field in (b"a", b"b")]
        outcomes = [objects.save(n, view(noise(n, SIZE))) for n in found]
        assert outcomes == [PutOutcome.QUEUED, PutOutcome.SKIPPED]


def test_an_object_over_the_limit_is_an_error(objects: Objects) -> None:
    with pytest.raises(LimitError):
        objects.save(objects.name("", [b"x"]), view(bytes(MIB)))


def test_what_cannot_be_loaded_is_a_miss(store: Store, objects: Objects) -> None:
    (name,) = save(objects, b"x")
    assert loaded(objects, name, SIZE + 1) is None
    assert loaded(objects, objects.name("", [b"absent"])) is None
    store.close()
    assert loaded(objects, name) is None


# -- locks and deletes -------------------------------------------------------------------------------------


def test_a_locked_object_stays_until_it_is_unlocked_as_often(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, tier(bytes_max=4 * MIB))) as store:
        objects = Objects(store)
        (kept,) = save(objects, b"kept", durable=True)
        assert objects.lock([kept, objects.name("", [b"absent"])]) == [True, False]
        assert objects.lock([kept]) == [True]
        objects.unlock([kept])
        save(objects, *names(80), durable=True)
        assert loaded(objects, kept) == noise(kept, SIZE)
        assert store.stats().pinned == 1
        objects.unlock([kept])
        save(objects, *names(160), durable=True)
        assert loaded(objects, kept) is None


def test_locks_are_by_owner(store: Store, objects: Objects) -> None:
    ours, theirs = (save(objects, b"x", owner=owner)[0] for owner in ("us", "them"))
    assert objects.lock([ours, theirs, ours]) == [True] * 3
    objects.unlock([theirs, ours])
    assert store.stats().pinned == 1


def test_a_failed_lookup_leaves_no_lock(store: Store, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(key: bytes, *, namespace: bytes) -> bool:
        raise OSError(5, "gone")

    (name,) = save(objects, b"x")
    monkeypatch.setattr(store, "contains", fail)
    with pytest.raises(OSError, match="gone"):
        objects.lock([name])
    assert store.stats().pinned == 0


def test_a_lookup_that_fails_midway_leaves_no_lock(
    store: Store, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = store.pin

    def fail_for_them(keys: list[bytes], *, namespace: bytes) -> None:
        if namespace == b"them":
            raise OSError(5, "gone")
        pin(keys, namespace=namespace)

    (ours,) = save(objects, b"x", owner="us")
    assert objects.lock([ours]) == [True]
    monkeypatch.setattr(store, "pin", fail_for_them)
    with pytest.raises(OSError, match="gone"):
        objects.lock([ours, objects.name("them", [b"x"])])
    assert store.stats().pinned == 1
    objects.unlock([ours])
    assert store.stats().pinned == 0


def test_a_delete_gives_the_size_of_what_was_there(objects: Objects) -> None:
    (name,) = save(objects, b"x")
    absent = objects.name("", [b"absent"])
    assert objects.lock([name]) == [True]
    assert [objects.delete(n) for n in (absent, name, name)] == [None, SIZE, None]
    assert loaded(objects, name) is None
