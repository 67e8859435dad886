"""Every call of the canonical workload to the file system, each gone wrong in every way: a case is one of them."""

from __future__ import annotations

import errno
import random
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.crash.operations import check, count_calls, faulty, lose_index, may_be_a_mark, prepared, run
from tests.crash.scale import SCALES, Scale
from tests.direct import counted
from tests.torture.stage import Case

_READS = ("read_at", "open", "list_dir", "size")


class Fault(NamedTuple):
    """``kind``: death, torn (death in the middle of a write), short (part of a write), or the errno of a failure.
    ``op``: counts calls of this name only. ``may_be_stale``: an older value may be back afterwards."""

    kind: str
    n: int
    op: str | None
    part: int
    scale: Scale
    index_is_lost: bool
    may_be_stale: bool


@cache
def faults() -> list[Fault]:
    """All there are, in a fixed order that mixes them."""
    found = []
    for scale in SCALES.values():
        with TemporaryDirectory() as folder:
            fs = count_calls(Path(folder), scale)
        writes = [call for call in fs.trace if call.op == "write_at"]
        for lost in (False, True):
            for n, call in enumerate(fs.trace, 1):
                stale = lost and may_be_a_mark(call)
                found += [Fault(k, n, None, 0, scale, lost, stale) for k in ("death", "ENOSPC", "EIO")]
            for n, call in enumerate(writes, 1):
                stale = lost and may_be_a_mark(call)
                part = call.nbytes * 2 // 3
                found += [Fault(k, n, "write_at", part, scale, lost, stale) for k in ("torn", "short")]
        for op in _READS:
            found += [Fault("EIO", n, op, 0, scale, False, False) for n in range(1, fs.counts[op] + 1)]
    random.Random(0).shuffle(found)
    return found


def run_fault(case: Case) -> Counter[str]:
    """The fault that has the seed as its number; behind the last one comes the first."""
    fault = faults()[case.seed % len(faults())]
    workload = prepared(case.folder, fault.scale)
    fs = faulty(workload)
    if fault.kind in ("death", "torn"):
        fs.crash_at(fault.n, op=fault.op, written=fault.part)
    elif fault.kind == "short":
        fs.short_write_at(fault.n, fault.part, errno.ENOSPC)
    else:
        fs.fail_at(fault.n, getattr(errno, fault.kind), op=fault.op)
    try:
        with counted() as direct:
            died = run(workload)
        assert died == (fault.kind in ("death", "torn"))
        if fault.index_is_lost:
            lose_index(workload)
        check(workload, stale=fault.may_be_stale)
    except Exception as e:
        raise AssertionError(f"after {fault}") from e
    return Counter(calls=1, kills=int(died), long_blocks=int(fault.scale.is_long)) + direct
