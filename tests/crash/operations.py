"""The canonical workload on a file system of which any one call can be made to fail, or to be the last."""

from __future__ import annotations

import shutil
from pathlib import Path

from kvtier.fs import OsFileSystem
from kvtier.testing import Call, FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import check_usable, die, reopen
from tests.crash.scale import SHORT, Scale
from tests.crash.workload import Workload


def prepared(folder: Path, scale: Scale = SHORT["all of it fits"]) -> Workload:
    return Workload(scale, folder, FaultyFileSystem(OsFileSystem()))


def faulty(workload: Workload) -> FaultyFileSystem:
    assert isinstance(workload.fs, FaultyFileSystem)
    return workload.fs


def run(workload: Workload) -> bool:
    """Run it until it ends or the process dies; whether it died."""
    died = False
    try:
        workload.run()
    except SimulatedCrash:
        died = True
    if died:
        die(workload.store, faulty(workload))
    return died


def count_calls(folder: Path, scale: Scale) -> FaultyFileSystem:
    workload = prepared(folder, scale)
    workload.run()
    return faulty(workload)


def lose_index(workload: Workload) -> None:
    shutil.rmtree(Path(str(workload.settings.store.path)) / "index", ignore_errors=True)


def may_be_a_mark(call: Call) -> bool:
    """Whether the call comes when the index has forgotten a record, and before the record says so itself."""
    return call.op in ("punch", "unlink") or (call.op, call.nbytes) == ("write_at", 1)


def check(workload: Workload, *, stale: bool = False) -> None:
    with reopen(workload.settings) as store:
        workload.oracle.check(store, stale=stale)
    check_usable(workload.settings, workload.oracle)
