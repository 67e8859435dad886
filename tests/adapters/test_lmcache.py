"""LMCache with a store as its second level: the real package, on the CPU. `make lmcache` makes its environment."""

from __future__ import annotations

import errno
import json
import os
import pkgutil
import select
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench.peers.lmcache_left_out import LEFT_OUT
from kvtier import ConfigError, LimitError, PutOutcome, StoreLocked
from tests.stores import KIB, MIB

os.environ.update(LMCACHE_TRACK_USAGE="false", LMCACHE_DISABLE_BANNER="1", LMCACHE_LOG_LEVEL="ERROR")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what others deprecate is not ours to mend
    pytest.importorskip("lmcache", reason="LMCache is not installed here: `make lmcache` has it in its own environment")
    import torch
    from lmcache.cli.commands.bench.l2_adapter_bench import data
    from lmcache.v1.distributed import l2_adapters
    from lmcache.v1.distributed.api import GroupedObjectKeys, MemoryLayoutDesc, ObjectKey
    from lmcache.v1.distributed.config import parse_args
    from lmcache.v1.distributed.internal_api import L2AdapterListener
    from lmcache.v1.distributed.l2_adapters import create_l2_adapter
    from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
    from lmcache.v1.distributed.storage_manager import PrefetchTaskSpec, StorageManager
    from lmcache.v1.platform import create_event_notifier

    import kvtier_adapters.lmcache
    from kvtier_adapters.lmcache import KvtierL2Adapter

pytestmark = pytest.mark.filterwarnings("default")

SIZE = 64 * KIB
WAIT_S = 60.0
KEY = ObjectKey(b"h" * 32, "meta-llama/Llama-3.1-8B", 0x01000100)


def params(folder: Path, bytes_max: int = 64 * MIB, **more: Any) -> dict[str, Any]:
    tier = {"name": "disk", "kind": "ssd", "bytes_max": bytes_max, "segment_bytes": MIB}
    settings = {
        "store": {"path": str(folder / "store"), "value_bytes_max": 512 * KIB},
        "ram": {"bytes_max": 0},
        "tier": [tier],
    }
    return {"config": settings, **more}


def spec(parameters: Mapping[str, Any]) -> str:
    """What an operator writes behind ``--l2-adapter``."""
    plugin = {"type": "plugin", "module_path": "kvtier_adapters.lmcache", "class_name": "KvtierL2Adapter"}
    return json.dumps({**plugin, "adapter_params": parameters})


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., KvtierL2Adapter]]:
    """``opened(**params)``: an adapter on the store of this test; the one before it is closed."""
    current: list[KvtierL2Adapter] = []

    def open_one(**changes: Any) -> KvtierL2Adapter:
        while current:
            current.pop().close()
        current.append(KvtierL2Adapter(params(tmp_path, **changes)))
        return current[0]

    yield open_one
    for adapter in current:
        adapter.close()


@pytest.fixture
def adapter(opened: Callable[..., KvtierL2Adapter]) -> KvtierL2Adapter:
    return opened()


def memory(count: int, first: int = 1) -> list[Any]:
    """LMCache's memory objects; object ``i`` is filled with the byte ``first + i``."""
    buffer = data.make_aligned_tensor(count * SIZE)
    return list(data.make_memory_objects(buffer, count, SIZE, 0, fill_offset=first))


def wait(fd: int) -> None:
    assert data.wait_eventfd(fd, timeout=WAIT_S), "no event"


def store(adapter: Any, keys: Sequence[Any], objects: Sequence[Any]) -> Any:
    task = adapter.submit_store_task(list(keys), list(objects))
    wait(adapter.get_store_event_fd())
    (found,) = adapter.pop_completed_store_tasks().items()
    assert found[0] == task
    return found[1]


