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
from tests.crash.scale import SCALES
from tests.faults import lives
from tests.stores import value_of

NAMES = ("pwrite64", "pwritev2", "fdatasync", "fsync", "rename", "ftruncate", "fallocate", "unlink", "mmap")
_WRITES = ("pwrite64", "pwritev2")
_LIE = "lie"
_CALL = re.compile(r"(\w+)\((\w+)(.*)\) += (-?\d+)")
SHORT, LONG = "blocks are evicted", "long blocks are evicted"  #: scales

#: What strace does with the call. After ``nothing`` it has written no byte, and says so; after ``lie`` neither, but it
#: says that it has written 100 of them. ``EINVAL`` is what a direct write is refused with.
FAULTS = {
    "ENOSPC": "error=ENOSPC",
    "EIO": "error=EIO",
    "EINVAL": "error=EINVAL",
    "SIGKILL": "signal=SIGKILL",
    "nothing": "retval=0",
    _LIE: "retval=100",
}


class Result(NamedTuple):
    """What a fault did: how the process ended, what was wrong afterwards (None: nothing), and what was read and written
    directly."""

    name: str
    fault: str
    n: int
    exit_code: int
    failure: str | None
    direct: Counter[str]


def faults_of(name: str) -> list[str]:
    """The faults that a system call of this name can have."""
    of_writes = ("nothing", _LIE) if name in _WRITES else ()
    return [f for f in FAULTS if f not in ("nothing", _LIE, "EINVAL") or f in of_writes]


@cache
def calls(scale: str = SHORT) -> Counter[str]:
    """How many system calls of each name the workload makes."""
    return Counter({name: len(re.findall(rf"\b{name}\(", _traced(name, scale))) for name in NAMES})


@cache
def direct_calls(name: str = "pwritev2", scale: str = LONG) -> list[int]:
    """Which of its calls of that name (from 1) are direct writes, through a descriptor that was opened so; or, of
    another name than theirs, come next after one."""
    found, direct, count, is_next = [], set[str](), 0, False
    for call, fd, flags, result in _CALL.findall(_traced(f"openat,close,pwritev2,{name}", scale)):
        is_direct = call == "pwritev2" and fd in direct
        if call == "openat" and "O_DIRECT|" in flags:
            direct.add(result)
        elif call == "close":
            direct.discard(fd)
        is_next = is_direct or (is_next and name != "pwritev2")
        if call == name:
            count += 1
            if is_next:
                found.append(count)
                is_next = False
    return found


def _traced(names: str, scale: str) -> str:
    """Calls of these names in the workload, as strace writes them."""
    with _base(scale) as base:
        log = base / "log"
        code, raised = _live(base, names, ["-o", str(log)], (Oracle(), Counter()), scale)
        assert (code, raised) == (0, None), raised
        return log.read_text()


def run_call(name: str, fault: str, n: int, life: str = "live", scale: str = SHORT) -> Result:
    """A life of :mod:`tests.faults.lives` with this fault in its ``n``-th system call of that name (from 1), and the
    check of what is left.

    Needs :func:`tests.faults.needs.why_no_strace` to be None.
    """
    oracle, direct = Oracle(), Counter[str]()
    with _base(scale) as base:
        log = base / "log"
        inject = ["-o", str(log), "-e", f"inject={name}:{FAULTS[fault]}:when={n}"]
        code, failure = _live(base, name, inject, (oracle, direct), scale, life)
        if code != (-signal.SIGKILL if fault == "SIGKILL" else 0):
            failure = failure or f"the process ended with {code}"
        if fault != "SIGKILL" and "(INJECTED)" not in log.read_text():
            failure = failure or f"there was no call {n} of {name}"
        return Result(name, fault, n, code, failure or _wrong(base, oracle, fault, scale), direct)


def _live(
    base: Path, name: str, options: list[str], told: tuple[Oracle, Counter[str]], scale: str, life: str = "live"
) -> tuple[int, str | None]:
    """The workload under strace, with an eye on calls of one name: its exit code, and the exception that left it."""
    here, there = Pipe(duplex=False)
    command = ["strace", "-f", "-qq", "-e", f"trace={name}", *options]
    if name == "mmap":  # only those of the index: Python makes hundreds for itself
        command += [f"--trace-path={base / 'store' / 'index' / file}" for file in ("data.mdb", "lock.mdb")]
    command += [sys.executable, "-m", "tests.faults.lives", life, str(base), scale, str(there.fileno())]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, pass_fds=[there.fileno()], cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.PIPE
    )
    there.close()
    failure = lives.hear(here, *told)
    here.close()
    stderr = process.communicate()[1].decode()
    return process.returncode, failure or (stderr if process.returncode > 0 else None)


def _wrong(base: Path, oracle: Oracle, fault: str, scale: str) -> str | None:
    settings = SCALES[scale].settings(base)
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
def _base(scale: str) -> Iterator[Path]:
    """In memory, or where there are real direct reads and writes of long blocks."""
    base = Path(tempfile.mkdtemp(prefix="kvtier-syscalls-", dir=None if SCALES[scale].is_long else "/dev/shm"))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)
