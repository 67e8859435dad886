"""What no peer can beat: the same bytes moved by hand, with no index and no checks. The last batch only is kept."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.peers.peer import Facts, Peer, direct_flag, fill, write_all


class OneFile(Peer):
    """A batch is one new file, written from end to end with one ``fsync``; a load is a ``preadv``.

    Files are kept, as peers keep theirs: memory that the system hands out anew costs more.
    """

    facts = Facts(
        acknowledged="a kill", durable=True, checks=False, restarts=False, bounded=False, keeps="the page cache"
    )
    flags = 0

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._files = 0
        self._fd = -1

    def open(self, folder: Path) -> None:
        self._folder = folder

    def store(self, key: bytes, block: memoryview) -> None:
        if self._fd < 0:
            self._places.clear()
            self._files += 1
            self._fd = self._open(os.O_CREAT | os.O_WRONLY)
        self._places[key] = len(self._places) * block.nbytes
        write_all(self._fd, block)

    def sync(self) -> None:
        os.fsync(self._fd)
        self.close()

    def load(self, key: bytes, into: memoryview) -> None:
        if self._fd < 0:
            self._fd = self._open(os.O_RDONLY)
        fill(self._fd, into, self._places[key])

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, flags: int) -> int:
        return os.open(self._folder / str(self._files), flags | self.flags, 0o600)


class OneDirectFile(OneFile):
    """The same with ``O_DIRECT``."""

    facts = replace(OneFile.facts, keeps="nothing")

    def open(self, folder: Path) -> None:
        self.flags = direct_flag()
        super().open(folder)


class Memcpy(Peer):
    """From memory into memory, both in use before."""

    facts = Facts(
        acknowledged="nothing", durable=False, checks=False, restarts=False, bounded=False, keeps="its own memory"
    )

    def __init__(self) -> None:
        self._places: list[memoryview] = []
        self._batch: dict[bytes, memoryview] = {}
        self._ended = False

    def open(self, folder: Path) -> None:
        """There is nothing to open."""

    def store(self, key: bytes, block: memoryview) -> None:
        if self._ended:
            self._batch.clear()
            self._ended = False
        if len(self._batch) == len(self._places):
            self._places.append(memoryview(mmap.mmap(-1, block.nbytes)))
        self._batch[key] = self._places[len(self._batch)]
        _copy(self._batch[key], block)

    def end(self) -> None:
        self._ended = True

    def load(self, key: bytes, into: memoryview) -> None:
        _copy(into, self._batch[key])

    def close(self) -> None:
        """What it keeps is gone with the process."""


def _copy(target: memoryview, source: memoryview) -> None:
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
