"""The power fails: whatever was not synced is lost, page by page and name by name, as chance has it.

LMDB does its own I/O, beside the file system that loses here. What it promises with ``metasync=False`` is played
by hand: each commit is whole, and the last one may be missing.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kvtier.fs import OsFileSystem
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import check_usable, die, reopen, two_tiers
from tests.crash.workload import Workload
from tests.stores import KIB

FreshFolder = Callable[[], Path]
SEEDS = 50


@pytest.mark.parametrize("low_bytes", [32 << 20, 256 * KIB], ids=["all of it fits", "blocks are evicted"])
@pytest.mark.parametrize("lost", ["nothing of the index", "its last commit", "all of it"])
def test_power_loss(fresh_folder: FreshFolder, index_before: Path, low_bytes: int, lost: str) -> None:
    """The power may fail again while the store recovers."""
    calls = run_until(0, fresh_folder(), low_bytes)[1].calls
    for seed in range(SEEDS):
        rng = random.Random(seed)
        index_before.unlink(missing_ok=True)
        workload, fs = run_until(rng.randint(1, calls), fresh_folder(), low_bytes)
        die(workload.store, fs)
        fs.lose_unsynced(seed, keep_probability=rng.choice([0, 0.5, 0.9]))
        if lost == "all of it":
            shutil.rmtree(folder_of(workload) / "index", ignore_errors=True)
        elif lost == "its last commit" and index_before.exists():
            shutil.copyfile(index_before, folder_of(workload) / "index" / "data.mdb")
            workload.oracle.deletions_may_be_undone()
        fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
        fs.crash_at(rng.randint(1, 12))
        with suppress(SimulatedCrash):
            reopen(workload.settings, fs).close()
        fs.lose_unsynced(seed, keep_probability=0.5)
        try:
            with reopen(workload.settings) as store:
                workload.oracle.check(store, stale=lost == "all of it", damage=lost != "nothing of the index")
            check_usable(workload.settings, workload.oracle)
        except Exception as e:
            raise AssertionError(f"seed {seed}") from e


def run_until(call: int, folder: Path, low_bytes: int) -> tuple[Workload, FaultyFileSystem]:
    """The workload, dead in this call (0: at its end)."""
    fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
    fs.crash_at(call)
    workload = Workload(two_tiers(folder, low_bytes=low_bytes), fs)
    with suppress(SimulatedCrash):
        workload.run()
    return workload, fs


def folder_of(workload: Workload) -> Path:
    assert workload.settings.store.path is not None
    return workload.settings.store.path
