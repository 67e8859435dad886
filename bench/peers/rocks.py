"""RocksDB through rocksdict: values in blob files, no log beside them, no compression."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rocksdict import DBCompressionType, Options, Rdict, WriteOptions

from bench.peers.peer import Facts, Peer

_WRITE_BUFFER_BYTES = 256 << 20


class Rocks(Peer):
    """Without a log each byte is written once: a batch is in memory until ``flush`` makes it durable."""

    facts = Facts(
        acknowledged="nothing", durable=True, checks=True, restarts=True, bounded=False, keeps="the page cache"
    )
    is_direct = False
    _db: Rdict

    def open(self, folder: Path) -> None:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_enable_blob_files(True)
        options.set_min_blob_size(0)
        options.set_blob_file_size(_WRITE_BUFFER_BYTES)
        options.set_blob_compression_type(DBCompressionType.none())
        options.set_compression_type(DBCompressionType.none())
        options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
        options.set_max_background_jobs(2)
        options.set_use_direct_reads(self.is_direct)
        options.set_use_direct_io_for_flush_and_compaction(self.is_direct)
        self._db = Rdict(str(folder / "db"), options)
        writing: Any = WriteOptions()  # its stubs take this property for a method
        writing.disable_wal = True
        self._db.set_write_options(writing)

    def store(self, key: bytes, block: memoryview) -> None:
        self._db.put(key, bytes(block))

    def sync(self) -> None:
        self._db.flush(True)

    def load(self, key: bytes, into: memoryview) -> None:
        value = self._db.get(key)
        if value is None:
            raise LookupError(key)
        into[:] = value

    def close(self) -> None:
        self._db.close()


class DirectRocks(Rocks):
    """The same with its own direct I/O, for reads and for what it writes in the background."""

    facts = replace(Rocks.facts, keeps="nothing")
    is_direct = True
