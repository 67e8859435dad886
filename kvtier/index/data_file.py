"""What the head of an LMDB data file says, read without opening it through the C library."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

DATA_FILE = "data.mdb"
_MAGIC = 0xBEEFC0DE
#: The head of a meta page on 64-bit machines.
_META = struct.Struct("<16xI20xI92xQQ")


class _Meta(NamedTuple):
    magic: int
    page_bytes: int
    last_page: int
    txn: int


def looks_cut(folder: str) -> bool:
    """Whether the file is shorter than its own head says: mapped, it could end this process with a signal."""
    size, metas = _metas(folder)
    return any(size < (m.last_page + 1) * m.page_bytes for m in metas)


def last_commit(folder: str) -> int:
    """The number of the newest commit in the file; 0 if it cannot be told."""
    return max((m.txn for m in _metas(folder)[1]), default=0)


def _metas(folder: str) -> tuple[int, list[_Meta]]:
    """The length of the file, and those of its two meta pages that are there."""
    try:
        with open(os.path.join(folder, DATA_FILE), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_META.size)
            page_bytes = _Meta(*_META.unpack(head)).page_bytes if len(head) == _META.size else 0
            file.seek(page_bytes)
            found = [_Meta(*_META.unpack(m)) for m in (head, file.read(_META.size)) if len(m) == _META.size]
    except OSError:
        return 0, []  # opening it will say why
    return size, [m for m in found if m.magic == _MAGIC]
