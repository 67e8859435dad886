"""Which peers there are. Each is named by its module, so that one that is not installed is found out in its process."""

from __future__ import annotations

import importlib
from typing import Literal, NamedTuple

from bench.peers.peer import Peer

Kind = Literal["ours", "peer", "limit"]


class Entry(NamedTuple):
    """``module``: in this package. ``loads_only``: its stores are another entry's. ``in_memory``: it has no disk."""

    module: str
    name: str
    kind: Kind = "peer"
    loads_only: bool = False
    in_memory: bool = False

    def make(self) -> Peer:
        """Raises ``ImportError`` if its package is not installed."""
        made = getattr(importlib.import_module(f"bench.peers.{self.module}"), self.name)()
        assert isinstance(made, Peer)
        return made


OURS = "kvtier"
OURS_GET = "kvtier, `get`"
OURS_MANY = "kvtier, `get_many` and a copy"
ENTRIES = {
    OURS: Entry("kvtier_store", "Kvtier", "ours"),
    OURS_GET: Entry("kvtier_store", "KvtierGet", "ours", loads_only=True),
    OURS_MANY: Entry("kvtier_store", "KvtierMany", "ours", loads_only=True),
    "a file per block": Entry("files", "Files"),
    "a file per block, `O_DIRECT`": Entry("files", "DirectFiles"),
    "diskcache": Entry("disk_cache", "DiskCache"),
    "RocksDB (rocksdict)": Entry("rocks", "Rocks"),
    "RocksDB, direct I/O": Entry("rocks", "DirectRocks"),
    "SQLite, write-ahead log": Entry("sqlite_blobs", "SqliteWal"),
    "SQLite, rollback journal": Entry("sqlite_blobs", "SqliteJournal"),
    "one file": Entry("limits", "OneFile", "limit"),
    "one file, `O_DIRECT`": Entry("limits", "OneDirectFile", "limit"),
    "memcpy": Entry("limits", "Memcpy", "limit", in_memory=True),
}
