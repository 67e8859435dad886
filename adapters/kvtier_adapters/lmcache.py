"""A second level for LMCache: an adapter that it loads as a plug-in, on a :class:`kvtier.Store`.

Every object of LMCache is one block. Its cache salt is the namespace, and all its other fields are hashed into the key
(:mod:`kvtier_adapters.objects`). What LMCache asks for is done on threads of the adapter: one stores, one looks up,
some load. What goes wrong there is a miss, or a failed store, and a line in LMCache's log. The store evicts by itself
and knows after a restart what it has, so LMCache is given no capacity to evict for. docs/lmcache.md is the user's side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from itertools import count
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lmcache.lmcache_native import Bitmap
from lmcache.logging import init_logger
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface
from lmcache.v1.platform import create_event_notifier

from kvtier import Config, PutOutcome, Store, key_file
from kvtier_adapters.objects import Name, Objects, owner_of

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc
    from lmcache.v1.memory_management import MemoryObj

logger = init_logger(__name__)

#: What names an object of LMCache: all of it goes into the name of the block.
_KEY_FIELDS = {"chunk_hash", "model_name", "kv_rank", "object_group_id", "cache_salt"}

#: Parts of a load for each thread: while one reads, another looks up what it will read, and all end at about one time.
_PARTS_A_THREAD = 4

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Options:
    """The ``adapter_params``. ``config``: what :meth:`kvtier.Store.open` takes (a ``.toml`` file or a folder), or a
    configuration as a table. ``durable``: whether a store is done when it is on disk, not when it is queued for it.
    ``load_threads``: how many threads share a load. ``key_file``: the key of an encrypted store."""

    config: str | Mapping[str, Any]
    durable: bool = False
    load_threads: int = min(4, os.cpu_count() or 1)
    key_file: str | None = None

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Options:
        """Raises ``ValueError`` that says what is wrong with the parameters."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(params) - known):
            raise ValueError(f"unknown adapter_params {', '.join(unknown)}: kvtier takes {', '.join(sorted(known))}")
        if not isinstance(params.get("config"), str | Mapping):
            raise ValueError("adapter_params need a config: a .toml file, a folder, or a configuration as a table")
        options = cls(**params)
        if not isinstance(options.durable, bool):
            raise ValueError(f"durable is true or false, not {options.durable!r}")
        if type(options.load_threads) is not int or not 1 <= options.load_threads <= 64:
            raise ValueError(f"load_threads is a number from 1 to 64, not {options.load_threads!r}")
        return options

    def open_store(self) -> Store:
        """Raises what :meth:`kvtier.Store.open` does."""
        source = Config.from_dict(dict(self.config)) if isinstance(self.config, Mapping) else self.config
        return Store.open(source, keys=key_file(self.key_file) if self.key_file else None)


class _Done(Generic[_Result]):
    """Results of one kind of task, and the event that says that there are new ones. Any thread."""

    def __init__(self) -> None:
        self._event = create_event_notifier()
        self._lock = Lock()
        self._results: dict[int, _Result] = {}

    def fileno(self) -> int:
        return int(self._event.fileno())

    def add(self, task: int, result: _Result) -> None:
        with self._lock:
            self._results[task] = result
        self._event.notify()

    def take(self, task: int) -> _Result | None:
        with self._lock:
            return self._results.pop(task, None)

    def take_all(self) -> dict[int, _Result]:
        with self._lock:
            taken, self._results = self._results, {}
        return taken

    def close(self) -> None:
        self._event.close()


class _Load:
    """One load task, of which several threads take one part after another."""

    def __init__(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj], threads_max: int) -> None:
        self.keys, self.objects = keys, objects
        self.loaded = [False] * len(keys)
        parts = list(_parts(len(keys), _PARTS_A_THREAD * threads_max))
        self.threads = self._left = max(1, min(threads_max, len(parts)))
        self._parts = iter(parts)
        self._lock = Lock()

    def take(self) -> range | None:
        """The objects that come next; None if all were taken."""
        with self._lock:
            return next(self._parts, None)

    def is_last(self) -> bool:
        """Called when a thread has no more to do: whether none has."""
        with self._lock:
            self._left -= 1
            return not self._left


