"""What a loss of power may take: an undo log of everything that was not synced.

The model, which is harsher than one journaling file system and milder than none:

- Each 4 KiB page written since the file's last ``sync_data`` is lost or kept on its own, in no order. A lost
  page has its old bytes again, or zeros if it is new.
- An unsynced growth of the file is kept (lost pages then read as zeros), or the file ends after its last
  kept page. An unsynced cut is kept or lost as a whole.
- Names created, renamed or removed since the folder's last ``sync_dir`` are lost from some point on, in the
  order they were made, folder by folder (a move counts with the folder it went to). ``sync_data`` does not
  save a file's name.
- After a *failed* ``sync_data`` no later one saves the pages that were unsynced then, though it succeeds:
  the kernel has marked them clean. Only writing them again helps.

``make_dir`` and lock files are taken as durable. Memory use: the old content of every unsynced page, and of
every file replaced or removed without ``sync_dir``.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

from kvtier.fs import FileSystem

PAGE_BYTES = 4096


@dataclass
class _Page:
    old: bytes
    """What was durable: shorter than a page where the file ended, empty past its end."""
    doomed: bool = False
    """A sync failed with this page unsynced; no later sync saves it."""


@dataclass
class _File:
    durable_size: int
    pages: dict[int, _Page] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A file as it was before a rename or removal took its name."""

    content: bytes
    file: _File | None


@dataclass(frozen=True)
class _NameChange:
    """A creation (no ``src``), removal (no ``dst``) or renaming; ``taken`` is what the name held before."""

    src: str | None
    dst: str | None
    taken: Saved | None

    @property
    def folder(self) -> str:
        return os.path.dirname(self.dst or self.src or "")


class UndoLog:
    """Told of every change before or after it is made, as each method's name says. Not thread-safe."""

    def __init__(self, inner: FileSystem) -> None:
        self._inner = inner
        self._files: dict[str, _File] = {}
        self._open: dict[int, _File] = {}
        self._names: list[_NameChange] = []

    # Descriptors

    def after_open(self, fd: int, path: str, created: bool) -> None:
        if created:
            self._files[path] = _File(durable_size=0)
            self._names.append(_NameChange(None, path, None))
        self._open[fd] = self._files.setdefault(path, _File(self._inner.size(fd)))

    def after_close(self, fd: int) -> None:
        self._open.pop(fd, None)

    # Contents

    def before_change(self, fd: int, start: int, end: int) -> None:
        """The bytes from ``start`` to ``end`` are about to be written, punched or cut off."""
        file = self._open[fd]
        for number in range(start // PAGE_BYTES, -(-end // PAGE_BYTES)):
            if number in file.pages:
                file.pages[number].doomed = False  # dirty again: the next sync writes it
            else:
                old = bytearray(PAGE_BYTES)
                count = self._inner.read_at(fd, [memoryview(old)], number * PAGE_BYTES)
                file.pages[number] = _Page(bytes(old[:count]))

    def after_sync(self, fd: int) -> None:
        file = self._open[fd]
        file.pages = {number: page for number, page in file.pages.items() if page.doomed}
        file.durable_size = self._inner.size(fd)

    def after_failed_sync(self, fd: int) -> None:
        for page in self._open[fd].pages.values():
            page.doomed = True

    # Names

    def save(self, path: str) -> Saved | None:
        """To be asked for before a name is replaced or removed; None if it is not there."""
        if not self._inner.exists(path):
            return None
        fd = self._inner.open(path)
        try:
            content = bytearray(self._inner.size(fd))
            self._inner.read_at(fd, [memoryview(content)], 0)
        finally:
            self._inner.close(fd)
        return Saved(bytes(content), self._files.get(path))

    def after_rename(self, src: str, dst: str, taken: Saved | None) -> None:
        self._names.append(_NameChange(src, dst, taken))
        self._move(src, dst)

    def after_unlink(self, path: str, taken: Saved | None) -> None:
        self._names.append(_NameChange(path, None, taken))
        self._files.pop(path, None)

    def after_sync_dir(self, path: str) -> None:
        self._names = [change for change in self._names if change.folder != path]

    # The loss

    def lose(self, seed: int, keep_probability: float) -> list[str]:
        """Roll back what chance says, and forget the rest; return what was lost, in words."""
        rng = random.Random(seed)
        lost = self._lose_names(rng, keep_probability)
        for path, file in sorted(self._files.items()):
            if self._inner.exists(path):
                lost += self._lose_pages(path, file, rng, keep_probability)
        self._files, self._open, self._names = {}, {}, []
        return lost

    def _lose_names(self, rng: random.Random, keep: float) -> list[str]:
        broken: set[str] = set()
        undone: list[_NameChange] = []
        for change in self._names:
            if change.folder in broken or rng.random() >= keep:
                broken.add(change.folder)
                undone.append(change)
        for change in reversed(undone):
            self._undo(change)
        return [f"name change {_base(c.src)} -> {_base(c.dst)}" for c in undone]

    def _undo(self, change: _NameChange) -> None:
        if change.dst is not None and self._inner.exists(change.dst):
            if change.src is None:
                self._inner.unlink(change.dst)
                self._files.pop(change.dst, None)
            else:
                self._inner.rename(change.dst, change.src)
                self._move(change.dst, change.src)
        name = change.dst or change.src
        if change.taken is not None and name is not None:
            if self._inner.exists(name):
                self._inner.unlink(name)
            fd = self._inner.open(name, create=True)
            self._inner.write_at(fd, [change.taken.content], 0)
            self._inner.close(fd)
            if change.taken.file is not None:
                self._files[name] = change.taken.file

    def _move(self, src: str, dst: str) -> None:
        file = self._files.pop(src, None)
        if file is None:
            self._files.pop(dst, None)
        else:
            self._files[dst] = file

    def _lose_pages(self, path: str, file: _File, rng: random.Random, keep: float) -> list[str]:
        fd = self._inner.open(path, write=True)
        try:
            size = self._inner.size(fd)
            gone = {number for number in sorted(file.pages) if rng.random() >= keep}
            if rng.random() < keep:
                final = size
            elif size < file.durable_size:  # the cut did not happen
                final = file.durable_size
                gone |= {number for number in file.pages if (number + 1) * PAGE_BYTES > size}
            else:
                kept = [min(size, (n + 1) * PAGE_BYTES) for n in file.pages.keys() - gone]
                final = max([file.durable_size, *kept])
            for number in gone:
                old = file.pages[number].old
                self._inner.write_at(fd, [old.ljust(PAGE_BYTES, b"\0")], number * PAGE_BYTES)
            self._inner.truncate(fd, final)
        finally:
            self._inner.close(fd)
        return [f"{_base(path)}: page {number}" for number in sorted(gone)] + (
            [f"{_base(path)}: size {final} instead of {size}"] if final != size else []
        )


def _base(path: str | None) -> str:
    return os.path.basename(path) if path else "nothing"