def found(adapter: Any, keys: Sequence[Any]) -> list[bool]:
    task = adapter.submit_lookup_and_lock_task(list(keys), {})
    wait(adapter.get_lookup_and_lock_event_fd())
    bitmap = adapter.query_lookup_and_lock_result(task)
    assert adapter.query_lookup_and_lock_result(task) is None
    return [bitmap.test(i) for i in range(len(keys))]


def load(adapter: Any, keys: Sequence[Any], objects: Sequence[Any]) -> list[bool]:
    task = adapter.submit_load_task(list(keys), list(objects))
    wait(adapter.get_load_event_fd())
    bitmap = adapter.query_load_result(task)
    assert adapter.query_load_result(task) is None
    return [bitmap.test(i) for i in range(len(keys))]


def contents(objects: Sequence[Any]) -> list[bytes]:
    return [bytes(o.byte_array) for o in objects]


# -- what is stored comes back -----------------------------------------------------------------------------


def test_lmcache_makes_it_from_its_command_line(tmp_path: Path) -> None:
    class Arguments:
        l2_adapter = (spec(params(tmp_path)),)

    (config,) = parse_args_to_l2_adapters_config(Arguments()).adapters
    buffer = data.make_aligned_tensor(SIZE)
    adapter = create_l2_adapter(config, l1_memory_desc=data.create_l1_memory_desc(buffer))
    try:
        assert type(adapter) is KvtierL2Adapter
        assert not adapter.supports_global_eviction
    finally:
        adapter.close()


def test_objects_come_back_byte_by_byte(adapter: Any) -> None:
    keys, objects = data.make_object_keys(9), memory(9)
    result = store(adapter, keys, objects)
    assert (result.is_successful(), result.bytes_transferred()) == (True, 9 * SIZE)
    assert found(adapter, keys) == [True] * 9
    into = memory(9, first=100)
    assert load(adapter, keys, into) == [True] * 9
    assert contents(into) == contents(objects)


def test_they_outlive_the_adapter(opened: Callable[..., Any]) -> None:
    keys, objects = data.make_object_keys(3), memory(3)
    store(opened(), keys, objects)
    adapter = opened()
    assert found(adapter, keys) == [True] * 3
    into = memory(3, first=100)
    assert load(adapter, keys, into) == [True] * 3
    assert contents(into) == contents(objects)
    assert adapter.get_usage().bytes_by_cache_salt == {"": 3 * SIZE}
    assert adapter.get_usage().total_bytes_used > 3 * SIZE


def test_a_store_that_is_durable_is_on_disk_when_it_is_done(opened: Callable[..., Any]) -> None:
    adapter = opened(durable=True)
    assert store(adapter, data.make_object_keys(4), memory(4)).is_successful()
    assert adapter._store.stats().queue.blocks == 0


def test_each_event_has_a_descriptor_of_its_own(adapter: Any) -> None:
    fds = {adapter.get_store_event_fd(), adapter.get_lookup_and_lock_event_fd(), adapter.get_load_event_fd()}
    assert len(fds) == 3
    assert select.select(list(fds), [], [], 0)[0] == []


@pytest.mark.parametrize("task", ["store", "lookup", "load"])
def test_a_task_of_nothing_ends_too(adapter: Any, task: str) -> None:
    if task == "store":
        assert store(adapter, [], []).is_successful()
    else:
        assert (found(adapter, []) if task == "lookup" else load(adapter, [], [])) == []


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_hash": b"h" * 31},
        {"model_name": "meta-llama/Llama-3.1-8b"},
        {"kv_rank": 0x01000101},
        {"object_group_id": 1},
        {"cache_salt": "tenant"},
        {"cache_salt": "t" * 128},
    ],
    ids=str,
)
def test_every_field_of_a_key_counts(adapter: Any, change: dict[str, Any]) -> None:
    other = replace(KEY, **change)
    store(adapter, [KEY], memory(1, first=1))
    assert found(adapter, [KEY, other]) == [True, False]
    store(adapter, [other], memory(1, first=2))
    into = memory(2, first=100)
    assert load(adapter, [KEY, other], into) == [True, True]
    assert [content[0] for content in contents(into)] == [1, 2]


