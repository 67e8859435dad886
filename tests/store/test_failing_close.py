"""A file whose closing fails is closed all the same: its number may be another file's by then."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from kvtier import FlushError, Store
from kvtier.fs import PortableFileSystem
from tests.stores import KIB, config, disk_tier, noise, settle, tier, value_of

SIZE = 50 * KIB


class FailsToClose(PortableFileSystem):
    """Says once that a file could not be closed, and notes who uses its number after that."""

    def __init__(self) -> None:
        super().__init__()
        self.armed: Callable[[int], bool] = lambda fd: False
        self.gone: int | None = None
        self.misused: list[str] = []

    def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
        fd = super().open(path, create=create, write=write)
        if fd == self.gone:  # the number is handed out again: it is another file's from here on
            self.gone = None
        return fd

    def close(self, fd: int) -> None:
        self._note(fd, "close")
        super().close(fd)
        if self.armed(fd):
            self.armed, self.gone = lambda fd: False, fd
            raise OSError(errno.EIO, "close")

    def write_at(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        self._note(fd, "write")
        return super().write_at(fd, buffers, offset)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        self._note(fd, "reserve")
        super().reserve(fd, offset, length)

    def sync_data(self, fd: int) -> None:
        self._note(fd, "sync")
        super().sync_data(fd)

    def _note(self, fd: int, what: str) -> None:
        if fd == self.gone or fd < 0:
            self.misused.append(what)


@pytest.mark.parametrize("sealed_by", ["compaction", "a full segment", "the end"])
def test_its_number_is_not_used_again(tmp_path: Path, sealed_by: str) -> None:
    fs = FailsToClose()
    settings = config(
        tmp_path, tier(compaction="copy", compaction_dead_ratio=0.2, free_bytes_min=0), value_bytes_max=64 * KIB
    )
    store = Store.open(settings, fs=fs, background=False)
    store.pause_compaction()
    for number in range(48):
        store.put(b"%d" % number, noise(number, SIZE))
    store.flush()
    for number in range(48):
        if number % 3:
            store.delete(b"%d" % number)
    store.flush()
    settle(store)
    kept: dict[bytes, Any] = {b"%d" % number: noise(number, SIZE) for number in range(0, 48, 3)}

    active = disk_tier(store)._writer
    assert active is not None
    writing = active.fd
    fs.armed = lambda fd: fd == writing
    if sealed_by == "compaction":
        store.resume_compaction()
        settle(store)
        assert store.stats().counters["compaction_errors"] == 1
    if sealed_by != "the end":
        for number in range(30):
            kept[b"new%d" % number] = noise(("new", number), SIZE)
            store.put(b"new%d" % number, kept[b"new%d" % number])
        with nullcontext() if sealed_by == "compaction" else suppress(FlushError):
            store.flush()
    with suppress(OSError):
        store.close()
    assert fs.armed(writing) is False
    assert fs.misused == []
    with Store.open(settings, background=False) as store:
        found = {key: value_of(hit) for key in kept if (hit := store.get(key))}
        assert found.items() <= kept.items()
        assert all(b"%d" % number in found for number in range(0, 48, 3))
        assert sealed_by != "compaction" or found == kept  # nothing was being written
