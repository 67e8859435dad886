"""diskcache: a file per block and an index in SQLite, one transaction a batch, nothing culled meanwhile."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import diskcache

from bench.peers.peer import Facts, Peer


class _Once:
    """A reader that hands out a block without copying it, as :meth:`diskcache.Cache.set` takes one."""

    def __init__(self, block: memoryview) -> None:
        self._left = [block]

    def read(self, size: int) -> memoryview | bytes:
        return self._left.pop() if self._left else b""


class DiskCache(Peer):
    """It never syncs its files, so nothing that it does is durable."""

    facts = Facts(
        acknowledged="a kill", durable=False, checks=False, restarts=True, bounded=True, keeps="the page cache"
    )

    def open(self, folder: Path) -> None:
        self._cache = diskcache.Cache(str(folder), size_limit=64 << 30, cull_limit=0, disk_min_file_size=0)
        self._batch = ExitStack()
        self._in_batch = False

    def store(self, key: bytes, block: memoryview) -> None:
        if not self._in_batch:
            self._batch.enter_context(self._cache.transact())
            self._in_batch = True
        self._cache.set(key, _Once(block), read=True)

    def end(self) -> None:
        self._batch.close()
        self._in_batch = False

    def load(self, key: bytes, into: memoryview) -> None:
        with self._cache.read(key) as file:
            if file.readinto(into) != into.nbytes:
                raise OSError("short read")

    def close(self) -> None:
        self._batch.close()
        self._cache.close()
