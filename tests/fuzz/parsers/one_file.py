"""A file system of one file in memory, whatever it is called."""

from __future__ import annotations

from collections.abc import Sequence

from kvtier.fs import PortableFileSystem


class OneFile(PortableFileSystem):
    """Only for reading."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
        return 0

    def close(self, fd: int) -> None:
        pass

    def size(self, fd: int) -> int:
        return len(self._data)

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        at = offset
        for buffer in buffers:
            part = self._data[at : at + buffer.nbytes]
            buffer[: len(part)] = part
            at += len(part)
        return at - offset
