"""put, get, delete: what goes in comes out, copied as often as promised and no more."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier import BlockInfo, Config, Hit, HitInto, Miss, MissReason, PutItem, PutOutcome, Store
from tests.stores import KIB, MIB, config, fill, names, noise, settle, value_of


def address(view: memoryview) -> int:
    """Where the bytes are in memory: the first field of CPython's ``Py_buffer``."""
    py_buffer = ctypes.create_string_buffer(256)
    assert ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), py_buffer, 0) == 0
    at = ctypes.c_void_p.from_buffer(py_buffer).value
    ctypes.pythonapi.PyBuffer_Release(py_buffer)
    assert at is not None
    return at


# -- what goes in comes out --------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    value=st.lists(st.binary(max_size=5000), min_size=1, max_size=5),
    meta=st.binary(max_size=1024),
    key=st.binary(min_size=1, max_size=128),
    namespace=st.binary(max_size=64),
)
def test_buffers_meta_and_names_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: list[bytes], meta: bytes, key: bytes, namespace: bytes
) -> None:
    c = config(tmp_path_factory.mktemp("s"))
    with Store.open(c, background=False) as store:
        store.put(key, value, meta=meta, namespace=namespace)
        queued = store.get(key, namespace=namespace)
        assert isinstance(queued, Hit)
        assert ([bytes(b) for b in queued.buffers], queued.meta, queued.key, queued.tier) == (value, meta, key, "queue")
    with Store.open(c, background=False) as store:
        hit = store.get(key, namespace=namespace)
        assert isinstance(hit, Hit)
        assert ([bytes(b) for b in hit.buffers], hit.meta, hit.key, hit.tier) == (value, meta, key, "disk")
        assert hit.nbytes == sum(map(len, value))


def test_a_miss_says_that_nothing_is_there(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        miss = store.get(b"k")
        assert miss == Miss(b"k", MissReason.ABSENT)
        assert not miss
        assert store.get_into(b"k", bytearray(1)) == Miss(b"k", MissReason.ABSENT)
        assert store.stats().misses == {"absent": 2}


def test_the_last_put_of_a_key_wins(tmp_path: Path) -> None:
    for ram in (0, MIB):
        folder = tmp_path / str(ram)
        with Store.open(config(folder, ram=ram)) as store:
            for i in range(5):
                store.put(b"k", noise(i, 100 + i), meta=bytes((i,)))
                if i == 2:
                    store.flush()
                assert value_of(store.get(b"k")) == noise(i, 100 + i)
        with Store.open(config(folder)) as store:
            hit = store.get(b"k")
            assert (value_of(hit), hit.meta) == (noise(4, 104), b"\x04")  # type: ignore[union-attr]
            assert store.stats().blocks == 1


def test_namespaces_are_apart(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=MIB)) as store:
        store.put(b"k", b"one", namespace=b"a")
        store.put(b"k", b"two", namespace=b"b")
        # a name cut elsewhere is another name
        store.put(b"ck", b"three", namespace=b"")
        for _ in range(2):
            assert value_of(store.get(b"k", namespace=b"a")) == b"one"
            assert value_of(store.get(b"k", namespace=b"b")) == b"two"
            assert not store.get(b"k")
            assert not store.get(b"k", namespace=b"c")
            store.delete(b"k", namespace=b"b")
            assert not store.contains(b"k", namespace=b"b")
            store.put(b"k", b"two", namespace=b"b")
            store.flush()


