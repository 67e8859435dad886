"""The protocol of a peer, and what is to be known of each."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

#: What an acknowledged block survives: the death of its process, and that of the system.
Survives = Literal["nothing", "a kill", "a power loss"]
#: From where a block comes that was loaded before: memory of the process, the system's page cache, or the disk again.
Keeps = Literal["its own memory", "the page cache", "nothing"]
#: How blocks are loaded: from the page cache, from the disk, or a second time since the peer was opened.
Load = Literal["warm", "cold", "again"]


@dataclass(frozen=True)
class Facts:
    """What a peer does and does not do, as it is set up here.

    ``acknowledged``: what a block survives once :meth:`Peer.end` has returned. ``durable``: whether :meth:`Peer.sync`
    makes it survive a power loss. ``checks``: whether a load notices that bits have changed on disk. ``restarts``:
    whether another process finds the blocks. ``bounded``: whether it keeps to a size by evicting. ``keeps``: where a
    block still is once it was brought in, for the next load in the same process.
    """

    acknowledged: Survives
    durable: bool
    checks: bool
    restarts: bool
    bounded: bool
    keeps: Keeps


class Peer(ABC):
    """Something that keeps blocks in a folder. One thread; opened and closed any number of times."""

    facts: ClassVar[Facts]

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Begin, with what is in the folder, which is there."""

    @abstractmethod
    def store(self, key: bytes, block: memoryview) -> None:
        """Keep a block. Its memory is page-aligned, and used again after :meth:`end`."""

    def end(self) -> None:  # noqa: B027 - most have nothing to do here
        """All blocks since the last call are acknowledged when this returns."""

    def sync(self) -> None:
        """All acknowledged blocks survive a power loss when this returns, if the facts say so."""
        raise NotImplementedError

    @abstractmethod
    def load(self, key: bytes, into: memoryview) -> memoryview | None:
        """Fill ``into``, which is page-aligned, with a block; or give the memory that has it already. Raises
        :class:`LookupError` if there is none."""

    def load_all(self, keys: Sequence[bytes], into: Sequence[memoryview]) -> list[memoryview | None]:
        """:meth:`load` for several, by whatever call the peer has for that."""
        return [self.load(key, target) for key, target in zip(keys, into, strict=True)]

    def bring(self, key: bytes, into: memoryview) -> None:
        """Load a block so that it is at hand for the next load, if the peer keeps anything."""
        self.load(key, into)

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


def fill(fd: int, into: memoryview, offset: int = 0) -> None:
    """Read until ``into`` is full. Raises :class:`OSError` at the end of the file."""
    done = 0
    while done < into.nbytes:
        count = os.preadv(fd, [into[done:]], offset + done)
        if not count:
            raise OSError(errno.EIO, "short read")
        done += count


def write_all(fd: int, block: memoryview) -> None:
    """Write all of a block where the file stands."""
    done = 0
    while done < block.nbytes:
        done += os.write(fd, block[done:])


def sync_files(folder: Path) -> None:
    """Have all files of a folder written, so that nothing of it is left to disturb what is measured next."""
    for file in [f for f in folder.rglob("*") if f.is_file()]:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def direct_flag() -> int:
    """``O_DIRECT``. Raises :class:`OSError` where there is none."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        raise OSError(errno.ENOTSUP, "this system has no O_DIRECT")
    return int(flag)