# -- what goes wrong is a miss -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "load_threads"), [(1, 4), (2, 4), (7, 1), (7, 2), (33, 2), (33, 4)])
def test_threads_share_a_load_to_its_last_object(opened: Callable[..., Any], count: int, load_threads: int) -> None:
    adapter = opened(load_threads=load_threads)
    keys = [replace(KEY, kv_rank=rank) for rank in range(count)]
    stored = memory(count)
    store(adapter, keys, stored)
    into = memory(count, first=100)
    assert load(adapter, keys, into) == [True] * count
    assert contents(into) == contents(stored)


def test_what_is_not_there_is_a_miss_among_hits(adapter: Any) -> None:
    keys = data.make_object_keys(7)
    store(adapter, keys[1::2], memory(3))
    assert found(adapter, keys) == [False, True] * 3 + [False]
    assert load(adapter, keys, memory(7)) == [False, True] * 3 + [False]


def test_an_object_of_another_size_is_a_miss(adapter: Any) -> None:
    store(adapter, [KEY], memory(1))
    (smaller,) = memory(1)
    smaller.set_used_size(SIZE - 1)
    assert load(adapter, [KEY], [smaller]) == [False]


def test_another_data_type_takes_the_place_of_the_one_before(opened: Callable[..., Any]) -> None:
    store(opened(), [KEY], memory(1))
    adapter, (smaller,), (into,) = opened(), memory(1, first=7), memory(1)
    smaller.set_used_size(SIZE // 2)
    into.set_used_size(SIZE // 2)
    assert load(adapter, [KEY], [into]) == [False]
    assert store(adapter, [KEY], [smaller]).bytes_transferred() == SIZE // 2
    assert load(adapter, [KEY], [into]) == [True]
    assert contents([into]) == [bytes([7]) * (SIZE // 2)]


def test_damage_is_a_miss_and_can_be_stored_again(opened: Callable[..., Any], tmp_path: Path) -> None:
    keys, objects = data.make_object_keys(2), memory(2, first=77)
    store(opened(), keys, objects)
    opened().close()
    (segment,) = (tmp_path / "store").rglob("*.seg")
    raw = bytearray(segment.read_bytes())
    raw[raw.index(bytes([78]) * SIZE) + 5] ^= 1
    segment.write_bytes(raw)
    adapter = opened()
    assert load(adapter, keys, memory(2)) == [True, False]
    assert found(adapter, keys) == [True, False]
    assert store(adapter, keys, objects).bytes_transferred() == SIZE
    into = memory(2)
    assert load(adapter, keys, into) == [True, True]
    assert contents(into) == contents(objects)


def test_a_failed_store_says_so_and_the_next_one_works(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise LimitError("too big")

    with monkeypatch.context() as patched:
        patched.setattr(adapter._store, "put", fail)
        assert not store(adapter, [KEY], memory(1)).is_successful()
    assert store(adapter, [KEY], memory(1)).is_successful()


def test_a_full_queue_that_skips_is_a_failed_store(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put = adapter._store.put
    outcomes = iter([PutOutcome.QUEUED, PutOutcome.SKIPPED])
    monkeypatch.setattr(adapter._store, "put", lambda *a, **k: put(*a, **k) and next(outcomes))
    assert not store(adapter, data.make_object_keys(2), memory(2)).is_successful()


def test_memory_that_cannot_be_reached_fails_its_task_only(adapter: Any) -> None:
    class Elsewhere:
        @property
        def byte_array(self) -> memoryview:
            raise NotImplementedError("on a GPU")

    assert not store(adapter, [KEY], [Elsewhere()]).is_successful()
    store(adapter, [KEY], memory(1))
    assert load(adapter, [KEY], [Elsewhere()]) == [False]
    assert load(adapter, [KEY], memory(1)) == [True]


def test_what_is_wrong_with_an_object_costs_no_other_of_its_load(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        @property
        def byte_array(self) -> memoryview:
            raise NotImplementedError("on a GPU")

    class Gone:
        byte_array = memoryview(bytearray(SIZE))

    lines: list[str] = []
    monkeypatch.setattr(kvtier_adapters.lmcache.logger, "exception", lambda line, *args: lines.append(line % args))
    Gone.byte_array.release()
    adapter = opened(load_threads=1)
    keys, into = list(data.make_object_keys(20)), memory(20)
    store(adapter, keys, memory(20, first=100))
    keys[0] = replace(keys[0], cache_salt="\ud800")
    into[1], into[2] = Elsewhere(), Gone()
    assert load(adapter, keys, into) == [False] * 3 + [True] * 17
    assert contents(into[3:]) == contents(memory(20, first=100)[3:])
    assert lines == ["kvtier: an object was not loaded"] * 3


# -- locks, deletes, threads -------------------------------------------------------------------------------


def test_a_locked_object_is_not_evicted_until_it_is_unlocked(opened: Callable[..., Any]) -> None:
    adapter = opened(bytes_max=4 * MIB, durable=True)
    store(adapter, [KEY], memory(1))
    assert found(adapter, [KEY]) == found(adapter, [KEY]) == [True]
    adapter.submit_unlock([KEY])
    for first in range(0, 160, 40):
        store(adapter, data.make_object_keys(40, key_offset=first), memory(40, first))
    assert load(adapter, [KEY], memory(1)) == [True]
    adapter.submit_unlock([KEY])
    for first in range(200, 360, 40):
        store(adapter, data.make_object_keys(40, key_offset=first), memory(40, first))
    assert load(adapter, [KEY], memory(1)) == [False]


class Heard(L2AdapterListener):  # type: ignore[misc]
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def on_l2_keys_stored(self, keys: list[Any], sizes: list[int]) -> None:
        self.calls.append(("stored", sum(sizes)))

    def on_l2_keys_accessed(self, keys: list[Any]) -> None:
        self.calls.append(("accessed", len(keys)))

    def on_l2_keys_deleted(self, keys: list[Any]) -> None:
        self.calls.append(("deleted", len(keys)))


def test_listeners_hear_of_what_happened(adapter: Any) -> None:
    keys, heard = data.make_object_keys(3), Heard()
    adapter.register_listener(heard)
    store(adapter, keys[:2], memory(2))
    store(adapter, keys, memory(3))
    load(adapter, [*keys, KEY], memory(4))
    adapter.delete([KEY, *keys])
    adapter.delete(keys)
    assert heard.calls == [("stored", 2 * SIZE), ("stored", SIZE), ("accessed", 3), ("deleted", 3)]
    assert found(adapter, keys) == [False] * 3


@pytest.mark.parametrize("fails", ["put", "flush"])
def test_listeners_hear_of_what_a_failed_store_has_stored(
    opened: Callable[..., Any], fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, keys, heard = opened(durable=True), data.make_object_keys(2), Heard()
    adapter.register_listener(heard)
    with monkeypatch.context() as patched:
        patched.setattr(adapter._store, fails, failing(adapter._store.put, 1) if fails == "put" else failing())
        assert not store(adapter, keys, memory(2)).is_successful()
    count = 1 if fails == "put" else 2
    assert heard.calls == [("stored", count * SIZE)]
    assert store(adapter, keys, memory(2)).bytes_transferred() == (2 - count) * SIZE
    assert sum(size for _, size in heard.calls) == 2 * SIZE


def test_a_listener_that_fails_fails_no_store(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_notify_keys_stored", failing())
    assert store(adapter, [KEY], memory(1)).bytes_transferred() == SIZE


def test_no_unlock_or_delete_raises(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, heard, logged = data.make_object_keys(2), Heard(), []
    store(adapter, keys, memory(2))
    adapter.register_listener(heard)
    monkeypatch.setattr(kvtier_adapters.lmcache.logger, "exception", lambda text, *more: logged.append(text % more))
    with monkeypatch.context() as patched:
        patched.setattr(adapter._store, "delete", failing(adapter._store.delete, 1))
        adapter.delete(keys)
    assert heard.calls == [("deleted", 1)]
    monkeypatch.setattr(adapter._store, "unpin", failing())
    adapter.submit_unlock(keys)
    assert logged == ["kvtier: not all of 2 objects were deleted", "kvtier: 2 objects were not unlocked"]


def failing(first: Callable[..., Any] | None = None, times: int = 0) -> Callable[..., Any]:
    """``first`` so many times, then an error."""
    left = [first] * times

    def call(*args: Any, **options: Any) -> Any:
        if not left:
            raise OSError(errno.EIO, "gone")
        return left.pop()(*args, **options)  # type: ignore[misc]

    return call


class Blocking:
    """Memory that cannot be had yet."""

    def __init__(self) -> None:
        self.asked, self.free = threading.Event(), threading.Event()

    @property
    def byte_array(self) -> memoryview:
        self.asked.set()
        assert self.free.wait(WAIT_S)
        return memoryview(bytearray(SIZE))

    def get_size(self) -> int:
        return SIZE


def test_no_submit_waits_for_what_is_under_way(adapter: Any) -> None:
    keys, blocking = data.make_object_keys(3), Blocking()
    store(adapter, keys[:1], memory(1))
    task = adapter.submit_store_task([KEY], [blocking])
    adapter.submit_store_task(keys[1:], memory(2))
    assert found(adapter, keys) == [True, False, False]
    assert load(adapter, keys[:1], memory(1)) == [True]
    assert adapter.pop_completed_store_tasks() == {}
    blocking.free.set()
    done: dict[int, Any] = {}
    while len(done) < 2:
        wait(adapter.get_store_event_fd())
        done |= adapter.pop_completed_store_tasks()
    assert [result.is_successful() for result in done.values()] == [True, True]
    assert next(iter(done)) == task


def test_close_waits_for_memory_in_use_and_lets_the_store_go(opened: Callable[..., Any], tmp_path: Path) -> None:
    adapter, blocking = opened(), Blocking()
    store(adapter, [KEY], memory(1))
    with pytest.raises(StoreLocked):
        KvtierL2Adapter(params(tmp_path))
    adapter.submit_load_task([KEY], [blocking])
    assert blocking.asked.wait(WAIT_S)
    closing = threading.Thread(target=adapter.close)
    closing.start()
    closing.join(0.5)  # one that did not wait would be done by then
    assert closing.is_alive()
    blocking.free.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    adapter.close()
    KvtierL2Adapter(params(tmp_path)).close()


def test_a_close_that_fails_leaves_no_descriptor_open(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    close = adapter._store.close
    monkeypatch.setattr(adapter._store, "close", failing())
    with pytest.raises(OSError, match="gone"):
        adapter.close()
    assert [done.fileno() for done in (adapter._stores, adapter._lookups, adapter._loads)] == [-1] * 3
    close()


def test_an_adapter_that_cannot_be_made_lets_the_store_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def noted() -> Any:
        made.append(create_event_notifier())
        return made[-1]

    monkeypatch.setattr(kvtier_adapters.lmcache, "create_event_notifier", noted)
    with monkeypatch.context() as patched:
        patched.setattr(kvtier_adapters.lmcache, "ThreadPoolExecutor", failing())
        with pytest.raises(OSError, match="gone"):
            KvtierL2Adapter(params(tmp_path))
    assert [event.fileno() for event in made] == [-1] * 3
    KvtierL2Adapter(params(tmp_path)).close()


def test_an_lmcache_that_names_by_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = make_dataclass("ObjectKey", [("layer", int, 0)], bases=(ObjectKey,), frozen=True)
    monkeypatch.setattr(kvtier_adapters.lmcache, "ObjectKey", more)
    with pytest.raises(RuntimeError, match=r"other fields than kvtier knows \(layer\)"):
        KvtierL2Adapter(params(tmp_path))


def test_its_status_is_that_of_the_store(adapter: Any) -> None:
    store(adapter, [KEY], memory(1))
    found(adapter, [KEY])
    status = adapter.report_status()
    assert (status["is_healthy"], status["locked_key_count"], status["tiers"]) == (True, 1, {"disk": "ok"})
    assert json.dumps(status)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "need a config"),
        ({"config": 7}, "need a config"),
        ({"config": "a.toml", "path": "x"}, "unknown adapter_params path: kvtier takes config"),
        ({"config": "a.toml", "durable": 1}, "durable is true or false"),
        ({"config": "a.toml", "load_threads": 0}, "from 1 to 64"),
    ],
    ids=str,
)
def test_wrong_parameters_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KvtierL2Adapter(wrong)


def test_a_wrong_configuration_is_refused_with_its_problems(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tier"):
        KvtierL2Adapter(params(tmp_path, bytes_max=-1))


# -- LMCache as it is --------------------------------------------------------------------------------------


def test_lmcache_keeps_and_brings_back_its_cache_over_a_restart(tmp_path: Path) -> None:
    """Its own controllers drive the adapter: what one manager has stored, the next one prefetches."""
    layout = MemoryLayoutDesc([torch.Size([SIZE])], [torch.uint8])
    keys = [replace(KEY, chunk_hash=bytes([i]) * 32) for i in range(8)]

    def manager() -> Any:
        adapter = spec(params(tmp_path, durable=True))
        return StorageManager(parse_args(["--l1-size-gb", "0.1", "--eviction-policy", "LRU", "--l2-adapter", adapter]))

    first = manager()
    for i, written in enumerate(first.reserve_write(keys, layout).values()):
        written.raw_data.fill_(i + 1)
    first.finish_write(keys)
    ((_, adapter),) = first.l2_adapters()
    until(lambda: adapter._store.stats().blocks == len(keys))
    first.close()

    second = manager()
    try:
        group = GroupedObjectKeys(keys, 0, layout, -1)
        handle = second.submit_prefetch_task(PrefetchTaskSpec([group]))
        (hits,) = until(lambda: second.query_prefetch_status(handle)).l2_hit_cells
        assert hits.popcount() == len(keys)
        with second.read_prefetched_results(keys) as objects:
            assert contents(objects) == [bytes([i + 1]) * SIZE for i in range(len(keys))]
        ((_, adapter),) = second.l2_adapters()
        until(lambda: adapter._store.stats().pinned == 0)
    finally:
        second.close()


def until(ready: Callable[[], Any]) -> Any:
    """What ``ready`` returns once that is true. LMCache's own threads do the work, and tell nobody."""
    pause = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if result := ready():
            return result
        pause.wait(0.01)
    raise AssertionError("not ready")


def test_every_other_adapter_is_measured_beside_it_or_left_out_for_a_reason() -> None:
    modules = {module.name for module in pkgutil.iter_modules(l2_adapters.__path__)}
    there = {name.removesuffix("_l2_adapter") for name in modules if name.endswith("_l2_adapter")}
    assert there - {name for names in LEFT_OUT for name in names} == {"fs", "fs_native", "plugin"}


def test_its_own_benchmark_runs_and_finds_every_byte(tmp_path: Path) -> None:
    """``lmcache bench l2`` checks what it loads against what it stored."""
    command = [str(Path(sys.executable).with_name("lmcache")), "bench", "l2", "--l2-adapter", spec(params(tmp_path))]
    sizes = ["--num-keys", "8", "--data-size-kb", "64", "--lookup-max-hit-rate", "1", "--no-skip-verify"]
    done = subprocess.run([*command, *sizes, "--format", "json"], capture_output=True, text=True, timeout=WAIT_S * 2)
    assert done.returncode == 0, done.stderr
    assert "All 8 keys data verified OK." in done.stdout
