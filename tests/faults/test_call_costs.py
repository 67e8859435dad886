"""System calls of single operations, LMDB's own among them, counted by strace."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.needs import why_no_strace

pytestmark = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))

FEW, MANY = 8, 72
_MEMORY = {"brk", "mmap", "munmap", "madvise", "mremap"}  #: Python's own, when it likes
_PAGES = {"pwrite", "writev", "lseek"}  #: LMDB's, for the pages of a commit: as many as have changed
_PAGES_MAX = 16


@pytest.mark.parametrize(
    ("operation", "calls"),
    [
        ("get from RAM", {"getpid": 1}),  # whether this is a forked child
        ("match", {"getpid": 1}),  # the pages of the index are mapped
        ("get_into from disk", {"getpid": 1, "preadv": 1}),
        # Four puts and a flush: one write of the segment, which is made durable, and one commit of the index.
        ("put and flush", {"getpid": 5, "fallocate": 1, "pwritev": 1, "fdatasync": 2}),
    ],
)
def test_what_one_more_takes(tmp_path: Path, operation: str, calls: dict[str, int]) -> None:
    """The difference between many and few, divided by how many more: what the process needs to begin cancels out."""
    few, many = (_count(tmp_path / str(times), operation, times) for times in (FEW, MANY))
    more = {name: (many[name] - few[name]) / (MANY - FEW) for name in many - few if name not in _MEMORY}
    pages = sum(more.pop(name, 0.0) for name in _PAGES)
    assert {name: round(n) for name, n in more.items() if n >= 0.5} == calls
    assert pages <= (_PAGES_MAX if "fdatasync" in calls else 0)


def _count(folder: Path, operation: str, times: int) -> Counter[str]:
    """By name, without the "2" or "64" that calls have or not with the C library that Python was built for."""
    folder.mkdir()
    log = folder / "log"
    command = ["strace", "-f", "-qq", "-o", str(log), sys.executable, "-m", "tests.faults.calls"]
    subprocess.run(
        [*command, str(folder), operation, str(times)], cwd=Path(__file__).parents[2], check=True, timeout=120
    )
    return Counter(re.findall(r"^\d+ +(\w+?)(?:2|64)?\(", log.read_text(), re.MULTILINE))