def test_put_many_is_put_for_each(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        outcomes = store.put_many([PutItem(b"a", b"1", b"m"), PutItem(b"b", [b"2", b"3"], parent=b"a")], namespace=b"n")
        assert outcomes == [PutOutcome.QUEUED] * 2
        store.flush()
        assert store.info(b"a", namespace=b"n") == BlockInfo(b"a", b"m", (1,), "disk")
        assert store.info(b"b", namespace=b"n") == BlockInfo(b"b", b"", (1, 1), "disk")


def test_a_ram_store_needs_no_folder() -> None:
    with Store.open(Config.from_dict({"ram": {"bytes_max": MIB}})) as store:
        assert store.put(b"k", [b"ab", b"c"], meta=b"m") is PutOutcome.QUEUED
        hit = store.get(b"k")
        assert isinstance(hit, Hit)
        assert (value_of(hit), hit.tier) == (b"abc", "ram")
        assert store.info(b"k") == BlockInfo(b"k", b"m", (2, 1), "ram")
        assert store.match([b"k", b"l"]) == 1
        assert [bool(h) for h in store.get_many([b"l", b"k"])] == [False, True]
        assert store.prefetch([b"k", b"l"]) == 0
        store.flush()
        assert store.delete(b"k")
        assert not store.delete(b"k")
        assert not store.contains(b"k")
        fill(store, names(100), 100 * KIB)
        stats = store.stats()
        assert stats.blocks == stats.ram.blocks == 10  # 1 KiB is counted for each block's own needs
        assert stats.ram.bytes_used <= MIB
        assert stats.tiers == ()


# -- deletion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ram", [0, MIB])
def test_a_deleted_block_is_gone_at_once_and_for_good(tmp_path: Path, ram: int) -> None:
    c = config(tmp_path, ram=ram)
    with Store.open(c, background=False) as store:
        fill(store, [b"a", b"b"], 100)
        store.put(b"c", b"not yet durable")
        assert [store.delete(k) for k in (b"a", b"c", b"d")] == [True, True, False]
        for _ in range(2):  # before and after it is durable
            assert [store.contains(k) for k in (b"a", b"b", b"c")] == [False, True, False]
            assert [bool(store.get(k)) for k in (b"a", b"b", b"c")] == [False, True, False]
            assert [bool(h) for h in store.get_many([b"a", b"b", b"c"])] == [False, True, False]
            assert not store.get_into(b"a", bytearray(100))
            assert store.info(b"a") is None
            assert not store.delete(b"a")
            assert store.match([b"a", b"b"]) == 0
            store.flush()
    with Store.open(c) as store:
        assert [store.contains(k) for k in (b"a", b"b", b"c")] == [False, True, False]
        assert store.stats().blocks == 1


def test_a_key_can_be_put_again_after_deletion(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        fill(store, [b"a"], 100)
        store.delete(b"a")
        store.put(b"a", b"again")
        assert value_of(store.get(b"a")) == b"again"
        store.flush()
        assert value_of(store.get(b"a")) == b"again"


# -- copies ------------------------------------------------------------------------------------------


def test_a_hit_in_ram_is_the_very_bytes(tmp_path: Path) -> None:
    value = noise(1, 100 * KIB)
    with Store.open(config(tmp_path, ram=MIB)) as store:
        store.put(b"k", value)  # bytes are adopted, uncopied
        first, second = store.get(b"k"), store.get(b"k")
        assert isinstance(first, Hit)
        assert isinstance(second, Hit)
        assert first.buffers[0].obj is value
        assert second.buffers[0].obj is value
        many = next(store.get_many([b"k"]))
        assert isinstance(many, Hit)
        assert many.buffers[0].obj is value


def test_a_buffer_that_is_given_is_not_copied(tmp_path: Path) -> None:
    value = bytearray(noise(1, 5000))
    given = memoryview(value)[8:]
    with Store.open(config(tmp_path, ram=MIB)) as store:
        store.put(b"k", given, give=True)
        hit = store.get(b"k")
        assert isinstance(hit, Hit)
        assert address(hit.buffers[0]) == address(given)
        assert hit.buffers[0].readonly
        store.put(b"copied", given)
        other = store.get(b"copied")
        assert isinstance(other, Hit)
        assert address(other.buffers[0]) != address(given)
    with Store.open(config(tmp_path, ram=MIB)) as store:
        assert value_of(store.get(b"k")) == bytes(given)


def test_a_block_from_disk_is_copied_by_no_later_hit(tmp_path: Path) -> None:
    c = config(tmp_path, ram=MIB)
    with Store.open(c) as store:
        store.put(b"k", [noise(1, 5000), noise(2, 7000)])
    with Store.open(c) as store:
        from_disk, from_ram = store.get(b"k"), store.get(b"k")
        assert isinstance(from_disk, Hit)
        assert isinstance(from_ram, Hit)
        assert (from_disk.tier, from_ram.tier) == ("disk", "ram")
        at = [address(b) for b in from_disk.buffers]
        assert at == [address(b) for b in from_ram.buffers]
        assert at[1] - at[0] == 5000  # and the disk read was cut, not copied, into buffers


def test_a_hit_is_read_only_and_outlives_the_store(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=MIB)) as store:
        store.put(b"k", bytearray(b"abc"))
        store.flush()
        in_ram = store.get(b"k")
    with Store.open(config(tmp_path)) as store:
        on_disk = store.get(b"k")
        store.delete(b"k")
        store.flush()
    for hit in (in_ram, on_disk):
        assert isinstance(hit, Hit)
        assert hit.buffers[0].readonly
        assert bytes(hit.buffers[0]) == b"abc"


def test_a_mutable_buffer_is_the_callers_again_after_put(tmp_path: Path) -> None:
    mine = bytearray(noise(1, 1000))
    before = bytes(mine)
    with Store.open(config(tmp_path, ram=MIB), background=False) as store:
        store.put(b"k", [mine, memoryview(mine)[:10], memoryview(mine).toreadonly()])
        mine[:] = bytes(1000)
        expected = before + before[:10] + before
        assert value_of(store.get(b"k")) == expected
        store.flush()
    with Store.open(config(tmp_path)) as store:
        assert value_of(store.get(b"k")) == expected


def test_buffers_of_any_type_and_shape_are_their_bytes(tmp_path: Path) -> None:
    numbers: Any = memoryview(bytearray(24)).cast("f", (2, 3))
    with Store.open(config(tmp_path), background=False) as store:
        store.put(b"k", numbers)
        assert value_of(store.get(b"k")) == bytes(24)
        into: Any = memoryview(bytearray(b"?" * 24)).cast("d")
        assert store.get_into(b"k", into) == HitInto(b"k", 24, b"", "queue")
        assert into.tobytes() == bytes(24)


# -- identical puts ----------------------------------------------------------------------------------


def test_identical_bytes_cost_no_disk_write(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        for _ in range(3):
            store.put(b"k", noise(1, 10_000), meta=b"m")
            store.flush()
            written = store.stats().bytes_written
            assert written < 10_000 + 1024
        settle(store)
        assert store.stats().bytes_written == written
        store.put(b"k", noise(1, 10_000), meta=b"n")  # new metadata: a small record
        store.flush()
        assert 0 < store.stats().bytes_written - written < 512
        hit = store.get(b"k")
        assert (value_of(hit), hit.meta) == (noise(1, 10_000), b"n")  # type: ignore[union-attr]
    with Store.open(config(tmp_path)) as store:
        hit = store.get(b"k")
        assert (value_of(hit), hit.meta) == (noise(1, 10_000), b"n")  # type: ignore[union-attr]
