"""Blobs in a table of SQLite, one transaction a batch, with the largest pages and a mapped file.

With a write-ahead log a commit survives a kill, and a checkpoint makes it durable; every byte is written twice. With a
rollback journal new rows are written once, and the commit waits for the disk.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from bench.peers.peer import Facts, Peer

_SHARED = ("page_size=65536", "mmap_size=17179869184", "cache_size=-65536", "locking_mode=EXCLUSIVE")


class SqliteWal(Peer):
    facts = Facts(
        acknowledged="a kill", durable=True, checks=False, restarts=True, bounded=False, keeps="the page cache"
    )
    pragmas: tuple[str, ...] = ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0")
    _db: sqlite3.Connection

    def open(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "blocks.db", isolation_level=None)
        for pragma in (*_SHARED, *self.pragmas):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE IF NOT EXISTS block (key BLOB PRIMARY KEY, value BLOB NOT NULL)")

    def store(self, key: bytes, block: memoryview) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN")
        self._db.execute("INSERT INTO block VALUES (?, ?)", (key, block))

    def end(self) -> None:
        self._db.execute("COMMIT")

    def sync(self) -> None:
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def load(self, key: bytes, into: memoryview) -> None:
        row = self._db.execute("SELECT value FROM block WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise LookupError(key)
        into[:] = row[0]

    def close(self) -> None:
        self._db.close()


class SqliteJournal(SqliteWal):
    facts = Facts(
        acknowledged="a power loss", durable=True, checks=False, restarts=True, bounded=False, keeps="the page cache"
    )
    pragmas = ("journal_mode=TRUNCATE", "synchronous=FULL")

    def sync(self) -> None:
        """The commit has done it."""