class KvtierL2Adapter(L2AdapterInterface):  # type: ignore[misc]
    """LMCache's second level on a kvtier store. Any thread; no ``submit`` waits for a disk, or copies an object.

    ``close`` ends what is under way (memory that LMCache gave is not touched afterwards), drops what is not begun,
    writes what is queued, and lets go of all locks. ``delete`` reads the index, and waits for no write.
    """

    def __init__(self, params: Mapping[str, Any], l1_memory_desc: object = None) -> None:
        """``params``: those of :class:`Options`. Raises ``ValueError``, what :meth:`kvtier.Store.open` does, and
        ``RuntimeError`` if LMCache's keys have fields that the names of blocks would leave out."""
        _check_key_fields()
        options = Options.of(params)
        super().__init__()
        with ExitStack() as opened:
            self._stores = opened.enter_context(closing(_Done[L2StoreResult]()))
            self._lookups = opened.enter_context(closing(_Done[Bitmap]()))
            self._loads = opened.enter_context(closing(_Done[Bitmap]()))
            self._store = opened.enter_context(options.open_store())
            self._objects = Objects(self._store, logger)
            self._durable, self._load_threads = options.durable, options.load_threads
            self._ids = count()
            self._storing = _threads(opened, "store", 1)
            self._looking_up = _threads(opened, "lookup", 1)
            self._loading = _threads(opened, "load", options.load_threads)
            self._opened = opened.pop_all()

    # -- events -------------------------------------------------------------------------------------

    def get_store_event_fd(self) -> int:
        return self._stores.fileno()

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._lookups.fileno()

    def get_load_event_fd(self) -> int:
        return self._loads.fileno()

    # -- storing ------------------------------------------------------------------------------------

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        task = next(self._ids)
        self._storing.submit(self._run_store, task, keys, objects)
        return task

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return self._stores.take_all()

    def _run_store(self, task: int, keys: list[ObjectKey], objects: list[MemoryObj]) -> None:
        stored: list[ObjectKey] = []
        sizes: list[int] = []
        complete = True
        try:
            for key, object_ in zip(keys, objects, strict=True):
                data = object_.byte_array
                outcome = self._objects.save(self._name(key), data)
                if outcome:
                    stored.append(key)
                    sizes.append(data.nbytes)
                elif outcome is PutOutcome.SKIPPED:
                    complete = False
            if self._durable:
                self._objects.flush()
        except Exception:
            complete = False
            logger.exception("kvtier: not all of %d objects were stored", len(keys))
        self._tell(self._notify_keys_stored, stored, sizes)
        self._stores.add(task, L2StoreResult(complete, sum(sizes)))

    # -- looking up ---------------------------------------------------------------------------------

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        task = next(self._ids)
        self._looking_up.submit(self._run_lookup, task, keys)
        return task

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        try:
            self._objects.unlock([self._name(key) for key in keys])
        except Exception:
            logger.exception("kvtier: %d objects were not unlocked", len(keys))

    def _run_lookup(self, task: int, keys: list[ObjectKey]) -> None:
        found: list[bool] = [False] * len(keys)
        try:
            found = self._objects.lock([self._name(key) for key in keys])
        except Exception:
            logger.exception("kvtier: %d objects were not looked up", len(keys))
        finally:
            self._lookups.add(task, _bitmap(found))

    # -- loading ------------------------------------------------------------------------------------

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        task = next(self._ids)
        load = _Load(keys, objects, self._load_threads)
        for _ in range(load.threads):
            self._loading.submit(self._run_load, task, load)
        return task

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return self._loads.take(task_id)

    def _run_load(self, task: int, load: _Load) -> None:
        while (part := load.take()) is not None:
            wanted = {at: target for at in part if (target := self._target(load.keys[at], load.objects[at]))}
            names, into = [name for name, _ in wanted.values()], [view for _, view in wanted.values()]
            try:
                for at, loaded in zip(wanted, self._objects.load(names, into), strict=True):
                    load.loaded[at] = loaded
            except Exception:
                logger.exception("kvtier: objects were not loaded")
        if load.is_last():
            self._finish_load(task, load)

    def _target(self, key: ObjectKey, object_: MemoryObj) -> tuple[Name, memoryview] | None:
        """What to load, and where to; None if one of them cannot be had."""
        try:
            return self._name(key), object_.byte_array
        except Exception:
            logger.exception("kvtier: an object was not loaded")
            return None

    def _finish_load(self, task: int, load: _Load) -> None:
        keys = [key for key, loaded in zip(load.keys, load.loaded, strict=True) if loaded]
        self._tell(self._notify_keys_accessed, keys)
        self._loads.add(task, _bitmap(load.loaded))

    # -- the rest -----------------------------------------------------------------------------------

    def delete(self, keys: list[ObjectKey]) -> None:
        gone: list[ObjectKey] = []
        sizes: list[int] = []
        try:
            for key in keys:
                size = self._objects.delete(self._name(key))
                if size is not None:
                    gone.append(key)
                    sizes.append(size)
        except Exception:
            logger.exception("kvtier: not all of %d objects were deleted", len(keys))
        self._tell(self._notify_keys_deleted, gone, sizes)

    def get_usage(self) -> AdapterUsage:
        """What the store has, also from before a restart. By salt: values as they were stored, of at most 1,024 salts,
        and of none that is longer than 64 bytes."""
        stats = self._store.stats()
        salts = {owner_of(n.name): n.bytes_stored for n in stats.namespaces if n.bytes_stored}
        return AdapterUsage(
            total_bytes_used=stats.bytes_on_disk,
            total_capacity_bytes=sum(tier.bytes_max_effective for tier in stats.tiers),
            bytes_by_cache_salt=MappingProxyType({salt: size for salt, size in salts.items() if salt is not None}),
        )

    def report_status(self) -> dict[str, Any]:
        stats = self._store.stats()
        return {
            "is_healthy": not any(tier.suspended for tier in stats.tiers),
            "type": type(self).__name__,
            "stored_object_count": stats.blocks,
            "locked_key_count": stats.pinned,
            "bytes_on_disk": stats.bytes_on_disk,
            "write_failures": stats.queue.failed,
            "quarantined": stats.quarantined,
            "tiers": {tier.name: tier.last_error or "ok" for tier in stats.tiers},
        }

    def close(self) -> None:
        self._opened.close()

    def _tell(self, notify: Callable[..., None], keys: list[ObjectKey], *more: object) -> None:
        """``notify`` the listeners of keys, if there are any."""
        try:
            if keys:
                notify(keys, *more)
        except Exception:
            logger.exception("kvtier: a listener failed")

    def _name(self, key: ObjectKey) -> Name:
        named = (key.chunk_hash, key.model_name.encode(), b"%d" % key.kv_rank, b"%d" % key.object_group_id)
        return self._objects.name(key.cache_salt, named)


def _check_key_fields() -> None:
    """A field that went into no name would mean the bytes of another object: such an LMCache is refused."""
    if (found := {field.name for field in fields(ObjectKey)}) != _KEY_FIELDS:
        differing = ", ".join(sorted(found ^ _KEY_FIELDS))
        raise RuntimeError(f"this LMCache names its objects by other fields than kvtier knows ({differing})")


def _threads(opened: ExitStack, what: str, number: int) -> ThreadPoolExecutor:
    """Threads that ``opened`` ends: what they have begun is awaited, the rest is dropped."""
    pool = ThreadPoolExecutor(number, f"kvtier-lmcache-{what}")
    opened.callback(pool.shutdown, cancel_futures=True)
    return pool


def _parts(length: int, count_max: int) -> Iterator[range]:
    """``range(length)`` in at most so many parts of nearly one size."""
    size = max(1, -(-length // count_max))
    yield from (range(at, min(at + size, length)) for at in range(0, length, size))


def _bitmap(bits: Sequence[bool]) -> Bitmap:
    bitmap = Bitmap(len(bits))
    bitmap.batched_set([position for position, bit in enumerate(bits) if bit])
    return bitmap
