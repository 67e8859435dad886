"""Single system calls that fail, lie, or are the last that a process makes: a sample; ``make torture`` takes every one.

Unlike in ``tests/crash/test_every_operation.py``, LMDB's own calls are among them.
"""

from __future__ import annotations

import pytest

from tests.direct import why_not_direct
from tests.faults.needs import why_no_strace
from tests.faults.syscalls import LONG, NAMES, calls, direct_calls, run_call

pytestmark = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))

SAMPLE = [
    ("pwrite64", "ENOSPC", 12),
    ("pwrite64", "EIO", 20),
    ("pwrite64", "SIGKILL", 21),
    ("pwrite64", "lie", 24),
    ("pwritev2", "ENOSPC", 20),
    ("pwritev2", "nothing", 30),
    ("pwritev2", "lie", 38),
    ("fdatasync", "EIO", 29),
    ("fdatasync", "SIGKILL", 30),
    ("fsync", "EIO", 11),
    ("rename", "SIGKILL", 3),
    ("ftruncate", "EIO", 2),
    ("fallocate", "ENOSPC", 12),
    ("unlink", "EIO", 5),
    ("mmap", "ENOSPC", 3),
]


@pytest.mark.parametrize(("name", "fault", "n"), SAMPLE)
def test_a_fault_in_one_call(name: str, fault: str, n: int) -> None:
    assert run_call(name, fault, n).failure is None


@pytest.mark.parametrize(("name", "n"), [("pwrite64", 18), ("pwrite64", 19), ("fdatasync", 24)])
def test_the_index_survives_a_failed_commit(name: str, n: int) -> None:
    """A commit that fails in its middle makes LMDB refuse everything: the store opens it anew by itself."""
    assert run_call(name, "EIO", n, "persist").failure is None


@pytest.mark.skipif(why_not_direct() is not None, reason=str(why_not_direct()))
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("pwritev2", "ENOSPC"),
        ("pwritev2", "EIO"),
        ("pwritev2", "EINVAL"),  # which is no error: it is written through the page cache
        ("pwritev2", "lie"),
        ("pwritev2", "SIGKILL"),  # behind the page at its beginning, which is written through the cache
        ("fdatasync", "SIGKILL"),  # behind the direct write, which nobody has synced
    ],
)
def test_a_fault_in_a_direct_write_or_behind_it(name: str, fault: str) -> None:
    calls = direct_calls(name)
    assert len(calls) >= 5
    result = run_call(name, fault, calls[len(calls) // 2], scale=LONG)
    assert result.failure is None
    assert result.direct["direct_writes"] >= len(calls) // 2


@pytest.mark.slow
def test_the_workload_makes_every_kind_of_call() -> None:
    found = calls()
    assert all(found[name] for name in NAMES)
    assert all(n <= found[name] for name, _, n in SAMPLE)
