"""A file per block: by ordinary writes and reads, or past the page cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from bench.peers.peer import Facts, Peer, direct_flag, fill, write_all


class Files(Peer):
    """``open``, ``write``, and for durability one ``fsync`` a file after all are written, and one of the folder.

    That is the fast way: the disk is busy with all of them when the first ``fsync`` waits.
    """

    facts = Facts(
        acknowledged="a kill", durable=True, checks=False, restarts=True, bounded=False, keeps="the page cache"
    )
    flags = 0
    _folder: Path
    _unsynced: list[int]

    def open(self, folder: Path) -> None:
        self._folder, self._unsynced = folder, []

    def store(self, key: bytes, block: memoryview) -> None:
        fd = os.open(self._folder / key.decode(), os.O_CREAT | os.O_WRONLY | os.O_TRUNC | self.flags, 0o600)
        self._unsynced.append(fd)
        write_all(fd, block)

    def sync(self) -> None:
        for fd in self._unsynced:
            os.fsync(fd)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        self.close()

    def load(self, key: bytes, into: memoryview) -> None:
        try:
            fd = os.open(self._folder / key.decode(), os.O_RDONLY | self.flags)
        except FileNotFoundError as e:
            raise LookupError(key) from e
        try:
            fill(fd, into)
        finally:
            os.close(fd)

    def close(self) -> None:
        while self._unsynced:
            os.close(self._unsynced.pop())


class DirectFiles(Files):
    """The same with ``O_DIRECT``."""

    facts = replace(Files.facts, keeps="nothing")

    def open(self, folder: Path) -> None:
        self.flags = direct_flag()
        super().open(folder)
