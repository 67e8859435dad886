"""Blocks that are long enough to pass by the page cache, and whether they do."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kvtier import _platform
from kvtier.direct import DirectFiles
from tests.stores import KIB, MIB

#: Lengths of long blocks: all of them are written in pages of their own, and no group ends with a page.
LONG = (600 * KIB + 5, 777_777, MIB, MIB + 100 * KIB + 1)
LONG_MAX = 2 * MIB


def length_of(name: object) -> int:
    """The length of a block in a mixture of short and long ones."""
    return random.Random(repr(("length", name))).choice([100, 16 * KIB, 200 * KIB, *LONG])


@contextmanager
def counted(tell: Callable[[str], None] = lambda what: None) -> Iterator[Counter[str]]:
    """Inside, how often this process has written and read directly: ``direct_writes``, ``direct_reads``. ``tell`` is
    called after each time."""
    found: Counter[str] = Counter()
    write, read = DirectFiles.write, DirectFiles.read

    def note(what: str, nbytes: int) -> None:
        if nbytes:
            found[what] += 1
            tell(what)

    def counted_write(files: DirectFiles, fd: int, views: list[memoryview], offset: int) -> tuple[int, int]:
        begin, end = write(files, fd, views, offset)
        note("direct_writes", end - begin)
        return begin, end

    def counted_read(files: DirectFiles, fd: int, views: list[memoryview], offset: int) -> int:
        nbytes = read(files, fd, views, offset)
        note("direct_reads", nbytes)
        return nbytes

    setattr(DirectFiles, "write", counted_write)  # noqa: B010
    setattr(DirectFiles, "read", counted_read)  # noqa: B010
    try:
        yield found
    finally:
        setattr(DirectFiles, "write", write)  # noqa: B010
        setattr(DirectFiles, "read", read)  # noqa: B010


@cache
def why_not_direct(folder: Path | None = None) -> str | None:
    """Why no file in this folder (None: that for temporary files) can be written directly, or None."""
    with tempfile.TemporaryFile(dir=folder) as file:
        twin = _platform.reopen_direct(file.fileno())
    if twin is None:
        return f"the file system under {folder or tempfile.gettempdir()} has no direct I/O"
    os.close(twin)
    return None
