"""One life in which one system call goes wrong, by strace: the canonical workload in a process whose n-th call of some
kind fails, writes nothing, or is the moment of its death. ``run_call`` is the whole of it; ``calls`` says how many
there are, so that a longer run can loop over every one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import Pipe
from pathlib import Path
from typing import NamedTuple

from kvtier import CorruptStore, Hit, Store
from tests.crash.oracle import Oracle, check_usable, reopen
from tests.faults import lives
from tests.stores import KIB, value_of

LOW_BYTES = 256 * KIB  # of the lower tier: blocks are evicted
NAMES = ("pwrite64", "pwritev2", "fdatasync", "fsync", "rename", "ftruncate", "fallocate", "unlink", "mmap")
_WRITES = ("pwrite64", "pwritev2")
_LIE = "lie"

#: What strace does with the call. After ``nothing`` it has written no byte, and says so; after ``lie`` neither, but it
#: says that it has written 100 of them.
FAULTS = {
    "ENOSPC": "error=ENOSPC",
    "EIO": "error=EIO",
    "SIGKILL": "signal=SIGKILL",
    "nothing": "retval=0",
    _LIE: "retval=100",
}


class Result(NamedTuple):
    """What a fault did: how the process ended, and what was wrong afterwards (None: nothing)."""

    name: str
    fault: str
    n: int
    exit_code: int
    failure: str | None


def faults_of(name: str) -> list[str]:
    """The faults that a system call of this name can have."""
    return [f for f in FAULTS if name in _WRITES or f not in ("nothing", _LIE)]


@cache
def calls() -> Counter[str]:
    """How many system calls of each name the workload makes."""
    found: Counter[str] = Counter()
    for name in NAMES:
        with _base() as base:
            log = base / "log"
            code, raised = _live(base, name, ["-o", str(log)], Oracle())
            assert (code, raised) == (0, None), raised
            found[name] = len(re.findall(rf"\b{name}\(", log.read_text()))
    return found


def run_call(name: str, fault: str, n: int, life: str = "live") -> Result:
    """A life of :mod:`tests.faults.lives` with this fault in its ``n``-th system call of that name (from 1), and the
    check of what is left.

    Needs :func:`tests.faults.needs.why_no_strace` to be None.
    """
    oracle = Oracle()
    with _base() as base:
        log = base / "log"
        inject = ["-o", str(log), "-e", f"inject={name}:{FAULTS[fault]}:when={n}"]
        code, failure = _live(base, name, inject, oracle, life)
        if code != (-signal.SIGKILL if fault == "SIGKILL" else 0):
            failure = failure or f"the process ended with {code}"
        if fault != "SIGKILL" and "(INJECTED)" not in log.read_text():
            failure = failure or f"there was no call {n} of {name}"
        return Result(name, fault, n, code, failure or _wrong(base, oracle, fault))


def _live(base: Path, name: str, options: list[str], oracle: Oracle, life: str = "live") -> tuple[int, str | None]:
    """The workload under strace, with an eye on calls of one name: its exit code, and the exception that left it."""
    here, there = Pipe(duplex=False)
    command = ["strace", "-f", "-qq", "-e", f"trace={name}", *options]
    if name == "mmap":  # only those of the index: Python makes hundreds for itself
        command += [f"--trace-path={base / 'store' / 'index' / file}" for file in ("data.mdb", "lock.mdb")]
    command += [sys.executable, "-m", "tests.faults.lives", life, str(base), str(LOW_BYTES), str(there.fileno())]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, pass_fds=[there.fileno()], cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.PIPE
    )
    there.close()
    failure = lives.hear(here, oracle)
    here.close()
    stderr = process.communicate()[1].decode()
    return process.returncode, failure or (stderr if process.returncode > 0 else None)


def _wrong(base: Path, oracle: Oracle, fault: str) -> str | None:
    settings = lives.settings_of(base, LOW_BYTES)
    try:
        with reopen(settings) as store:
            if fault == _LIE:
                _check_bytes(store, oracle)
            else:
                oracle.check(store)
        check_usable(settings, oracle)
    except CorruptStore as e:  # the file that says who the store is: a damaged one is refused
        return None if fault == _LIE else str(e)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return None


def _check_bytes(store: Store, oracle: Oracle) -> None:
    """A disk that lies may lose anything, and make nothing up."""
    for key, ever in oracle.ever.items():
        hit = store.get(key)
        assert not isinstance(hit, Hit) or value_of(hit) in ever, f"{key!r}: wrong bytes"


@contextmanager
def _base() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="kvtier-syscalls-", dir="/dev/shm"))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)
