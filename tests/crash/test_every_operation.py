"""Whatever call to the disk fails, and whichever the process dies in: no wrong byte, nothing lost that was promised.

The calls are those of the canonical workload, one after the other. LMDB does its own I/O, beside the file
system that fails here: these crashes fall between its commits.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier.testing.faulty_fs import MUTATING
from tests.crash.operations import check, count_calls, faulty, lose_index, may_be_a_mark, prepared, run
from tests.crash.scale import LONG, SHORT, Scale
from tests.direct import counted, why_not_direct
from tests.stores import MIB

FreshFolder = Callable[[], Path]


@contextmanager
def telling(what: str) -> Iterator[None]:
    """A failure inside says where in the workload it was."""
    try:
        yield
    except Exception as e:
        raise AssertionError(what) from e


@pytest.mark.parametrize(("scale", "evicts"), [(SHORT["all of it fits"], False), (SHORT["blocks are evicted"], True)])
def test_the_workload_makes_every_kind_of_change(fresh_folder: FreshFolder, scale: Scale, evicts: bool) -> None:
    workload = prepared(fresh_folder(), scale)
    workload.run()
    check(workload)
    assert {call.op for call in faulty(workload).trace} == MUTATING - {"truncate"}
    assert workload.counters["demotions"] >= 4
    assert workload.counters["promotions"] >= 2
    assert workload.counters["dedup_blocks"] >= 4
    assert (workload.counters["evictions"] > 0) == evicts


@pytest.mark.parametrize("scale", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("index_is_lost", [False, True])
def test_death_in_any_call(fresh_folder: FreshFolder, scale: Scale, index_is_lost: bool) -> None:
    """``index_is_lost``: it is made anew from the segments. What had just been overwritten, deleted or evicted may
    then be back, but only if the death came before its record was marked."""
    trace = count_calls(fresh_folder(), scale).trace
    for n, call in enumerate(trace, 1):
        workload = prepared(fresh_folder(), scale)
        faulty(workload).crash_at(n)
        assert run(workload)
        if index_is_lost:
            lose_index(workload)
        with telling(f"after death in call {n}, {call}"):
            check(workload, stale=index_is_lost and may_be_a_mark(call))


@pytest.mark.parametrize(("code", "index_is_lost"), [(errno.ENOSPC, False), (errno.EIO, True)], ids=["ENOSPC", "EIO"])
def test_an_error_of_any_call(fresh_folder: FreshFolder, code: int, index_is_lost: bool) -> None:
    """The workload goes on after it; the oracle forgives what a FlushError named, and nothing else."""
    scale = SHORT["all of it fits"]
    for n, call in enumerate(count_calls(fresh_folder(), scale).trace, 1):
        workload = prepared(fresh_folder(), scale)
        faulty(workload).fail_at(n, code)
        with telling(f"after {errno.errorcode[code]} from call {n}, {call}"):
            assert not run(workload)
            if index_is_lost:
                lose_index(workload)
            check(workload, stale=index_is_lost and may_be_a_mark(call))


def test_a_short_write(fresh_folder: FreshFolder) -> None:
    scale = SHORT["all of it fits"]
    writes = [call for call in count_calls(fresh_folder(), scale).trace if call.op == "write_at"]
    for n, call in enumerate(writes, 1):
        workload = prepared(fresh_folder(), scale)
        faulty(workload).short_write_at(n, call.nbytes * 2 // 3, errno.ENOSPC)
        with telling(f"after short write {n}, {call}"):
            assert not run(workload)
            check(workload)


def test_death_in_the_middle_of_a_write(fresh_folder: FreshFolder) -> None:
    scale = SHORT["all of it fits"]
    writes = [call for call in count_calls(fresh_folder(), scale).trace if call.op == "write_at"]
    for n, call in enumerate(writes, 1):
        workload = prepared(fresh_folder(), scale)
        faulty(workload).crash_at(n, op="write_at", written=call.nbytes * 2 // 3)
        with telling(f"after death in write {n}, {call}"):
            assert run(workload)
            check(workload)


@pytest.mark.parametrize("op", ["write_at", "reserve", "create", "sync_data", "sync_dir", "unlink", "punch"])
def test_a_kind_of_call_that_fails_from_some_moment_on(fresh_folder: FreshFolder, op: str) -> None:
    """Such as a disk that is full, and stays so until the store is opened again."""
    scale = SHORT["blocks are evicted"]
    count = count_calls(fresh_folder(), scale).counts[op]
    for n in range(1, count + 1, 4):
        workload = prepared(fresh_folder(), scale)
        faulty(workload).fail_at(n, errno.ENOSPC, op=op, lasting=True)
        with telling(f"after all of {op} failed from {n} on"):
            assert not run(workload)
            check(workload)


@pytest.mark.parametrize("op", ["read_at", "open", "list_dir", "size"])
def test_an_error_of_any_call_that_changes_nothing(fresh_folder: FreshFolder, op: str) -> None:
    scale = SHORT["all of it fits"]
    count = count_calls(fresh_folder(), scale).counts[op]
    for n in range(1, count + 1):
        workload = prepared(fresh_folder(), scale)
        faulty(workload).fail_at(n, errno.EIO, op=op)
        with telling(f"after EIO from {op} {n}"):
            assert not run(workload)
            check(workload)


@pytest.mark.parametrize("kind", ["torn", "short", "failed", "killed before the sync", "failed sync"])
def test_a_direct_write_that_goes_wrong(fresh_folder: FreshFolder, kind: str) -> None:
    """Some of those of long blocks; ``make torture`` takes every call of such a workload."""
    scale = LONG["long blocks are evicted"]
    calls = count_calls(fresh_folder(), scale).trace
    writes = [call for call in calls if call.op == "write_at"]
    direct = [call for call in writes if call.nbytes >= MIB and call.path.split("/")[-2] != scale.cached]
    for call in (direct[0], direct[len(direct) // 2], direct[-1]):
        workload, n = prepared(fresh_folder(), scale), writes.index(call) + 1
        fs, part = faulty(workload), call.nbytes * 2 // 3
        sync = next(i for i, c in enumerate(calls, 1) if c.op == "sync_data" and i > calls.index(call))
        match kind:
            case "torn":
                fs.crash_at(n, op="write_at", written=part)
            case "short":
                fs.short_write_at(n, part, errno.ENOSPC)
            case "failed":
                fs.fail_at(n, errno.EIO, op="write_at")
            case "killed before the sync":
                fs.crash_at(sync)
            case _:
                fs.fail_at(sync, errno.EIO)
        with telling(f"after {kind} in {call}"), counted() as found:
            assert run(workload) == (kind in ("torn", "killed before the sync"))
            check(workload)
            assert found["direct_writes"] or why_not_direct(Path(call.path).parents[3])
