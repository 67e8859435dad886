"""One life of the canonical workload that a loss of power ends, by seed; and a recovery that another one may end.

LMDB does its own I/O, beside the file system that loses here. What it promises with ``metasync=False`` is played
by hand: each commit is whole, and the last one may be missing.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvtier.fs import OsFileSystem
from kvtier.index.lmdb_index import LmdbIndex, WriteTxn
from kvtier.running import RUNNING_FILE
from kvtier.testing import FaultyFileSystem, SimulatedCrash
from tests.crash.oracle import check_usable, die, reopen
from tests.crash.scale import Scale
from tests.crash.workload import Workload

#: What the power takes of the index.
LOST = ("nothing of the index", "its last commit", "all of it")


def lose_power(folder: Path, seed: int, scale: Scale, lost: str, calls: int, compaction: str = "reclaim") -> None:
    """Run the workload until some one of its ``calls``, lose what was not synced, recover, lose again, and check."""
    rng = random.Random(seed)
    index_before = folder / "index before"
    with index_copied_to(index_before):
        workload, fs = run_until(rng.randint(1, calls), folder, scale, compaction)
    die(workload.store, fs)
    fs.lose_unsynced(seed, keep_probability=rng.choice([0, 0.5, 0.9]))
    new_boot(folder / "store")
    index = folder / "store" / "index"
    if lost == "all of it":
        shutil.rmtree(index, ignore_errors=True)
    elif lost == "its last commit" and index_before.exists():
        shutil.copyfile(index_before, index / "data.mdb")
        workload.oracle.deletions_may_be_undone()
    fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
    fs.crash_at(rng.randint(1, 12))
    with suppress(SimulatedCrash):
        reopen(workload.settings, fs).close()
    fs.lose_unsynced(seed, keep_probability=0.5)
    new_boot(folder / "store")
    with reopen(workload.settings) as store:
        workload.oracle.check(store, stale=lost == "all of it", damage=lost != "nothing of the index")
    check_usable(workload.settings, workload.oracle)


def run_until(call: int, folder: Path, scale: Scale, compaction: str = "reclaim") -> tuple[Workload, FaultyFileSystem]:
    """The workload, dead in this call (0: at its end)."""
    fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
    fs.crash_at(call)
    workload = Workload(scale, folder, fs, compaction=compaction, compaction_dead_ratio=0.1)
    with suppress(SimulatedCrash):
        workload.run()
    return workload, fs


def new_boot(store: Path) -> None:
    """The machine comes up anew: a store can tell from this that its last process did not end by itself."""
    running = store / RUNNING_FILE
    if running.exists():
        running.write_bytes(b"an earlier boot")


@contextmanager
def index_copied_to(copy: Path) -> Iterator[None]:
    """Inside, ``copy`` always holds the index as it was before its latest commit."""
    write = LmdbIndex.write

    @contextmanager
    def copied_first(index: LmdbIndex) -> Iterator[WriteTxn]:
        shutil.copyfile(Path(index._env.path()) / "data.mdb", copy)
        with write(index) as txn:
            yield txn

    setattr(LmdbIndex, "write", copied_first)  # noqa: B010
    try:
        yield
    finally:
        setattr(LmdbIndex, "write", write)  # noqa: B010
